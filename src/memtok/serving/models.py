"""What a model can do that is served, and what it answers. Without torch: an exported file is served without it.

B: images. C, H, W: channels (3), height and width of the model's input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing

Pixels = NDArray[np.uint8]
Scores = NDArray[np.float32]


DEEPEST = 20  # levels of a record that are told


class NotFiniteError(MemtokError):
    """A task whose answers to an image are no numbers. task: its name."""

    def __init__(self, task: str, advice: str) -> None:
        super().__init__(f"expected finite answers of {task!r}, found others; {advice}")
        self.task = task


@dataclass(frozen=True)
class TaskFacts:
    """What is told of a task. attention: which class token's attention weights can be shown, None for none."""

    name: str
    classes: tuple[str, ...]
    fingerprint: str
    regime: str | None = None
    parameters: int | None = None
    bytes: int | None = None
    extends: tuple[str, ...] = ()
    attention: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """What a model answers to a batch.

    probabilities, logits: (B, classes) by task, and by `base` if it was asked; logits are None where the model does
    not give them. embedding: (B, D), if it was asked.
    """

    probabilities: Mapping[str, Scores]
    logits: Mapping[str, Scores] | None
    embedding: Scores | None

    def row(self, index: int) -> Answers:
        """The answers to one image: (classes,) each, and (D,)."""
        return Answers(
            {name: rows[index] for name, rows in self.probabilities.items()},
            None if self.logits is None else {name: rows[index] for name, rows in self.logits.items()},
            None if self.embedding is None else self.embedding[index],
        )


class ServedModel(Protocol):
    """A model that is served. It is a value: what it answers never changes, a changed set of tasks is another model."""

    @property
    def tasks(self) -> Mapping[str, TaskFacts]:
        """The answered tasks by name, in order."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What happens to an image before."""

    @property
    def backbone(self) -> tuple[str, str]:
        """Source and fingerprint of the backbone."""

    @property
    def base_classes(self) -> tuple[str, ...] | None:
        """The backbone's own classes, None where it does not answer."""

    @property
    def embeds(self) -> bool:
        """Whether it can give the backbone's features."""

    def answer(self, pixels: Pixels, names: Sequence[str], *, base: bool = False, embedding: bool = False) -> Answers:
        """Answers of these tasks to (B, C, H, W) pixels."""

    def attention(self, pixels: Pixels, name: str) -> NDArray[np.float32]:
        """(rows, columns) attention weights over the patches of one image (C, H, W), of the token `TaskFacts` names."""


def readable(value: Any, levels: int = DEEPEST) -> Any:
    """A value of a task's record for JSON: numbers that are not finite, and what is nested too deep, are None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): readable(part, levels - 1) for key, part in value.items()} if levels else None
    if isinstance(value, list | tuple):
        return [readable(part, levels - 1) for part in value] if levels else None
    return value


def softmax(logits: Scores) -> Scores:
    """Probabilities (..., classes)."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Scores = raised / raised.sum(axis=-1, keepdims=True)
    return shares
