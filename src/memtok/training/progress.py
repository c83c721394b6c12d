"""How a run tells what it is doing: an object with hooks. `Progress` is silent, `RichProgress` draws a bar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text


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
    augment: str
    device: str
    precision: str
    out: Path | None

    def lines(self) -> list[str]:
        """The same for people."""
        share = 100 * self.trainable_parameters / self.total_parameters
        lines = [
            f"{self.name}: regime {self.regime}, {self.classes} classes, training {self.trainable_parameters:,} of "
            f"{self.total_parameters:,} parameters ({share:.3g} %)",
            f"{self.train_images:,} images, {self.steps:,} steps of {self.batch_size} ({self.epochs:.3g} epochs), "
            f"recipe {self.recipe}, learning rate {self.learning_rate:g}, augmentation {self.augment}; validation on "
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

    def start(self, info: RunInfo) -> None:
        """The run begins, or goes on."""

    def step(self, step: int) -> None:
        """`step` steps are done. Called after each one, so it must be cheap."""

    def log(self, row: Mapping[str, Any]) -> None:
        """A line of metrics: step, epoch, loss, learning_rate, gradient_norm, images_per_second, seconds."""

    def validation(self, row: Mapping[str, Any], best: bool) -> None:
        """step, epoch, validation_top1, validation_top5, validation_balanced, validation_loss.

        best: whether the number that the best state is chosen by got better than in every validation before.
        """

    def close(self) -> None:
        """The run ended, well or not. Called once."""


class RichProgress(Progress):
    """A bar with loss, rate, images per second, time left and the last validation accuracy.

    Where the output is no terminal it prints a line at each validation instead.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.bar: Bar | None = None
        self.task: TaskID | None = None

    def reading(self, done: int, total: int) -> None:
        self._show("looking at files", done, total, "")
        if done >= total:
            self.close()

    def message(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)  # a name such as folder:two is no emoji

    def start(self, info: RunInfo) -> None:
        self.close()
        for text in info.lines():
            self.message(text)
        self._show("training", info.start_step, info.steps, "")

    def step(self, step: int) -> None:
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=step)

    def log(self, row: Mapping[str, Any]) -> None:
        text = f"loss {row['loss']:.3f}  rate {row['learning_rate']:.1e}  {row['images_per_second']:,.0f} images/s"
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, figures=text)

    def validation(self, row: Mapping[str, Any], best: bool) -> None:
        top1, balanced = (f"{100 * row[f'validation_{name}']:.1f} %" for name in ("top1", "balanced"))
        accuracy = f"validation {top1}" if top1 == balanced else f"validation {top1}, balanced {balanced}"
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, accuracy=accuracy)
        if not self.console.is_terminal:
            self.message(f"step {row['step']:,}: {accuracy}{', the best so far' if best else ''}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.bar = self.task = None

    def _show(self, what: str, done: int, total: int, figures: str) -> None:
        if self.bar is None:
            self.bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
                TextColumn("{task.fields[accuracy]}", markup=False),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
                disable=not self.console.is_terminal,
            )
            self.task = self.bar.add_task(what, total=total, completed=done, figures=figures, accuracy="")
            self.bar.start()
        elif self.task is not None:
            self.bar.update(self.task, completed=done)
