"""The results of a row of the benchmarks: lines of the table, further tables, and all measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from memtok.files import first_line
from memtok_benchmarks.contenders import Contender
from memtok_benchmarks.scene import Scene
from memtok_benchmarks.timing import Run, Timing, race


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The number of one contender in a line. value: None if there is none; note: why, or how it was computed."""

    label: str
    value: float | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table.

    what: the measured quantity with its unit. must, aim: bounds, None without one. least: whether they are lower
    bounds, not upper ones. digits: after the decimal point.
    """

    what: str
    memtok: Entry
    peers: tuple[Entry, ...] = ()
    must: float | None = None
    aim: float | None = None
    least: bool = False
    digits: int = 2

    @property
    def reached(self) -> str:
        """`aim`, `must` or `no`; empty without bounds or without a measurement."""
        value = self.memtok.value
        if value is None or (self.must is None and self.aim is None):
            return ""
        for name, bound in (("aim", self.aim), ("must", self.must)):
            if bound is not None and (value >= bound if self.least else value <= bound):
                return name
        return "no"

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "reached": self.reached}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A further table of a row, with cells as text; all columns but the first are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """lines: for the main table. tables: further ones. notes: for below them. data: every time, as JSON has it."""

    lines: tuple[Line, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Race:
    """Times of the contenders that ran, by name, and the reasons of the others."""

    timings: dict[str, Timing]
    gaps: dict[str, str]

    def entry(self, name: str, label: str, unit: str, *, scale: float = 1.0, note: str = "") -> Entry:
        """The medians' ratio of contender `name` and `unit`, times `scale`; the reason where it did not run."""
        if name in self.gaps:
            return Entry(label=label, value=None, note=self.gaps[name])
        return Entry(label=label, value=scale * self.timings[name].over(self.timings[unit]), note=note)

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"timings": {name: timing.to_json() for name, timing in self.timings.items()}, "gaps": self.gaps}


def run_race(scene: Scene, contenders: Mapping[str, Contender]) -> Race:
    """Makes all contenders, runs each once untimed, and times them in turns.

    A contender whose packages are not installed or fail is left out, with the reason. Errors of memtok and of its own
    dependencies are raised.
    """
    ready: dict[str, Run] = {}
    gaps: dict[str, str] = {}
    for name, contender in contenders.items():
        if contender.gap:
            gaps[name] = contender.gap
            continue
        try:
            run = contender.make(scene)
            run()
        except Exception as error:
            if not contender.needs:
                raise
            gaps[name] = does_not_run(error)
            continue
        ready[name] = run
    return Race(race(ready, rounds=scene.sizes.rounds, warmup=0, synchronize=scene.synchronize), gaps)


def does_not_run(error: Exception) -> str:
    """The note for a package that fails."""
    return f"does not run here: {type(error).__name__}: {first_line(error)}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the benchmarks. profiled: the step of memtok that `--profile` shows."""

    run: Callable[[Scene], RowResult]
    profiled: Callable[[Scene], Run] | None = None
