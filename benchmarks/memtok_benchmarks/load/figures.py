"""What the samples of a load say: latencies, answers per second, and whether the server kept up."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression

from memtok_benchmarks.load.client import Sample

OK, TIMED_OUT, REFUSED = 200, 408, 429
GRID = 200  # moments at which the backlog is looked at
KEPT_UP = 0.95  # of the offered load


def percentile(values: Sequence[float], share: float) -> float | None:
    """The least value that at least `share` of all do not exceed; None of no values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def slope(points: Sequence[tuple[float, float]]) -> float:
    """By least squares; 0 of points that have none."""
    if len({x for x, _ in points}) < 2:
        return 0.0
    return float(linear_regression([x for x, _ in points], [y for _, y in points]).slope)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Of one load. Seconds, and counts per second.

    requests: due after the warm-up; of these answered (200), refused (429), timed_out (408, or no answer for longer
    than a server may take) and failed (all else). p50 to most: latencies of the answered ones, from when they were due.
    throughput: answers per second, the slope of their count over time, so that batches, which come in lumps, do not
    matter. growth: by how many requests per second the backlog grew. kept_up: whether the server answered all, and the
    backlog did not grow by more than 5 % of what was offered, or by a batch over the whole time. late: the 99th
    percentile of how late the client sent a request.
    """

    offered: float
    requests: int
    answered: int
    refused: int
    timed_out: int
    failed: int
    throughput: float
    growth: float
    kept_up: bool
    p50: float | None
    p95: float | None
    p99: float | None
    most: float | None
    late: float


def figures(samples: Sequence[Sample], offered: float, begin: float, end: float, batch: int) -> Figures:
    """The figures of the requests that were due from `begin` to `end`, the end of the load, in seconds."""
    counted = [sample for sample in samples if begin <= sample.due <= end]
    statuses = [sample.status for sample in counted]
    answered = [sample.latency for sample in counted if sample.status == OK]
    growth = slope(backlog(samples, begin, end))
    timed_out = statuses.count(TIMED_OUT) + statuses.count(0)
    refused = statuses.count(REFUSED)
    allowed = max((1 - KEPT_UP) * offered * (end - begin), batch)
    return Figures(
        offered=offered,
        requests=len(counted),
        answered=len(answered),
        refused=refused,
        timed_out=timed_out,
        failed=len(counted) - len(answered) - refused - timed_out,
        throughput=slope(completions(samples, begin, end)),
        growth=growth,
        kept_up=len(answered) == len(counted) and growth * (end - begin) <= allowed,
        p50=percentile(answered, 0.5),
        p95=percentile(answered, 0.95),
        p99=percentile(answered, 0.99),
        most=max(answered, default=None),
        late=percentile([sample.sent - sample.due for sample in counted], 0.99) or 0.0,
    )


def completions(samples: Sequence[Sample], begin: float, end: float) -> list[tuple[float, float]]:
    """(seconds, answers so far) at every answer from `begin` to `end`."""
    done = sorted(sample.done for sample in samples if sample.status == OK)
    return [(moment, float(count)) for count, moment in enumerate(done, 1) if begin <= moment <= end]


def backlog(samples: Sequence[Sample], begin: float, end: float) -> list[tuple[float, float]]:
    """(seconds, requests that were due and not done), at moments from `begin` to `end`."""
    due, done = sorted(sample.due for sample in samples), sorted(sample.done for sample in samples)
    moments = [begin + (end - begin) * index / GRID for index in range(GRID + 1)]
    return [(moment, float(bisect_right(due, moment) - bisect_right(done, moment))) for moment in moments]
