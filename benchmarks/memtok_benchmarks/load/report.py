"""A load test as JSON, CSV and Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memtok.display import counted, duration, markdown_table, shown_bytes
from memtok.files import csv_text, write_csv, write_json, write_text
from memtok_benchmarks.lines import Entry, Line, Table
from memtok_benchmarks.load.picture import draw
from memtok_benchmarks.load.rates import Run
from memtok_benchmarks.load.settings import HALF, LABELS, QUESTIONS, Settings
from memtok_benchmarks.load.steady import TOLERANCE, Steady
from memtok_benchmarks.report import COLUMNS, cells

FORMAT_VERSION = 1
SHARE_OF_OWN_PASS = 0.8
TIMES_OF_A_BATCH = 2.0
GROWN = 1.02  # a median of a minute over another: memory that stays moves by less

RUN_COLUMNS = (
    "asked", "tasks", "server", "own pass, images/s", "kept up to", "answered at most", "p50", "p95", "p99", "requests",
)  # fmt: skip
POINT_COLUMNS = (
    "question", "tasks", "server", "max_batch", "own_pass_per_s", "own_pass_s", "share", "offered_per_s", "requests",
    "answered", "refused", "timed_out", "failed", "throughput_per_s", "backlog_growth_per_s", "kept_up", "p50_s",
    "p95_s", "p99_s", "max_s", "images_per_batch", "model_busy", "server_cores", "client_core", "client_late_p99_s",
)  # fmt: skip


@dataclass
class Report:
    """What was measured so far. photograph: the mean size of the JPEG files in bytes."""

    settings: Settings
    machine: dict[str, Any]
    command: str
    photograph: int
    runs: list[Run] = field(default_factory=list)
    steady: list[Steady] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "format_version": FORMAT_VERSION,
            "command": self.command,
            "machine": self.machine,
            "settings": {**self.settings.to_json(), "backbone": Path(self.settings.backbone).name},
            "photograph_bytes": self.photograph,
            "runs": [asdict(run) for run in self.runs],
            "steady": [asdict(one) for one in self.steady],
            "lines": [line.to_json() for line in self.lines()],
        }

    def lines(self) -> list[Line]:
        """The lines with the project's bounds."""
        return [*rate_lines(self.settings, self.runs), *steady_lines(self.steady)]

    def tables(self) -> list[Table]:
        """The tables in absolute numbers."""
        found = []
        if self.runs:
            rows = tuple(map(run_row, self.runs))
            found.append(
                Table(title=f"Per second, and milliseconds at {HALF:g} of the own pass", columns=RUN_COLUMNS, rows=rows)
            )
        return [*found, *map(steady_table, self.steady)]

    def to_markdown(self) -> str:
        """The lines, the tables, the machine and the settings."""
        parts = [
            "# Results of the load test",
            "",
            f"Written by `{self.command}`. What each line means: docs/serving.md.",
        ]
        parts += ["", *markdown_table(COLUMNS, [cells(line) for line in self.lines()])]
        for table in self.tables():
            parts += ["", f"## {table.title}", "", *markdown_table(table.columns, table.rows, right=table.columns[3:])]
        parts += ["", *(f"- {note}" for note in self.notes())]
        parts += ["", "## Machine and settings", "", *markdown_table(("", ""), list(self.facts()))]
        return "\n".join(parts) + "\n"

    def notes(self) -> Iterator[str]:
        """What the numbers depend on."""
        yield f"The images are {self.settings.images} JPEG files of {shown_bytes(self.photograph)} on average."
        late = [point.figures.late for run in self.runs for point in run.points]
        cost = [point.client for run in self.runs for point in run.points]
        if late:
            yield (
                f"Client: of each load 99 % were sent within {1000 * max(late):.1f} ms of when they were due (median "
                f"over the loads {1000 * statistics.median(late):.1f} ms); it took {max(cost):.2f} of a core at most."
            )
        for run in self.runs:
            if run.gap:
                yield f"{counted(run.tasks, 'task')}, {LABELS[run.server]}: {run.gap}."

    def facts(self) -> Iterator[tuple[str, str]]:
        """Machine and settings, name and value."""
        for name, value in {**self.machine, **self.to_json()["settings"]}.items():
            for inner, found in value.items() if isinstance(value, dict) else [(name, value)]:
                listed = ", ".join(map(str, found)) if isinstance(found, list | tuple) else str(found)
                yield inner, listed

    def save(self, folder: str | Path) -> list[Path]:
        """Writes load.json, load.csv, load.md and load.png; atomically, one by one."""
        into = Path(folder)
        written = [into / f"load.{ending}" for ending in ("json", "csv", "md", "png")]
        write_json(written[0], self.to_json())
        write_csv(written[1], csv_text([POINT_COLUMNS, *(row for run in self.runs for row in point_rows(run))]))
        write_text(written[2], self.to_markdown())
        draw(self.runs, written[3])
        return written


def rate_lines(settings: Settings, runs: Sequence[Run]) -> Iterator[Line]:
    """Throughput and latency of memtok by question and number of tasks, the other servers beside it."""
    for question in QUESTIONS:
        for tasks in settings.tasks:
            mine = {run.server: run for run in runs if (run.question, run.tasks) == (question, tasks)}
            own, others = mine.pop("memtok", None), list(mine.values())
            if own is None:
                continue
            about = f"{counted(tasks, 'task')}, {'all' if question == 'all' else 'one'} asked"
            yield Line(
                what=f"answers per second at most over the model's own batched pass, {about}",
                memtok=throughput_entry(own),
                peers=tuple(map(throughput_entry, others)),
                must=settings.bound(tasks, SHARE_OF_OWN_PASS) if question == "all" else None,
                least=True,
            )
            yield Line(
                what=f"p99 at half the load of the own pass over the time of a batch, {about}",
                memtok=latency_entry(own),
                peers=tuple(map(latency_entry, others)),
                must=settings.bound(tasks, TIMES_OF_A_BATCH) if question == "all" else None,
            )


def throughput_entry(run: Run) -> Entry:
    """The answers per second of a server at most, over the images per second of the own pass."""
    value = None if run.saturated is None else run.saturated / run.ceiling
    last = max(run.points, key=lambda point: point.share, default=None)
    idle = last is not None and (value is None or last.figures.kept_up)
    return Entry(label=LABELS[run.server], value=value, note=run.gap or ("not saturated" if idle else ""))


def latency_entry(run: Run) -> Entry:
    """The 99th percentile at half the load of the own pass, over the time of a batch."""
    point = run.at(HALF)
    p99 = None if point is None else point.figures.p99
    value = None if p99 is None else p99 / run.batch_seconds
    behind = point is not None and not point.figures.kept_up
    return Entry(label=LABELS[run.server], value=value, note=run.gap or ("falls behind" if behind else ""))


def steady_lines(measured: Sequence[Steady]) -> Iterator[Line]:
    """Failed and changed answers, and the growth of memory."""
    for one in measured:
        changes, answers = one.changes, one.answers
        about = f"{duration(one.seconds)} at {one.share:g} of the own pass"
        if one.part == "changes":
            about += f", {len(changes.seconds)} changes of tasks"
        failed = answers.failed + answers.missing + changes.failed
        yield line_of(f"failed requests in {about}, of {answers.asked:,}", failed, 0)
        what = f"changed answers in {about}, of {answers.compared:,} (largest difference {answers.largest:.1g})"
        yield line_of(what, answers.changed, 0)
        if one.part == "soak":
            what = f"memory of the server in the last minute over the first of {about}"
            yield line_of(what, one.memory.last / one.memory.first, GROWN, digits=3)


def line_of(what: str, value: float, must: float, digits: int = 0) -> Line:
    """A line without peers."""
    return Line(what=what, memtok=Entry(label="memtok serve", value=value), must=must, digits=digits)


def run_row(run: Run) -> tuple[str, ...]:
    """A run in absolute numbers."""
    head = (run.question, f"{run.tasks:,}", LABELS[run.server])
    if run.gap:
        return (*head, *["-"] * 7)
    point = run.at(HALF)
    latencies = [None] * 3 if point is None else [point.figures.p50, point.figures.p95, point.figures.p99]
    rates = [shown(run.ceiling), shown(run.kept_up), shown(run.saturated)]
    requests = "-" if point is None else f"{point.figures.requests:,}"
    return (*head, *rates, *(shown(None if value is None else 1000 * value) for value in latencies), requests)


def point_rows(run: Run) -> Iterator[tuple[object, ...]]:
    """The loads of a run for the CSV, as in `POINT_COLUMNS`."""
    for point in run.points:
        found, work = point.figures, point.work
        yield (
            run.question, run.tasks, run.server, run.max_batch, run.ceiling, run.batch_seconds, point.share,
            found.offered, found.requests, found.answered, found.refused, found.timed_out, found.failed,
            found.throughput, found.growth, found.kept_up, found.p50, found.p95, found.p99, found.most, work.batch,
            work.busy, work.cores, point.client, found.late,
        )  # fmt: skip


def steady_table(one: Steady) -> Table:
    """A steady load in absolute numbers."""
    found, answers, changes, memory = one.figures, one.answers, one.changes, one.memory
    rows = [
        ("requests per second", shown(found.offered)),
        ("p50, p95, p99, ms", ", ".join(shown(1000 * (value or 0)) for value in (found.p50, found.p95, found.p99))),
        ("answers of a task compared", f"{answers.compared:,}"),
        ("largest difference of a probability", f"{answers.largest:.2g} (changed beyond {TOLERANCE:g})"),
        (
            "memory in the first minute, in the last",
            f"{shown_bytes(round(memory.first))}, {shown_bytes(round(memory.last))}",
        ),
        ("slope of the memory", f"{memory.slope / 1e6:.2f} MB a minute"),
    ]
    if changes.seconds:
        rows += [
            ("tasks added, replaced, removed", f"{changes.added}, {changes.replaced}, {changes.removed}"),
            (
                "a change takes, median, most, ms",
                f"{1000 * statistics.median(changes.seconds):.0f}, {1000 * max(changes.seconds):.0f}",
            ),
        ]
    title = "Tasks come and go" if one.part == "changes" else f"Memory over {duration(one.seconds)}"
    return Table(title=f"{title}, {counted(one.tasks, 'task')} stay", columns=("", " "), rows=tuple(rows))


def shown(value: float | None) -> str:
    """Three digits."""
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
