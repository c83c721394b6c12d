"""What many runs do, on the console: one bar for all of them, or lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from memtok.display import counted, percent
from memtok.meter import Meter, print_line
from memtok.runs import Listener, cost
from memtok.training.progress import Progress, RunInfo


class RunsDisplay(Listener):
    """A bar with the time left, the best so far, the pass and images per second; lines where there is no terminal.

    what: a word for the work.
    """

    def __init__(self, what: str, console: Console | None = None) -> None:
        self.what, self.console = what, console or Console(stderr=True)
        self.meter: Meter | None = None
        self.best = self.running = self.speed = ""

    def amount(self, runs: Sequence[Any], steps: int) -> float:
        """What so many steps of these take that train together, as `left` counts it."""
        return cost(len(runs), steps)

    def told(self, text: str) -> None:
        """What a training tells its user."""
        self.message(text)

    def message(self, text: str) -> None:
        """Prints a line."""
        if self.meter is None:
            print_line(self.console, text)
        else:
            self.meter.say(text)

    def left(self, amount: float) -> None:
        if self.meter is None:
            self.meter = Meter(self.console, self.what, amount, counted=False) if amount else None
            return
        self.meter.move(self.so_far, self.so_far + amount)
        if not amount:
            self.close()
        elif not self.console.is_terminal and (left := self.time_left()):
            self.message(left)

    def training(self, runs: Sequence[Any], start: int, until: int) -> Progress:
        self.running = f"{counted(len(runs), 'configuration')}, steps {start + 1:,} to {until:,}"
        if not self.console.is_terminal:
            self.message(self.running)
        self.show()
        return _Steps(self, runs, start)

    def time_left(self) -> str:
        """About how long the rest takes; empty where that is not known."""
        return "" if self.meter is None else "".join(self.meter.time_left())

    @property
    def so_far(self) -> float:
        """How much of what was left is done."""
        return 0.0 if self.meter is None else self.meter.done

    def show(self, done: float | None = None) -> None:
        """Shows the figures beside the bar, which moves to `done` of what was left."""
        if self.meter is not None:
            if done is not None:
                self.meter.tick()  # of the step before
            figures = self.best, self.running, self.speed
            self.meter.move(self.meter.done if done is None else done, figures=figures)

    def close(self) -> None:
        if self.meter is not None:
            self.meter.close()
        self.meter = None


class _Steps(Progress):
    """The steps of one pass, as a part of all the work."""

    def __init__(self, display: RunsDisplay, runs: Sequence[Any], start: int) -> None:
        self.display, self.runs, self.begin = display, runs, start
        self.before = display.so_far

    def message(self, text: str) -> None:
        self.display.told(text)

    def caching(self, what: str, done: int, total: int) -> None:
        self.display.speed = f"{what} {percent(done / total, 0)}"
        self.display.show(self.display.so_far)

    def start(self, info: RunInfo) -> None:
        self.step(info.start_step)

    def step(self, step: int) -> None:
        self.display.show(self.before + self.display.amount(self.runs, step - self.begin))

    def validating(self, done: int, total: int) -> None:
        self.display.speed = f"validating {percent(done / total, 0)}"
        self.display.show(self.display.so_far)

    def log(self, row: Mapping[str, Any]) -> None:
        self.display.speed = f"{row['images_per_second']:,.0f} images/s"
        self.step(row["step"])
