"""The parts of a task, one file per capacity; see `base` for what a part declares."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from memtok.checks import check_choice, check_count
from memtok.errors import Argument, MemtokError
from memtok.parts.adapters import Adapters
from memtok.parts.base import Choice, Option, Part, Sizes, Spec, Trunk
from memtok.parts.head import Head
from memtok.parts.memory import Memory
from memtok.parts.readout import Readout
from memtok.regimes import Regime

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CHOICES",
    "IN_LAYERS",
    "OPTIONS",
    "PARTS",
    "TENSORS",
    "Choice",
    "Option",
    "Options",
    "Part",
    "Sizes",
    "Spec",
    "choose",
    "contributions",
    "cost",
    "kept",
    "layers_read",
    "more_than_head",
    "parameters",
    "sizes_of",
    "specs",
]

PARTS: tuple[Part, ...] = (Memory(), Head(), Adapters(), Readout())
"""In the order in which their tensors are drawn: a new part comes last."""

TENSORS = tuple(name for part in PARTS for name in part.names)
IN_LAYERS = frozenset(name for part in PARTS if part.in_layers for name in part.names)
OPTIONS = tuple(option for part in PARTS for option in part.options)
CHOICES = tuple(choice for part in PARTS for choice in part.choices)


class Options(TypedDict, total=False):
    """The options and choices of all parts, for type checkers; None is as if it was not given."""

    memory: int | None
    queries: int | None
    adapter_rank: int | None
    readout: int | None
    placement: str | None


def choose(regime: Regime, given: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, str]]:
    """Options and choices of a task of this regime, with defaults for what is not given or None.

    MemtokError for a name that no part has, a value out of range, and an option that does not fit the regime.
    """
    known = [*(option.name for option in OPTIONS), *(choice.name for choice in CHOICES)]
    for name in given:
        if name not in known:
            raise MemtokError(f"expected options of a task among {', '.join(known)}, found {name!r}; choose one")
    sizes: dict[str, int] = {}
    for option in OPTIONS:
        value = given.get(option.name)
        size = option.absent(regime) if value is None else value
        check_count(option.name, size, option.least)
        if size != option.least and not option.fits(regime):
            raise MemtokError(
                f"expected {Argument(option.name, option.least)} in regime {regime.name!r}, found "
                f"{Argument(option.name, size)}; leave it out, or use {Argument('regime', 'memory')}",
                argument=option.name,
            )
        sizes[option.name] = size
    words = {}
    for choice in CHOICES:
        word = given.get(choice.name)
        words[choice.name] = check_choice(choice.name, choice.values[0] if word is None else word, choice.values)
        if words[choice.name] != choice.values[0] and not choice.fits(regime):
            raise MemtokError(
                f"expected {Argument(choice.name, choice.values[0])} in regime {regime.name!r}, found "
                f"{Argument(choice.name, word)}; leave it out",
                argument=choice.name,
            )
    return sizes, words


def more_than_head(regime: Regime, sizes: Sizes) -> bool:
    """Whether such a task is more than a linear head on the backbone's features."""
    return regime.class_token or any(sizes[option.name] > option.least for option in OPTIONS)


def specs(trunk: Trunk, regime: Regime, sizes: Sizes) -> dict[str, Spec]:
    """Every tensor of a task, by its name in a task file."""
    return {name: spec for part in PARTS for name, spec in part.specs(trunk, regime, sizes).items()}


def parameters(trunk: Trunk, regime: Regime, sizes: Sizes) -> int:
    """How many numbers such a task trains."""
    return sum(math.prod(spec.shape) for spec in specs(trunk, regime, sizes).values())


def sizes_of(classes: int, tensors: Mapping[str, Any]) -> dict[str, int]:
    """The number of classes, and the options that these tensors were made with."""
    return {"classes": classes} | {name: size for part in PARTS for name, size in part.sizes(tensors).items()}


def layers_read(sizes: Sizes) -> int:
    """How many of the last layers' statistics a task of these sizes reads."""
    return max(part.reads(sizes) for part in PARTS)


def contributions(tensors: Mapping[str, Tensor], features: Tensor, statistics: Tensor | None) -> Iterator[Tensor]:
    """What each part adds to the logits of a task, (B, classes) each; the arguments are those of `Part.logits`."""
    for part in PARTS:
        found = part.logits(tensors, features, statistics)
        if found is not None:
            yield found


def cost(trunk: Trunk, sizes: Sizes) -> int:
    """Multiply-adds that a task of these sizes adds to the pass over one image when nothing trains."""
    return sum(part.cost(trunk, sizes) for part in PARTS)


def kept(trunk: Trunk, sizes: Sizes, images: int) -> int:
    """How many numbers of the forward pass over so many images such a task keeps for its gradient."""
    return sum(part.kept(trunk, sizes, images) for part in PARTS)
