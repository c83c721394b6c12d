"""The result of predicting: class names and probabilities of every task for every image. Without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memtok.data.images import LeftOut
from memtok.files import csv_text, write_csv


@dataclass(frozen=True)
class Prediction:
    """The prediction of one task for one image: (class name, probability), the most likely class first.

    path: of the image; of one that was given as an object its place, `images[3]`. unknown: whether the probability of
    the most likely class is below the threshold `unknown_below`.
    """

    path: str
    task: str
    ranking: tuple[tuple[str, float], ...]
    unknown: bool = False

    @property
    def answer(self) -> str | None:
        """The most likely class; None if the image is unknown to the task."""
        return None if self.unknown else self.ranking[0][0]


@dataclass(frozen=True)
class Predictions:
    """Rows in the order of the images, for each image the tasks in their order.

    left_out: what could not be read, (path, reason) each; skipped: the paths alone. unknown_below: the
    threshold of each task by name; empty without thresholds.
    """

    rows: tuple[Prediction, ...]
    left_out: tuple[LeftOut, ...] = ()
    unknown_below: dict[str, float] = field(default_factory=dict)

    @property
    def skipped(self) -> tuple[str, ...]:
        """The paths of what could not be read."""
        return tuple(one.path for one in self.left_out)

    def to_json(self) -> dict[str, Any]:
        """{"images": [{"path", "tasks": {NAME: [{"class", "probability"}]}, "answers": {NAME: class or null}}],
        "skipped": [path], "left_out": [{"path", "reason"}], "unknown_below": {NAME: probability}}.
        """
        images: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            image = images.setdefault(row.path, {"path": row.path, "tasks": {}, "answers": {}})
            image["tasks"][row.task] = [{"class": name, "probability": value} for name, value in row.ranking]
            image["answers"][row.task] = row.answer
        return {
            "images": list(images.values()),
            "skipped": list(self.skipped),
            "left_out": [one._asdict() for one in self.left_out],
            "unknown_below": self.unknown_below,
        }

    def write_csv(self, path: str | Path) -> None:
        """One row per image, task and rank: image, task, rank (from 1), class, probability.

        With thresholds, also unknown: true or false.
        """
        extra = bool(self.unknown_below)
        rows: list[list[object]] = [["image", "task", "rank", "class", "probability", *(["unknown"] if extra else [])]]
        for row in self.rows:
            for rank, (name, probability) in enumerate(row.ranking, start=1):
                unknown = [str(row.unknown).lower()] if extra else []
                rows.append([row.path, row.task, rank, name, f"{probability:.6f}", *unknown])
        write_csv(path, csv_text(rows))
