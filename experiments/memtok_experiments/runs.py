"""The runs of a grid: what one is, what it costs, and who is told of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from memtok.training.progress import Progress
from memtok_experiments.columns import Column
from memtok_experiments.records import RunRecord


@dataclass(frozen=True)
class Run:
    """One cell of the grid at one rate with one seed."""

    column: Column
    rate: float
    seed: int

    def __str__(self) -> str:
        return f"{self.column.name}, rate {self.rate:g}, seed {self.seed}"


def cost(runs: Sequence[Run], together: int) -> float:
    """What training these takes, in passes of a data set through the trunk; near enough to tell the time left."""
    shared = sum(run.column.composable for run in runs)
    return math.ceil(shared / together) + 0.15 * shared + 2.5 * (len(runs) - shared)


class Listener:
    """What a grid tells while it works. Silent; override what you want to hear."""

    def left(self, amount: float) -> None:
        """What is left to train, in units of `cost`. Called before the first run and after each training."""

    def done(self, data: str, runs: Sequence[Run], records: Sequence[RunRecord]) -> None:
        """These were trained (together)."""

    def chosen(self, data: str, column: Column, rate: float) -> None:
        """This rate is taken for a column."""

    def tested(self, data: str, runs: Sequence[Run], records: Sequence[RunRecord]) -> None:
        """These were tested."""

    def training(self) -> Progress:
        """Who listens to the steps of the next training."""
        return Progress()
