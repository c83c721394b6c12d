"""How the quickstart tells what it is doing and what it found."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from memtok.meter import Meter, print_line
from memtok.quickstart.result import QuickstartResult, TrainedRun
from memtok.quickstart.words import base_words, comparison_words, next_commands, verification_words
from memtok.report import percent, size

if TYPE_CHECKING:
    from memtok.backbone import Backbone
    from memtok.data import DataSource
    from memtok.verification import VerifyReport


PIPED_WIDTH = 1000  # a pipe has no edge at which to cut tables


class Listener:
    """Says nothing. Override what you want to hear."""

    def start(self, backbone: Backbone, data: DataSource, steps: int) -> None:
        """It begins; `steps` training steps in all are ahead."""

    def doing(self, what: str) -> None:
        """What happens from now on."""

    def advance(self, steps: int = 1) -> None:
        """So many more training steps are done."""

    def measured(self, run: TrainedRun) -> None:
        """A task is trained and measured."""

    def verified(self, report: VerifyReport) -> None:
        """The composed model was checked."""

    def finish(self, result: QuickstartResult) -> None:
        """All is written."""

    def close(self) -> None:
        """It ended, well or not. Called once."""


class RichListener(Listener):
    """A bar with the time left on standard error, results on standard output.

    Where standard error is no terminal, a line is printed instead of the bar whenever something else begins.
    """

    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else PIPED_WIDTH
        self.console = Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.errors = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self.meter: Meter | None = None

    def start(self, backbone: Backbone, data: DataSource, steps: int) -> None:
        height, width = backbone.preprocessing.image_size
        self.console.print(
            f"backbone {backbone.source!r}: {backbone.depth} layers, {height}x{width} px, trained on Fashion-MNIST; it "
            f"stays as it is\ndata {data.spec!r}: {len(data.train):,} real handwritten digits to train on, "
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
        composed = "" if run.composed_top1 is None else f", {percent(run.composed_top1)} beside the other task"
        self.say(f"{run.label}: {percent(run.test_top1)} of {run.test_images} test images{composed}")

    def verified(self, report: VerifyReport) -> None:
        self.say(verification_words(report.to_json()))

    def finish(self, result: QuickstartResult) -> None:
        self.close()
        show = self.console.print
        show(f"\nFive regimes on all ten digits, {result.settings.steps} steps of {result.settings.batch_size} each:")
        columns = ["regime", "test top-1", "trained", "file", "base answer"]
        rows = [
            [run.label, percent(run.test_top1), f"{run.trainable_parameters:,}", size(run.bytes), base_words(run)]
            for run in result.comparison
        ]
        show(drawn(columns, rows, right=columns[1:4]))
        show(comparison_words(result.comparison))
        show("\nThree of the images, both tasks and the backbone's own answer in one pass:")
        rows = [
            [image.file, *(f"{name} {percent(sure)}" for name, sure in image.answers.values())]
            for image in result.predictions[:: max(1, len(result.predictions) // 3)][:3]
        ]
        show(drawn(["image", *next(iter(result.predictions)).answers], rows))
        show(f"\nOpen {result.out / 'report.html'} for the pictures; the numbers are in {result.out / 'results.json'}.")
        show(f"It took {result.seconds:.0f} seconds.")
        for title, lines in next_commands(result.out):
            show(f"\n{title}")
            for line in lines:
                show(f"  {line}")

    def say(self, text: str) -> None:
        """A line of result while the bar stands below it."""
        if self.meter is not None and self.errors.is_terminal and self.console.is_terminal:
            self.errors.print(text, soft_wrap=True)  # a bar must know what is printed above it
        else:
            self.console.print(text)

    def close(self) -> None:
        if self.meter is not None:
            self.meter.close()
            self.meter = None


def drawn(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> Table:
    """A table without lines; the columns named in `right` hold numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(Text(name), justify="right" if name in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
