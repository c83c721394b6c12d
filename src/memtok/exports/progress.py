"""How an export tells what it is doing: a listener with hooks, and one that draws a bar or prints lines."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from memtok.meter import Meter
from memtok.training.progress import RichProgress

TRACING, CONVERTING, WRITING, COMPARING = "tracing", "converting to ONNX", "writing", "comparing with PyTorch"
SMALLER = {"float16": "rounding to float16", "int8": "quantising"}  # by weights

Begin = Callable[[str], None]
"""Called with the name of each stage as it begins."""


class ExportListener:
    """Says nothing. Override what you want to hear."""

    def reading(self, done: int, total: int) -> None:
        """So many files of a folder were looked at, where the images to compare on are in one."""

    def stage(self, name: str, number: int, count: int) -> None:
        """A stage begins, such as "tracing": the `number`-th of `count`, from 1 on."""

    def comparing(self, done: int, total: int) -> None:
        """So many images were compared with PyTorch, in the last stage."""

    def close(self) -> None:
        """The export ended, well or not. Called once."""


class RichExportListener(ExportListener):
    """The stage beside a moving bar, with a count of the images compared; where there is no terminal a line per stage.

    How long a stage takes is not known before, so only the comparison has a time left.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.reader = RichProgress(self.console)
        self.meter: Meter | None = None

    def reading(self, done: int, total: int) -> None:
        self.reader.reading(done, total)

    def stage(self, name: str, number: int, count: int) -> None:
        self.close()
        self.meter = Meter(self.console, name, transient=True)
        which = f"stage {number} of {count}"
        if self.console.is_terminal:
            self.meter.move(0, figures=(which,))
        else:
            self.meter.say(f"{which}: {name}")

    def comparing(self, done: int, total: int) -> None:
        if self.meter is not None:
            self.meter.move(done, total)
            self.meter.tick()

    def close(self) -> None:
        self.reader.close()
        if self.meter is not None:
            self.meter.close()
        self.meter = None


def listener_of(progress: bool | ExportListener) -> ExportListener:
    """The object whose hooks are called: the caller's own, a bar for True, a silent one for False."""
    if isinstance(progress, ExportListener):
        return progress
    return RichExportListener() if progress else ExportListener()


def stages(form: str, weights: str) -> tuple[str, ...]:
    """The stages of an export, in order."""
    converted = (CONVERTING, *([SMALLER[weights]] if weights in SMALLER else [])) if form == "onnx" else ()
    return TRACING, *converted, WRITING, COMPARING
