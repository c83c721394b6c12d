"""Tells rounding from a fault. The measure is the dense reference in float64; everything else is measured from there.

- The composed answer and the task alone, as the streams give them in float32, may differ from it by `FACTOR` times what
  the dense reference in float32 does. That one has the same numbers and another order of operations, so it shows what
  rounding does to this very task on these images: with saturated attention it is more. It is measured several times,
  with noise of the size of rounding in the task and in the images, for a single answer may be right by chance.
- The streams in float64, the same code on the same values, may differ from it by that much times the ratio of the two
  precisions. A wrong mask entry or a swapped tensor stands out there by many orders of magnitude, also where float32
  would hide it.

A fault that moves no answer by more than that cannot be seen in any answer. docs/verification.md has the experiment
that the factor comes from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FACTOR = 16  # sound tasks need 2 (docs/verification.md)
EPSILON = torch.finfo(torch.float32).eps
EPSILON_DOUBLE = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class TaskDifferences:
    """How far answers of one task are from the dense reference in float64.

    Each is the largest absolute difference of a logit on any image, over the largest absolute logit of the task on all
    images. composed: together with the other tasks, in float32. alone: only with what it extends, in float32.
    reference: the dense reference in float32, which is what rounding does. double: composed, in float64.
    """

    composed: float
    alone: float
    reference: float
    double: float

    @property
    def tolerance(self) -> float:
        """What `composed` and `alone` may be: rounding explains so much."""
        return FACTOR * max(self.reference, EPSILON)

    @property
    def tolerance_double(self) -> float:
        """What `double` may be."""
        return self.tolerance * EPSILON_DOUBLE / EPSILON

    @property
    def ok(self) -> bool:
        """Whether rounding explains all differences."""
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """What rounding does not explain, one phrase each."""
        found = (
            ("differs", self.composed, self.tolerance),
            ("alone differs", self.alone, self.tolerance),
            ("in float64 differs", self.double, self.tolerance_double),
        )
        return tuple(
            f"{what} from the reference by up to {difference:.3g} of its largest logit, rounding explains {allowed:.3g}"
            for what, difference, allowed in found
            if not (difference <= allowed and math.isfinite(allowed))  # so that a NaN fails
        )

    def to_json(self) -> dict[str, Any]:
        """The same as JSON-able values."""
        return {
            "ok": self.ok,
            "difference": jsonable(self.composed),
            "alone": jsonable(self.alone),
            "reference": jsonable(self.reference),
            "tolerance": jsonable(self.tolerance),
            "double": jsonable(self.double),
            "tolerance_double": jsonable(self.tolerance_double),
        }


class Rounding:
    """Collects what is seen of all tasks, batch by batch. seed: of the noise."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.sizes: dict[str, float] = {}  # the largest logit of each task
        self.found: dict[str, dict[str, float]] = {}  # for each task the largest difference of each kind of answer

    def noisy(self, tensor: Tensor) -> Tensor:
        """The same with noise of the size of rounding in every number."""
        noise = torch.randn(tensor.shape, generator=self.generator, dtype=torch.float32).to(tensor.device, tensor.dtype)
        return tensor * (1 + EPSILON * noise)

    def add(self, name: str, exact: Tensor, **answers: Tensor) -> None:
        """Answers (B, classes) of a task, beside the exact ones in float64."""
        exact = exact.cpu()
        self.sizes[name] = largest(self.sizes.get(name, 0.0), float(exact.abs().max()))
        found = self.found.setdefault(name, {})
        for kind, answer in answers.items():
            found[kind] = largest(found.get(kind, 0.0), difference(answer.cpu().double(), exact))

    def differences(self, name: str) -> TaskDifferences:
        """Those of one task, over its largest logit."""
        size = self.sizes[name] or 1.0
        return TaskDifferences(**{kind: value / size for kind, value in self.found[name].items()})


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference; NaN if one of the numbers is."""
    return float((found - expected).abs().max()) if found.numel() else 0.0


def largest(one: float, other: float) -> float:
    """The larger number, NaN if either is: a NaN must not get lost on the way."""
    return one if one != one or one > other else other


def jsonable(value: float) -> float | str:
    """JSON knows no NaN and no infinity."""
    return value if value == value and abs(value) != float("inf") else str(value)
