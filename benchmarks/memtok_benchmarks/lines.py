"""What a row of the benchmarks comes to: lines of the table, further tables, and all that was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memtok_benchmarks.contenders import Contender
from memtok_benchmarks.scene import Scene
from memtok_benchmarks.timing import Run, Timing, race


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One contender's number in a line. value: None where there is none, and `note` says why, or how it was found."""

    label: str
    value: float | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table.

    what: what was measured, in which unit. must, aim: what is asked for, None where nothing is. least: whether a value
    must be at least that, not at most. digits: shown after the point.
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
        """`aim`, `must`, `no`, or nothing where nothing is asked for or nothing was measured."""
        value = self.memtok.value
        if value is None or (self.must is None and self.aim is None):
            return ""
        for name, bound in (("aim", self.aim), ("must", self.must)):
            if bound is not None and (value >= bound if self.least else value <= bound):
                return name
        return "no"

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "what": self.what,
            "memtok": vars(self.memtok),
            "peers": [vars(peer) for peer in self.peers],
            "must": self.must,
            "aim": self.aim,
            "least": self.least,
            "digits": self.digits,
            "reached": self.reached,
        }


@dataclass(frozen=True, kw_only=True)
class Table:
    """A further table of a row, all cells as they are shown; all but the first column are numbers."""

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
    """Times of those that ran, by name, and why the others did not."""

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
    """Makes all contenders, runs each once untimed, and lets them run in turns.

    One whose packages are not installed, or whose package does not run here, is left out, with the reason. memtok and
    the dependencies that it needs anyway have no such excuse: their errors are errors.
    """
    ready: dict[str, Run] = {}
    gaps: dict[str, str] = {}
    for name, contender in contenders.items():
        if contender.missing:
            gaps[name] = f"not installed: {', '.join(contender.missing)}"
            continue
        try:
            run = contender.make(scene)
            run()
        except Exception as error:
            if not contender.needs:
                raise
            gaps[name] = f"does not run here: {first_line(error)}"
            continue
        ready[name] = run
    return Race(race(ready, rounds=scene.sizes.rounds, warmup=0, synchronize=scene.synchronize), gaps)


def first_line(error: Exception) -> str:
    """The beginning of what an error says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['nothing'])[0][:120]}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What can be asked for by name. profiled: the step of memtok that `--profile` looks into."""

    title: str
    run: Callable[[Scene], RowResult]
    profiled: Callable[[Scene], Run] | None = None


def listed(values: Sequence[str]) -> str:
    """a, b and c."""
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} and {values[-1]}"
