"""What the experiments show while they work, on standard error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memtok.display import percent
from memtok.runs_display import RunsDisplay
from memtok_experiments import runs as grid
from memtok_experiments.beyond import trials as beyond
from memtok_experiments.beyond.records import TrialRecord
from memtok_experiments.records import RunRecord


class Display(RunsDisplay):
    """Without what single trainings tell, of which there are many."""

    def __init__(self) -> None:
        super().__init__("reproduce")

    def told(self, text: str) -> None:
        pass


class GridDisplay(Display, grid.Listener):
    """Of a grid."""

    def amount(self, runs: Sequence[Any], steps: int) -> float:
        return grid.amount(runs, steps)

    def done(self, data: str, runs: Sequence[grid.Run], records: Sequence[RunRecord]) -> None:
        for run, record in zip(runs, records, strict=True):
            what = "diverged" if record.diverged else f"{percent(record.validation.top1)} on the validation part"
            self.message(f"{data}: {run}: {what}, {record.seconds:.0f} s")

    def tested(self, data: str, runs: Sequence[grid.Run], records: Sequence[RunRecord]) -> None:
        for run, record in zip(runs, records, strict=True):
            if record.test is not None:
                self.message(f"{data}: {run}: {percent(record.test.top1)} on {record.test.images:,} test images")


class BeyondDisplay(Display, beyond.Listener):
    """Of `memtok reproduce beyond`."""

    def amount(self, runs: Sequence[Any], steps: int) -> float:
        return beyond.amount(runs, steps)

    def done(self, row: str, trial: beyond.Trial, record: TrialRecord) -> None:
        what = "diverged" if record.diverged else f"{percent(record.validation)} on the validation part"
        self.message(f"{row}: {trial}: {what}, {record.total_seconds:.1f} s")

    def tested(self, row: str, trial: beyond.Trial, top1: float, images: int) -> None:
        self.message(f"{row}: {trial}: {percent(top1)} on {images:,} test images")

    def skipped(self, row: str, reason: str) -> None:
        self.message(f"{row}: left out: {reason}")
