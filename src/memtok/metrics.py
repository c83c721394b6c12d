"""Counting right answers: top-1, top-5 and per class.

Letters for shapes: B images of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memtok.errors import MemtokError


def ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) int64: how many classes come before the right one, 0 if it is the answer; (B, C) logits, (B,) labels.

    Of equal logits the first class comes first, as in argmax. Where a logit is not finite, the rank is C: an answer
    that cannot be read is never right.
    """
    right = logits.gather(1, labels.unsqueeze(1))  # (B, 1)
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels.unsqueeze(1)  # (B, C)
    before = (logits > right) | ((logits == right) & earlier)
    rank = before.sum(dim=1)
    return torch.where(logits.isfinite().all(dim=1), rank, logits.shape[1])


@dataclass(frozen=True)
class ClassScore:
    """One row of the per-class table. top1 and top5 are in [0, 1], None for a class without images."""

    name: str
    images: int
    top1: float | None
    top5: float | None


@dataclass(frozen=True)
class Score:
    """Accuracy of one set of answers.

    top1, top5: shares in [0, 1] of the images whose class is the answer, or among the first five. With fewer than six
    classes every class is among the first five, so top5 is 1 (but for answers that are not finite). images: how many.
    """

    top1: float
    top5: float
    images: int
    per_class: tuple[ClassScore, ...] = ()

    def __iter__(self) -> Iterator[tuple[str, float]]:
        """(name, value) pairs of what a table or a log shows."""
        yield "top1", self.top1
        yield "top5", self.top5
        yield "images", self.images


class Tally:
    """Adds up batches of answers. The counts stay on the device of the logits until `score` is called."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.counts: Tensor | None = None  # (3, C) int64: images, right, among the first five

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Counts (B, C) logits against (B,) labels in 0 ... C - 1; MemtokError if they do not fit the classes."""
        count = len(self.classes)
        if logits.ndim != 2 or logits.shape[1] != count or labels.shape != logits.shape[:1]:
            raise MemtokError(
                f"expected logits (batch, {count}) and labels (batch,), found {tuple(logits.shape)} and "
                f"{tuple(labels.shape)}; give the logits of one task"
            )
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= count):
            raise MemtokError(
                f"expected labels of 0 to {count - 1}, found {int(labels.min())} to {int(labels.max())}; "
                "number the classes as the task does"
            )
        labels = labels.to(logits.device)
        rank = ranks(logits.detach(), labels)
        found = torch.stack([torch.ones_like(rank), (rank < 1).long(), (rank < min(5, count)).long()])  # (3, B)
        if self.counts is None:
            self.counts = torch.zeros(3, count, dtype=torch.int64, device=logits.device)
        self.counts.index_add_(1, labels, found)

    def score(self) -> Score:
        """The accuracy so far; MemtokError if there was no image."""
        if self.counts is None or not int(self.counts[0].sum()):
            raise MemtokError("expected at least one image to evaluate, found none; name a data set with images")
        images, right, five = self.counts.tolist()
        per_class = tuple(
            ClassScore(name, seen, first / seen if seen else None, within / seen if seen else None)
            for name, seen, first, within in zip(self.classes, images, right, five, strict=True)
        )
        total = sum(images)
        return Score(sum(right) / total, sum(five) / total, total, per_class)
