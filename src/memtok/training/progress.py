"""How a run tells what it is doing: an object with hooks. `Progress` is silent, `RichProgress` draws a bar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from memtok.meter import Meter, print_line
from memtok.training.settings import GRADIENT


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What is known before the first step. Counts are numbers of parameters, images or steps."""

    name: str
    regime: str
    classes: int
    trainable_parameters: int
    total_parameters: int
    train_images: int
    validation_images: int
    steps: int
    start_step: int
    epochs: float
    batch_size: int
    learning_rate: float
    recipe: str
    solver: str
    augment: str
    device: str
    precision: str
    out: Path | None

    def lines(self) -> list[str]:
        """The same for people."""
        share = 100 * self.trainable_parameters / self.total_parameters
        how = (
            f"{self.steps:,} steps of {self.batch_size} ({self.epochs:.3g} epochs), recipe {self.recipe}, learning "
            f"rate {self.learning_rate:g}"
        )
        if self.solver != GRADIENT:
            how = f"{self.epochs:.0f} {'view' if self.epochs == 1 else 'views'} of each, solver {self.solver}"
        lines = [
            f"{self.name}: regime {self.regime}, {self.classes} classes, training {self.trainable_parameters:,} of "
            f"{self.total_parameters:,} parameters ({share:.3g} %)",
            f"{self.train_images:,} images, {how}, augmentation {self.augment}; validation on "
            f"{self.validation_images:,} images; {self.device}, {self.precision}",
        ]
        if self.start_step:
            lines.append(f"going on after step {self.start_step:,}")
        return lines


class Progress:
    """Says nothing. Override what you want to hear; hooks are called in the first process only."""

    def reading(self, done: int, total: int) -> None:
        """So many files of a folder were looked at."""

    def message(self, text: str) -> None:
        """Something that the user should know."""

    def caching(self, what: str, done: int, total: int) -> None:
        """So many traces are checked, or computed and cached, or images are looked at; `what` says which."""

    def start(self, info: RunInfo) -> None:
        """The run begins, or goes on."""

    def step(self, step: int) -> None:
        """`step` steps are done. Called after each one, so it must be cheap."""

    def log(self, row: Mapping[str, Any]) -> None:
        """A line of metrics: step, epoch, loss, learning_rate, gradient_norm, images_per_second, seconds."""

    def validating(self, done: int, total: int) -> None:
        """So many of the validation images are looked at."""

    def validation(self, row: Mapping[str, Any], best: bool) -> None:
        """step, epoch, validation_top1, validation_top5, validation_balanced, validation_loss.

        best: whether the number that the best state is chosen by got better than in every validation before.
        """

    def close(self) -> None:
        """The run ended, well or not. Called once."""


class RichProgress(Progress):
    """A bar with the time left, the last validation accuracy, loss, images per second and rate, as far as they fit.

    Where the output is no terminal it prints a line at each validation instead, and in between a line now and then.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.meter: Meter | None = None
        self.accuracy = ""
        self.figures: tuple[str, ...] = ()

    def reading(self, done: int, total: int) -> None:
        if self.meter is None:
            self.meter = Meter(self.console, "looking at files")
        self.meter.move(done, total)
        self.meter.tick()
        if done >= total:
            self.close()

    def message(self, text: str) -> None:
        if self.meter is None:
            print_line(self.console, text)
        else:
            self.meter.say(text)

    def caching(self, what: str, done: int, total: int) -> None:
        if self.meter is None:
            self.meter = Meter(self.console, what, total)
        seconds = self.meter.clock() - self.meter.begun
        self.meter.move(done, figures=(f"{done / seconds:,.0f} images/s",) if seconds > 0 else ())
        self.meter.tick()
        if done >= total:
            self.close()

    def start(self, info: RunInfo) -> None:
        self.close()
        for text in info.lines():
            self.message(text)
        if info.solver == GRADIENT:  # else the pass over the images has a bar of its own
            self.meter = Meter(self.console, "training", info.steps, info.start_step)

    def step(self, step: int) -> None:
        if self.meter is not None:
            self.meter.tick()  # of the step before, after its line of validation if it has one
            self.meter.move(step)

    def log(self, row: Mapping[str, Any]) -> None:
        loss, rate = f"loss {row['loss']:.3f}", f"rate {row['learning_rate']:.1e}"
        self.figures = (loss, f"{row['images_per_second']:,.0f} images/s", rate)
        self._show()

    def validating(self, done: int, total: int) -> None:
        if self.meter is not None:
            self.meter.move(self.meter.done, figures=(f"validating {100 * done / total:.0f} %", *self.figures))
            self.meter.tick()

    def validation(self, row: Mapping[str, Any], best: bool) -> None:
        top1, balanced = (f"{100 * row[f'validation_{name}']:.1f} %" for name in ("top1", "balanced"))
        self.accuracy = f"validation {top1}" if top1 == balanced else f"validation {top1}, balanced {balanced}"
        self._show()
        if not self.console.is_terminal:
            self.message(f"step {row['step']:,}: {self.accuracy}{', the best so far' if best else ''}")

    def close(self) -> None:
        if self.meter is not None:
            self.meter.close()
        self.meter = None

    def _show(self) -> None:
        """The figures beside the bar."""
        if self.meter is not None:
            self.meter.move(self.meter.done, figures=(self.accuracy, *self.figures))
