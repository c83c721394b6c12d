"""What the experiments print while they work, on standard error."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from memtok.cli.output import note
from memtok.display import duration

if TYPE_CHECKING:
    from memtok.training import Progress


class TimeLeft:
    """Notes how long the rest takes, from how long the work took so far."""

    def __init__(self) -> None:
        self.begun: tuple[float, float] | None = None  # the time of the first report, and the amount left then

    def note(self, amount: float) -> None:
        """amount: what is left, in any unit."""
        now = time.perf_counter()
        if self.begun is None or amount > self.begun[1]:
            self.begun = now, amount
        spent, done = now - self.begun[0], self.begun[1] - amount
        if amount and done > 0:
            note(f"about {duration(spent * amount / done)} left for training")


def steps_shown() -> Progress:
    """The progress of a training, without the lines that describe it."""
    from memtok.training import RichProgress

    class Steps(RichProgress):
        """Steps alone."""

        def message(self, text: str) -> None:
            pass

    return Steps()
