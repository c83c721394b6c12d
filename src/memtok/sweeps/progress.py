"""How a sweep tells what it is doing: a listener with hooks, and one that draws a bar or prints lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from memtok.display import counted, percent, shown_bytes
from memtok.meter import Meter, print_line
from memtok.runs import Listener, cost
from memtok.sweeps.trials import Trial
from memtok.training.progress import Progress, RichProgress, RunInfo


class SweepListener(Listener):
    """Says nothing. Override what you want to hear."""

    def reading(self, done: int, total: int) -> None:
        """So many files of a folder were looked at."""

    def message(self, text: str) -> None:
        """Something that the user should know."""

    def planned(self, data: str, passes: Sequence[int], need: int, limit: int, rungs: Sequence[int]) -> None:
        """These many configurations are in the passes to come over a data set.

        need: bytes of the largest pass, of `limit`. rungs: steps after which the worse ones stop.
        """

    def validated(self, data: str, trials: Sequence[Trial], best: Trial | None) -> None:
        """A pass is over; best: of all that finished or were looked at so far."""

    def tested(self, data: str, trial: Trial, top1: float, images: int) -> None:
        """The winner was measured on the test part."""

    def close(self) -> None:
        """The sweep ended, well or not. Called once."""


class RichSweepListener(SweepListener):
    """A bar with the time left, the best so far, the pass and images per second; lines where there is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.reader = RichProgress(self.console)
        self.meter: Meter | None = None
        self.best = self.running = self.speed = ""

    def reading(self, done: int, total: int) -> None:
        self.reader.reading(done, total)

    def message(self, text: str) -> None:
        if self.meter is None:
            print_line(self.console, text)
        else:
            self.meter.say(text)

    def planned(self, data: str, passes: Sequence[int], need: int, limit: int, rungs: Sequence[int]) -> None:
        if not passes:
            self.message(f"{data}: all configurations are done")
            return
        several = "1 pass" if len(passes) == 1 else f"{len(passes)} passes ({', '.join(map(str, passes))})"
        text = f"{data}: {counted(sum(passes), 'configuration')} in {several} over the trunk, "
        text += f"about {shown_bytes(need)} of {shown_bytes(limit)} that may be used"
        if rungs:
            text += f"; early stopping after step {', '.join(f'{step:,}' for step in rungs)}"
        self.message(text)

    def left(self, amount: float) -> None:
        self.close()
        if amount:
            self.meter = Meter(self.console, "sweep", amount, counted=False)

    def training(self, configurations: Sequence[Any], start: int, until: int) -> Progress:
        self.running = f"{counted(len(configurations), 'configuration')}, steps {start + 1:,} to {until:,}"
        if not self.console.is_terminal:
            self.message(self.running)
        self.show()
        return _Steps(self, len(configurations), start)

    @property
    def done(self) -> float:
        """How much of what was left is done."""
        return 0.0 if self.meter is None else self.meter.done

    def show(self, done: float | None = None) -> None:
        """Shows the figures beside the bar, which moves to `done` of what was left."""
        if self.meter is not None:
            if done is not None:
                self.meter.tick()  # of the step before
            figures = self.best, self.running, self.speed
            self.meter.move(self.meter.done if done is None else done, figures=figures)

    def validated(self, data: str, trials: Sequence[Trial], best: Trial | None) -> None:
        if best is not None and best.last is not None:
            self.best = f"best {percent(best.last.top1, 1)} ({best.configuration.name})"
        self.show()
        if not self.console.is_terminal:
            left = [] if self.meter is None else self.meter.time_left()
            self.message("; ".join([f"{data}: {self.best or 'all diverged so far'}", *left]))

    def tested(self, data: str, trial: Trial, top1: float, images: int) -> None:
        self.message(f"{data}: {trial.configuration.name} has {percent(top1, 1)} on the test part ({images:,} images)")

    def close(self) -> None:
        self.reader.close()
        if self.meter is not None:
            self.meter.close()
        self.meter = None


class _Steps(Progress):
    """The steps of one pass, as a part of the whole sweep."""

    def __init__(self, listener: RichSweepListener, configurations: int, start: int) -> None:
        self.listener, self.configurations, self.begin = listener, configurations, start
        self.before = listener.done

    def message(self, text: str) -> None:
        self.listener.message(text)

    def caching(self, what: str, done: int, total: int) -> None:
        self.listener.speed = f"{what} {percent(done / total, 0)}"
        self.listener.show(self.listener.done)

    def start(self, info: RunInfo) -> None:
        self.step(info.start_step)

    def step(self, step: int) -> None:
        self.listener.show(self.before + cost(self.configurations, step - self.begin))

    def validating(self, done: int, total: int) -> None:
        self.listener.speed = f"validating {percent(done / total, 0)}"
        self.listener.show(self.listener.done)

    def log(self, row: Mapping[str, Any]) -> None:
        self.listener.speed = f"{row['images_per_second']:,.0f} images/s"
        self.step(row["step"])
