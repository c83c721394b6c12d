"""The table of a grid: for each backbone and data set, every regime with its rates, seeds, mean and spread.

Accuracies in these classes are shares in [0, 1]; only published figures, and what is printed, are in percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

from memtok.errors import MemtokError
from memtok_experiments.columns import find_column
from memtok_experiments.published import published
from memtok_experiments.records import RunRecord, Score

CLOSE = 2.0  # points: what "close to full fine-tuning" means unless told otherwise

# Regimes in the order of their columns, and what a column is called. `class` is masked memory with no cells.
LABELS = {
    "full": "full",
    "head": "head",
    "memory": "{cells}",
    "head+class": "head + class, no mask",
    "memory-shared": "{cells}, no mask",
    "memory-propagated": "{cells}, propagated",
    "memory-additive": "{cells}, additive",
}


def column_order(column: str) -> tuple[int, int]:
    """The place of a column in the table: (regime, cells). MemtokError for a name that is no column."""
    found = find_column(column)
    return list(LABELS).index(found.regime), found.cells or 0


def column_label(column: str) -> str:
    """The label of a column, as in the paper: `memory-5-unmasked` is "5 cells, no mask"."""
    found = find_column(column)
    if found.regime == "memory" and not found.cells:
        return "head + class"
    return LABELS[found.regime].format(cells="1 cell" if found.cells == 1 else f"{found.cells} cells")


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A learning rate that was tried, and with which seeds.

    validation: mean accuracy on the validation part, over the seeds that all rates of the cell have in common, so that
    rates are compared on equal terms (over its own seeds where there are none). diverged: with one of its seeds.
    """

    learning_rate: float
    validation: float
    seeds: tuple[int, ...]
    diverged: bool


@dataclass(frozen=True, kw_only=True)
class SeedTest:
    """The test of one seed at its chosen learning rate; `top5` is None where it was not counted."""

    seed: int
    learning_rate: float
    top1: float
    top5: float | None
    images: int


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One regime on one data set with one backbone: all rates and seeds.

    `rates` ascend; `chosen_rates` are those that the validation part chose, mostly one for all seeds. `tests` has one
    entry per tested seed. `validation`: mean over the chosen runs, None if none is chosen. `seconds`: of training in
    all, over all rates and seeds. `published`: figures in percent, by their source.
    """

    column: str
    regime: str
    memory: int
    rates: tuple[Rate, ...]
    chosen_rates: tuple[float, ...]
    validation: float | None
    tests: tuple[SeedTest, ...]
    trained_parameters: int
    total_parameters: int
    seconds: float
    published: dict[str, float]

    @property
    def mean(self) -> float | None:
        """Mean test accuracy over the seeds; None before the first test."""
        return fmean(test.top1 for test in self.tests) if self.tests else None

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds (of a sample: divided by n - 1); None for fewer than two."""
        return stdev(test.top1 for test in self.tests) if len(self.tests) > 1 else None

    @property
    def top5(self) -> float | None:
        """Mean over the seeds; None where it was not counted for each."""
        values = [test.top5 for test in self.tests if test.top5 is not None]
        return fmean(values) if values and len(values) == len(self.tests) else None

    @property
    def images(self) -> int | None:
        """Images of the test part; None before the first test."""
        return self.tests[0].images if self.tests else None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A backbone on a data set under one setting. `cells` by column, in the table's order."""

    backbone: str
    fingerprint: str
    data: str
    image_size: tuple[int, int]
    split_digest: str
    recipe: str
    steps: int
    batch_size: int
    cells: dict[str, Cell]

    @property
    def setting(self) -> str:
        """The settings other than backbone and data, as text."""
        height, width = self.image_size
        return f"{height} x {width} px, recipe {self.recipe}, {self.steps:,} steps of {self.batch_size} images"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows in the order in which their first run was given. Made by `make_table`.

    close: points of accuracy within which memory counts as close to full fine-tuning.
    """

    rows: tuple[Row, ...]
    close: float = CLOSE
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that some row has, in the table's order."""
        return tuple(sorted({column for row in self.rows for column in row.cells}, key=column_order))


def make_table(records: Iterable[RunRecord], *, close: float = CLOSE) -> Table:
    """Puts trained runs into a table.

    Runs of one backbone and data set share a row if image size, split, recipe, steps, batch size and the backbone's
    fingerprint agree; other settings get a row of their own. close: in points, see `Table`. Raises MemtokError for no
    records, an unknown column, a run that is there twice, a seed with two chosen rates, and tests of one column on
    different numbers of images.
    """
    rows: dict[tuple[Any, ...], dict[str, list[RunRecord]]] = {}
    versions: dict[str, str] = {}
    for record in records:
        column_order(record.column)
        key = (
            record.backbone,
            record.fingerprint,
            record.data,
            record.image_size,
            record.split["digest"],
            record.recipe,
            record.steps,
            record.batch_size,
        )
        rows.setdefault(key, {}).setdefault(record.column, []).append(record)
        for name, version in record.versions.items():
            known = versions.setdefault(name, version)
            if version not in known.split(", "):
                versions[name] = f"{known}, {version}"
    if not rows:
        raise MemtokError("expected at least one trained run for a table, found none; train first")
    return Table(rows=tuple(_row(key, columns) for key, columns in rows.items()), close=close, versions=versions)


def _row(key: Sequence[Any], columns: dict[str, list[RunRecord]]) -> Row:
    backbone, fingerprint, data, image_size, digest, recipe, steps, batch_size = key
    return Row(
        backbone=backbone,
        fingerprint=fingerprint,
        data=data,
        image_size=image_size,
        split_digest=digest,
        recipe=recipe,
        steps=steps,
        batch_size=batch_size,
        cells={column: _cell(column, columns[column]) for column in sorted(columns, key=column_order)},
    )


def _cell(column: str, runs: list[RunRecord]) -> Cell:
    where = f"{runs[0].backbone} on {runs[0].data}, {column}"
    seen: set[tuple[float, int]] = set()
    for run in runs:
        if (run.learning_rate, run.seed) in seen:
            raise MemtokError(
                f"expected one run of rate {run.learning_rate:g} and seed {run.seed} for {where}, found two; remove one"
            )
        seen.add((run.learning_rate, run.seed))
    chosen = sorted((run for run in runs if run.chosen), key=lambda run: run.seed)
    for run, following in pairwise(chosen):
        if run.seed == following.seed:
            raise MemtokError(
                f"expected one chosen rate of seed {run.seed} for {where}, found {run.learning_rate:g} and "
                f"{following.learning_rate:g}; keep one"
            )
    tests = tuple(_test(run, run.test) for run in chosen if run.test is not None)
    images = sorted({test.images for test in tests})
    if len(images) > 1:
        raise MemtokError(
            f"expected tests on the same images for {where}, found {images[0]} and {images[-1]} images; test again"
        )
    return Cell(
        column=column,
        regime=runs[0].regime,
        memory=runs[0].cells,
        rates=tuple(_rate(rate, runs) for rate in sorted({run.learning_rate for run in runs})),
        chosen_rates=tuple(sorted({run.learning_rate for run in chosen})),
        validation=fmean(run.validation.top1 for run in chosen) if chosen else None,
        tests=tests,
        trained_parameters=runs[0].trained_parameters,
        total_parameters=runs[0].total_parameters,
        seconds=sum(run.seconds for run in runs),
        published=published(runs[0].data, column),
    )


def _rate(rate: float, runs: list[RunRecord]) -> Rate:
    seeds = {
        other: {run.seed for run in runs if run.learning_rate == other} for other in {r.learning_rate for r in runs}
    }
    common = set.intersection(*seeds.values()) or seeds[rate]
    tried = [run for run in runs if run.learning_rate == rate]
    return Rate(
        learning_rate=rate,
        validation=fmean(run.validation.top1 for run in tried if run.seed in common),
        seeds=tuple(sorted(seeds[rate])),
        diverged=any(run.diverged for run in tried),
    )


def _test(run: RunRecord, test: Score) -> SeedTest:
    return SeedTest(seed=run.seed, learning_rate=run.learning_rate, top1=test.top1, top5=test.top5, images=test.images)
