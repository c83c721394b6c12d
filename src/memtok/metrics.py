"""Accuracy of predictions: top-1, top-5, balanced accuracy, recall per class and the confusion matrix.

Letters for shapes: B images of a batch, N of all, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memtok.errors import MemtokError

NO_ANSWER = -1  # the prediction if a logit is not finite
MOST_IN_JSON = 100  # classes of a confusion matrix that `Score.to_json` writes out
MOST_NAMED = 5  # classes in a warning


def ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) int64: how many classes rank above the label, 0 if it is the prediction; (B, C) logits, (B,) labels.

    Of equal logits the first class ranks higher, as in argmax. If a logit is not finite, the rank is C: the prediction
    is wrong.
    """
    right = logits.gather(1, labels.unsqueeze(1))  # (B, 1)
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels.unsqueeze(1)  # (B, C)
    before = (logits > right) | ((logits == right) & earlier)
    rank = before.sum(dim=1)
    return torch.where(logits.isfinite().all(dim=1), rank, logits.shape[1])


def answered(logits: Tensor, labels: Tensor) -> Tensor:
    """(3, B) int64: labels, predictions and `ranks` of (B, C) logits and (B,) labels, without waiting for the device.

    The prediction is the first class with the highest logit; `NO_ANSWER` if a logit is not finite.
    """
    answers = torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), NO_ANSWER)
    return torch.stack([labels, answers, ranks(logits, labels)])


@dataclass(frozen=True)
class ClassScore:
    """One row of the per-class table. top1 (the recall) and top5 are in [0, 1], None for a class without images."""

    name: str
    images: int
    top1: float | None
    top5: float | None


@dataclass(frozen=True)
class Score:
    """Accuracy of one set of predictions.

    top1, top5: shares in [0, 1] of the images whose class is the prediction, or among the first five. With fewer than
    six classes top5 is 1 (except for logits that are not finite). images: how many.
    balanced: the mean recall of the classes that have images; if all have as many images, it is top1. confusions:
    (class, prediction, images) of all pairs that occur, by index; the prediction is `NO_ANSWER` if a logit is not
    finite.
    """

    top1: float
    top5: float
    images: int
    balanced: float
    per_class: tuple[ClassScore, ...]
    confusions: tuple[tuple[int, int, int], ...]

    def __iter__(self) -> Iterator[tuple[str, float]]:
        """(name, value) pairs of what a table or a log shows."""
        yield "top1", self.top1
        yield "top5", self.top5
        yield "images", self.images
        yield "balanced", self.balanced

    @property
    def recall(self) -> dict[str, float | None]:
        """{class: share in [0, 1] of its images that are classified correctly}, None for a class without images."""
        return {row.name: row.top1 for row in self.per_class}

    def confusion(self) -> NDArray[np.int64]:
        """(C, C): how many images of class i (row) are predicted as class j (column), without `NO_ANSWER`."""
        counts = np.zeros((len(self.per_class), len(self.per_class)), dtype=np.int64)
        for label, answer, images in self.confusions:
            if answer != NO_ANSWER:
                counts[label, answer] = images
        return counts

    def to_json(self) -> dict[str, Any]:
        """The pairs of `__iter__`, "recall" and "confusion", the latter None for more than `MOST_IN_JSON` classes."""
        whole = len(self.per_class) <= MOST_IN_JSON
        return {**dict(self), "recall": self.recall, "confusion": self.confusion().tolist() if whole else None}

    def warnings(self) -> list[str]:
        """Warnings of a model that predicts one class only, and of classes that are never predicted correctly."""
        seen = [row for row in self.per_class if row.images]
        found = []
        given = {answer for _, answer, _ in self.confusions}
        if len(seen) > 1 and len(given) == 1 and NO_ANSWER not in given:
            (only,) = given
            found.append(f"all {self.images:,} images are predicted as {self.per_class[only].name!r}")
        missed = [row for row in seen if not row.top1]
        if missed:
            named = ", ".join(f"{row.name!r} (0 of {row.images:,})" for row in missed[:MOST_NAMED])
            more = f" and {len(missed) - MOST_NAMED:,} more" if len(missed) > MOST_NAMED else ""
            found.append(f"recall is 0 for {len(missed):,} of {len(seen):,} classes: {named}{more}")
        return found


def score_of(classes: Sequence[str], answers: Tensor) -> Score:
    """The score of (3, N) predictions as `answered` returns them; MemtokError if there was no image."""
    if not answers.numel():
        raise MemtokError("expected at least one image to evaluate, found none; name a data set with images")
    labels, given, rank = answers.to("cpu", torch.int64)
    count, total = len(classes), len(labels)
    images = labels.bincount(minlength=count).tolist()
    right = labels[rank < 1].bincount(minlength=count).tolist()
    five = labels[rank < min(5, count)].bincount(minlength=count).tolist()
    pairs, often = (labels * (count + 1) + given + 1).unique(return_counts=True)
    per_class = tuple(
        ClassScore(name, seen, first / seen if seen else None, within / seen if seen else None)
        for name, seen, first, within in zip(classes, images, right, five, strict=True)
    )
    return Score(
        top1=sum(right) / total,
        top5=sum(five) / total,
        images=total,
        balanced=balanced_accuracy(images, right),
        per_class=per_class,
        confusions=tuple(
            (pair // (count + 1), pair % (count + 1) - 1, number)
            for pair, number in zip(pairs.tolist(), often.tolist(), strict=True)
        ),
    )


def balanced_accuracy(images: Sequence[int], right: Sequence[int]) -> float:
    """The mean of the recalls of the classes that have images, from (C,) images and correct predictions.

    Computed with fractions: with as many images of each class it is exactly the top-1.
    """
    recalls = [Fraction(first, seen) for seen, first in zip(images, right, strict=True) if seen]
    return float(sum(recalls) / len(recalls))


class Tally:
    """Accumulates batches of predictions. They stay on the device of the logits until `score` is called."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.answers: list[Tensor] = []  # (3, B) each

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Takes (B, C) logits and (B,) labels in 0 ... C - 1; MemtokError if they do not fit the classes."""
        count = len(self.classes)
        if logits.ndim != 2 or logits.shape[1] != count or labels.shape != logits.shape[:1]:
            raise MemtokError(
                f"expected logits (batch, {count}) and labels (batch,), found {tuple(logits.shape)} and "
                f"{tuple(labels.shape)}; give the logits of one task",
                argument="logits",
            )
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= count):
            raise MemtokError(
                f"expected labels of 0 to {count - 1}, found {int(labels.min())} to {int(labels.max())}; "
                "number the classes as the task does",
                argument="labels",
            )
        self.answers.append(answered(logits.detach(), labels.to(logits.device)))

    def score(self) -> Score:
        """The accuracy so far; MemtokError if there was no image."""
        return score_of(self.classes, torch.cat(self.answers, dim=1) if self.answers else torch.empty(3, 0))
