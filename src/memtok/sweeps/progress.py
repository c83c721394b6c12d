"""How a sweep tells what it is doing: a listener with hooks, and one that draws a bar or prints lines."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from memtok.sweeps.result import counted
from memtok.sweeps.space import Configuration
from memtok.sweeps.trials import Trial
from memtok.traces.sizes import shown_bytes
from memtok.training.progress import Progress, RichProgress, RunInfo


class SweepListener:
    """Says nothing. Override what you want to hear."""

    def reading(self, done: int, total: int) -> None:
        """So many files of a folder were looked at."""

    def message(self, text: str) -> None:
        """Something that the user should know."""

    def planned(self, data: str, passes: Sequence[int], need: int, limit: int, rungs: Sequence[int]) -> None:
        """These many configurations are in the passes to come over a data set.

        need: bytes of the largest pass, of `limit`. rungs: steps after which the worse ones stop.
        """

    def left(self, amount: float) -> None:
        """What is left to train on this data set, in steps of one configuration and of the trunk; near enough."""

    def training(self, configurations: Sequence[Configuration], start: int, until: int) -> Progress:
        """A pass begins, from one step to another; returns who listens to its steps."""
        return Progress()

    def validated(self, data: str, trials: Sequence[Trial], best: Trial | None) -> None:
        """A pass is over; best: of all that finished or were looked at so far."""

    def tested(self, data: str, trial: Trial, top1: float, images: int) -> None:
        """The winner was measured on the test part."""

    def close(self) -> None:
        """The sweep ended, well or not. Called once."""


def cost(configurations: float, steps: int) -> float:
    """What a pass takes, in passes of a batch through the trunk; near enough to tell the time left."""
    return steps * (1 + 0.1 * configurations) if configurations else 0.0


class RichSweepListener(SweepListener):
    """A bar with the pass, images per second, the best so far and the time left; lines where there is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.reader = RichProgress(self.console)
        self.bar: Bar | None = None
        self.row: TaskID | None = None
        self.amount = self.done = 0.0
        self.begun = time.perf_counter()
        self.best = ""

    def reading(self, done: int, total: int) -> None:
        self.reader.reading(done, total)

    def message(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)  # a name such as folder:two is no emoji

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
        self.amount, self.done, self.begun = amount, 0.0, time.perf_counter()
        if amount and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[figures]}", markup=False),
                TextColumn("{task.fields[best]}", markup=False),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self.bar = Bar(*columns, console=self.console)
            self.row = self.bar.add_task("sweep", total=amount, figures="", best=self.best)
            self.bar.start()

    def training(self, configurations: Sequence[Configuration], start: int, until: int) -> Progress:
        text = f"{counted(len(configurations), 'configuration')}, steps {start + 1:,} to {until:,}"
        if self.bar is not None and self.row is not None:
            self.bar.update(self.row, description=text)
        else:
            self.message(text)
        return _Steps(self, len(configurations), start)

    def advanced(self, amount: float, figures: str | None = None) -> None:
        """Moves the bar to `amount` of what was left."""
        self.done = amount
        if self.bar is not None and self.row is not None:
            changed: dict[str, Any] = {} if figures is None else {"figures": figures}
            self.bar.update(self.row, completed=amount, **changed)

    def validated(self, data: str, trials: Sequence[Trial], best: Trial | None) -> None:
        if best is not None and best.last is not None:
            self.best = f"best {100 * best.last.top1:.1f} % ({best.configuration.name})"
        if self.bar is not None and self.row is not None:
            self.bar.update(self.row, best=self.best)
        else:
            self.message(f"{data}: {self.best or 'all diverged so far'}{self._time_left()}")

    def tested(self, data: str, trial: Trial, top1: float, images: int) -> None:
        self.message(f"{data}: {trial.configuration.name} has {100 * top1:.1f} % on the test part ({images:,} images)")

    def close(self) -> None:
        self.reader.close()
        if self.bar is not None:
            self.bar.stop()
        self.bar = self.row = None

    def _time_left(self) -> str:
        spent = time.perf_counter() - self.begun
        if not 0 < self.done < self.amount:
            return ""
        seconds = spent * (self.amount - self.done) / self.done
        return f"; about {seconds / 60:,.0f} min left" if seconds >= 90 else f"; about {seconds:.0f} s left"


class _Steps(Progress):
    """The steps of one pass, as a part of the whole sweep."""

    def __init__(self, listener: RichSweepListener, configurations: int, start: int) -> None:
        self.listener, self.configurations, self.begin = listener, configurations, start
        self.before = listener.done

    def message(self, text: str) -> None:
        self.listener.message(text)

    def start(self, info: RunInfo) -> None:
        self.step(info.start_step)

    def step(self, step: int) -> None:
        self.listener.advanced(self.before + cost(self.configurations, step - self.begin))

    def log(self, row: Mapping[str, Any]) -> None:
        figures = f"{row['images_per_second']:,.0f} images/s"
        self.listener.advanced(self.before + cost(self.configurations, row["step"] - self.begin), figures)
