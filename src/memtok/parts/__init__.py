"""The parts of a task, one file per capacity; see `base` for what a part declares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from memtok.parts.adapters import Adapters
from memtok.parts.base import Option, Part, Sizes, Spec, Trunk
from memtok.parts.head import Head
from memtok.parts.memory import Memory

__all__ = ["OPTIONS", "PARTS", "TENSORS", "Option", "Part", "Sizes", "Spec", "parameters", "sizes_of", "specs"]

PARTS: tuple[Part, ...] = (Memory(), Head(), Adapters())
"""In the order in which their tensors are drawn: a new part comes last."""

TENSORS = tuple(name for part in PARTS for name in part.names)
OPTIONS = tuple(option for part in PARTS for option in part.options)


def specs(trunk: Trunk, regime: str, sizes: Sizes) -> dict[str, Spec]:
    """Every tensor of a task, by its name in a task file."""
    return {name: spec for part in PARTS for name, spec in part.specs(trunk, regime, sizes).items()}


def parameters(trunk: Trunk, regime: str, sizes: Sizes) -> int:
    """How many numbers such a task trains."""
    return sum(math.prod(spec.shape) for spec in specs(trunk, regime, sizes).values())


def sizes_of(classes: int, tensors: Mapping[str, Any]) -> dict[str, int]:
    """The number of classes, and the options that these tensors were made with."""
    return {"classes": classes} | {name: size for part in PARTS for name, size in part.sizes(tensors).items()}
