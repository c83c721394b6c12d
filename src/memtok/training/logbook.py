"""Metrics of a run: one JSON line per entry, and the same for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from memtok.files import write_text
from memtok.training.state import RunFolder

Row = dict[str, Any]
"""step and epoch, with loss, learning_rate, gradient_norm and images_per_second (means since the row before), or with
validation_top1, validation_top5, validation_balanced, validation_loss and validation_images;
seconds since the start."""


class Logbook:
    """Appends rows to metrics.jsonl and to TensorBoard's event file.

    `history`: the rows up to the step at which a run is resumed. Both files are written anew from it, so that what a
    killed run wrote after its last saved state does not stand there twice.
    """

    def __init__(self, folder: RunFolder, history: Sequence[Row]) -> None:
        write_text(folder.metrics, "".join(line(row) for row in history))
        for events in folder.tensorboard.glob("events.out.tfevents.*"):
            events.unlink()
        self.stream = folder.metrics.open("a", encoding="utf-8")
        self.events = SummaryWriter(str(folder.tensorboard))
        for row in history:
            self._scalars(row)

    def write(self, row: Row) -> None:
        """Adds one row to both, at once readable by others."""
        self.stream.write(line(row))
        self.stream.flush()
        self._scalars(row)
        self.events.flush()

    def close(self) -> None:
        """Closes both."""
        self.stream.close()
        self.events.close()

    def _scalars(self, row: Row) -> None:
        for key, value in row.items():
            if key not in ("step", "epoch", "seconds", "validation_images"):
                group = "validation" if key.startswith("validation_") else "train"
                self.events.add_scalar(f"{group}/{key.removeprefix('validation_')}", value, row["step"])


def line(row: Row) -> str:
    """One row as a line of JSON."""
    return json.dumps(row, allow_nan=False) + "\n"
