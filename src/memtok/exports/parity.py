"""An exported file compared with PyTorch, on real images.

B: images. Differences are relative: the largest absolute one over the largest absolute value that PyTorch answers, so
that one bound serves tasks of all sizes; of probabilities they are absolute.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memtok.errors import Argument, MemtokError
from memtok.exports.description import EMBEDDING, INPUT, Description

Answer = Callable[[Tensor], dict[str, NDArray[np.float32]]]
"""From (B, 3, H, W) normalised images to outputs by name, (B, classes) or (B, D)."""

TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "int8": 0.25}
"""The largest relative difference that is let pass, by weights; docs/export.md has what was measured."""


@dataclass
class OutputParity:
    """One output, over all images: how far the file is from PyTorch.

    difference: the largest absolute difference. largest: the largest absolute value of PyTorch, 1 for probabilities.
    agreement: the share of images with the same most likely class, None for the embedding.
    """

    difference: float = 0.0
    largest: float = 0.0
    agreement: float | None = None

    @property
    def relative(self) -> float:
        """The difference over the largest value."""
        return self.difference / self.largest if self.largest else self.difference

    def to_json(self) -> dict[str, float | None]:
        """The numbers by name."""
        return {
            "difference": self.difference,
            "largest": self.largest,
            "relative": self.relative,
            "agreement": self.agreement,
        }


@dataclass
class Parity:
    """What was found on `images` images, for each output by name; tolerance: the relative difference that may be."""

    tolerance: float
    images: int = 0
    outputs: dict[str, OutputParity] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """{"images", "tolerance", "outputs": {NAME: {"difference", "largest", "relative", "agreement"}}}."""
        return {
            "images": self.images,
            "tolerance": self.tolerance,
            "outputs": {name: found.to_json() for name, found in self.outputs.items()},
        }

    def check(self) -> None:
        """MemtokError for the output that is farthest beyond the tolerance, or no finite number."""
        name = max(self.outputs, key=lambda name: np.nan_to_num(self.outputs[name].relative, nan=np.inf))
        worst = self.outputs[name].relative
        if not worst <= self.tolerance:  # also if it is no number
            raise MemtokError(
                f"expected answers within {self.tolerance:g} of PyTorch's, relative to the largest, found {worst:.3g} "
                f"in {name!r} over {self.images} images, so nothing was written; take "
                f"{Argument('weights', 'float32')}, a larger {Argument('tolerance')}, or other images",
                argument="tolerance",
            )


def compare(
    expected: Answer, found: Answer, batches: Iterable[Tensor], description: Description, tolerance: float
) -> Parity:
    """Asks both for the same images (B, 3, H, W), batch by batch."""
    parity = Parity(tolerance, outputs={name: OutputParity() for name in description.outputs})
    agreed = dict.fromkeys(description.classes, 0)
    for images in batches:
        ours, theirs = expected(images), found(images)
        for name, output in parity.outputs.items():
            one, other = ours[name], theirs[name]
            output.difference = highest(output.difference, np.abs(one - other))
            output.largest = highest(output.largest, np.abs(one))
            if name != EMBEDDING:
                agreed[name] += int((one.argmax(axis=1) == other.argmax(axis=1)).sum())
        parity.images += len(images)
    for name, output in parity.outputs.items():
        if name != EMBEDDING:
            output.agreement = agreed[name] / max(parity.images, 1)
            if description.scores == "probabilities":
                output.largest = 1.0
    return parity


def highest(before: float, values: NDArray[np.float32]) -> float:
    """The largest of a number and of values; not a number if one of them is none."""
    return float(np.maximum(before, values.max()))


def reader_of(path: Path, description: Description, form: str) -> Answer:
    """What answers with a file as it was written."""
    if form == "torch":
        program: Any = torch.export.load(io.BytesIO(path.read_bytes())).module()

        def run(images: Tensor) -> dict[str, NDArray[np.float32]]:
            with torch.no_grad():
                return {name: tensor.numpy() for name, tensor in program(images).items()}

        return run
    from memtok.exports.opened import session_of

    session = session_of(path)

    def ask(images: Tensor) -> dict[str, NDArray[np.float32]]:
        names = list(description.outputs)
        return dict(zip(names, session.run(names, {INPUT: images.numpy()}), strict=True))

    return ask
