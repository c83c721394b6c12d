"""How a sweep tells what it is doing: a listener with hooks, and one that draws a bar or prints lines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from memtok.display import counted, percent, shown_bytes
from memtok.runs import Listener
from memtok.runs_display import RunsDisplay
from memtok.sweeps.trials import Trial
from memtok.training.progress import RichProgress


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


class RichSweepListener(RunsDisplay, SweepListener):
    """A bar with the time left, the best so far, the pass and images per second; lines where there is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__("sweep", console)
        self.reader = RichProgress(self.console)

    def reading(self, done: int, total: int) -> None:
        self.reader.reading(done, total)

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
        self.close()  # a data set, or a batch of a search, is over
        super().left(amount)

    def validated(self, data: str, trials: Sequence[Trial], best: Trial | None) -> None:
        if best is not None and best.last is not None:
            self.best = f"best {percent(best.last.top1, 1)} ({best.configuration.name})"
        self.show()
        if not self.console.is_terminal:
            self.message("; ".join(filter(None, (f"{data}: {self.best or 'all diverged so far'}", self.time_left()))))

    def tested(self, data: str, trial: Trial, top1: float, images: int) -> None:
        self.message(f"{data}: {trial.configuration.name} has {percent(top1, 1)} on the test part ({images:,} images)")

    def close(self) -> None:
        self.reader.close()
        super().close()
