"""Progress and results of the quickstart on the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console

from memtok.display import percent, text_table
from memtok.meter import Meter, print_line
from memtok.quickstart.result import QuickstartResult, TrainedRun
from memtok.quickstart.words import comparison_table, comparison_words, next_commands, verification_words

if TYPE_CHECKING:
    from memtok.backbone import Backbone
    from memtok.data import DataSource
    from memtok.verification import VerifyReport


class Listener:
    """Receives the events of a quickstart and ignores them; override the methods of interest."""

    def start(self, backbone: Backbone, data: DataSource, steps: int) -> None:
        """It starts, with `steps` training steps in total."""

    def doing(self, what: str) -> None:
        """A new stage, described by `what`."""

    def advance(self, steps: int = 1) -> None:
        """`steps` more training steps are done."""

    def measured(self, run: TrainedRun) -> None:
        """A task is trained and measured."""

    def verified(self, report: VerifyReport) -> None:
        """The composed model was checked."""

    def finish(self, result: QuickstartResult) -> None:
        """All files are written."""

    def close(self) -> None:
        """It ended, with or without an error. Called once."""


class RichListener(Listener):
    """A progress bar with the time left on standard error, results on standard output.

    If standard error is no terminal, a line is printed for each stage instead.
    """

    def __init__(self) -> None:
        self.errors = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self.meter: Meter | None = None

    def start(self, backbone: Backbone, data: DataSource, steps: int) -> None:
        height, width = backbone.preprocessing.image_size
        print(
            f"backbone {backbone.source!r}: {backbone.depth} layers, {height}x{width} px, trained on Fashion-MNIST, "
            f"frozen\ndata {data.spec!r}: {len(data.train):,} real handwritten digits to train on, "
            f"{len(data.test):,} to test on"
        )
        self.meter = Meter(self.errors, "quickstart", steps, counted=False, transient=True)

    def doing(self, what: str) -> None:
        if self.meter is not None:
            self.meter.move(self.meter.done, figures=[what])
        if not self.errors.is_terminal:
            print_line(self.errors, f"{what} ...")

    def advance(self, steps: int = 1) -> None:
        if self.meter is not None:
            self.meter.move(self.meter.done + steps)
            self.meter.tick()

    def measured(self, run: TrainedRun) -> None:
        composed = "" if run.composed_top1 is None else f", {percent(run.composed_top1, 1)} beside the other task"
        self.say(f"{run.label}: {percent(run.test_top1, 1)} of {run.test_images} test images{composed}")

    def verified(self, report: VerifyReport) -> None:
        self.say(verification_words(report.to_json()))

    def finish(self, result: QuickstartResult) -> None:
        self.close()
        print(f"\nSix regimes on all ten digits, {result.settings.steps} steps of {result.settings.batch_size} each:")
        print(text_table(*comparison_table(result)))
        print(comparison_words(result.comparison))
        print("\nThree of the images, both tasks and the backbone's own answer in one pass:")
        some = result.predictions[:: max(1, len(result.predictions) // 3)][:3]
        rows = [[image.file, *(f"{name} {percent(p, 1)}" for name, p in image.answers.values())] for image in some]
        print(text_table(["image", *some[0].answers], rows))
        print(
            f"\nOpen {result.out / 'report.html'} for the pictures; the numbers are in {result.out / 'results.json'}."
        )
        print(f"It took {result.seconds:.0f} seconds.")
        for words, lines in next_commands(result.out):
            print(f"\n{words}", *(f"  {line}" for line in lines), sep="\n")

    def say(self, text: str) -> None:
        """Prints a line of result above the bar."""
        if self.meter is not None and self.errors.is_terminal and sys.stdout.isatty():
            self.errors.print(text, soft_wrap=True)  # printed by the console of the bar, which keeps it below
        else:
            print(text)

    def close(self) -> None:
        if self.meter is not None:
            self.meter.close()
            self.meter = None
