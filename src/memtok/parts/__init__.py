"""The parts of a task, one file per capacity; see `base` for what a part declares."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from memtok.errors import Argument, MemtokError
from memtok.levels import Reads, Statistics, union
from memtok.parts.adapters import Adapters
from memtok.parts.base import Choice, Form, Moments, Option, Part, Spec, Together, Trunk
from memtok.parts.head import Head
from memtok.parts.memory import Memory
from memtok.parts.readout import Readout
from memtok.parts.side import Side
from memtok.regimes import REGIMES, Regime

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CHOICES",
    "DEFAULT_CHOICES",
    "IN_LAYERS",
    "OPTIONS",
    "PARTS",
    "TENSORS",
    "Choice",
    "Form",
    "Moments",
    "Option",
    "Options",
    "Part",
    "Spec",
    "Together",
    "Trunk",
    "choose",
    "combined",
    "contributions",
    "cost",
    "folded",
    "kept",
    "made_of",
    "measure",
    "measured",
    "more_than_head",
    "parameters",
    "rates",
    "reads",
    "sizes_of",
    "specs",
]

PARTS: tuple[Part, ...] = (Memory(), Head(), Adapters(), Readout(), Side())
"""In the order in which their tensors are drawn: a new part comes last."""

TENSORS = tuple(name for part in PARTS for name in part.names)
IN_LAYERS = frozenset(name for part in PARTS if part.in_layers for name in part.names)
OPTIONS = tuple(option for part in PARTS for option in part.options)
CHOICES = tuple(choice for part in PARTS for choice in part.choices)
DEFAULT_CHOICES = {choice.name: choice.default for choice in CHOICES}


class Options(TypedDict, total=False):
    """The options and choices of all parts, for type checkers; None is as if it was not given."""

    memory: int | None
    queries: int | None
    adapter_rank: int | None
    readout: int | str | None
    readout_rank: int | None
    side: int | None
    placement: str | None
    statistics: str | None


def combined(regime: Regime, given: Mapping[str, Any]) -> tuple[Regime, dict[str, Any]]:
    """A regime and options with class tokens, where a regime without any is asked for them; else the same.

    A side stream with memory cells, say, is a task of regime `memory` with a side stream. It has no memory cells unless
    they are asked for.
    """
    streams = REGIMES["memory"]
    wanted = any(
        one.fits(streams) and not one.fits(regime) and given.get(one.name) not in (None, one.least) for one in OPTIONS
    )
    if not regime.needs or not wanted:
        return regime, dict(given)
    told = {name: value for name, value in given.items() if value is not None}
    return streams, {"memory": 0, **regime.needs, **told}


def choose(regime: Regime, given: Mapping[str, Any]) -> tuple[dict[str, int | str], dict[str, str]]:
    """Options and choices of a task of this regime, with defaults for what is not given or None.

    An option may still be `ALL`; `made_of` knows the backbone. MemtokError for a name that no part has, a value out of
    range, and an option that does not fit the regime.
    """
    known = [*(option.name for option in OPTIONS), *(choice.name for choice in CHOICES)]
    for name in given:
        if name not in known:
            raise MemtokError(f"expected options of a task among {', '.join(known)}, found {name!r}; choose one")
    sizes: dict[str, int | str] = {}
    for option in OPTIONS:
        value = given.get(option.name)
        sizes[option.name] = option.absent(regime) if value is None else value
        option.check(regime, sizes[option.name])
        if option.of is not None and sizes[option.name] != option.least and sizes[option.of] == 0:
            raise MemtokError(
                f"expected {Argument(option.of)} where {Argument(option.name)} is given, found none; give both or "
                "neither",
                argument=option.name,
            )
    words = {}
    for choice in CHOICES:
        word = given.get(choice.name)
        words[choice.name] = choice.check(choice.default if word is None else word)
        if words[choice.name] != choice.default and not choice.fits(regime):
            raise MemtokError(
                f"expected {Argument(choice.name, choice.default)} in regime {regime.name!r}, found "
                f"{Argument(choice.name, word)}; leave it out",
                argument=choice.name,
            )
        if word is not None and not choice.means(sizes):
            raise MemtokError(
                f"expected {Argument(str(choice.of))} where {Argument(choice.name)} is given, found none; give both or "
                "neither",
                argument=choice.name,
            )
    return sizes, words


def made_of(trunk: Trunk, regime: Regime, sizes: Mapping[str, int | str]) -> dict[str, int]:
    """The options of a task beside this backbone, as its tensors tell them: numbers, and 0 queries without tokens."""
    found = {option.name: option.on(trunk, sizes[option.name]) for option in OPTIONS}
    return found if regime.class_token else found | {"queries": 0}


def more_than_head(regime: Regime, form: Form) -> bool:
    """Whether such a task is more than a linear head on the backbone's features."""
    return regime.class_token or any(form[option.name] not in range(option.least + 1) for option in OPTIONS)


def specs(trunk: Trunk, regime: Regime, form: Form) -> dict[str, Spec]:
    """Every tensor of a task, by its name in a task file."""
    return {name: spec for part in PARTS for name, spec in part.specs(trunk, regime, form).items()}


def parameters(trunk: Trunk, regime: Regime, form: Form) -> int:
    """How many numbers such a task trains."""
    return sum(math.prod(spec.shape) for spec in specs(trunk, regime, form).values())


def sizes_of(classes: int, tensors: Mapping[str, Any]) -> dict[str, int]:
    """The number of classes, and the options that these tensors were made with."""
    return {"classes": classes} | {name: size for part in PARTS for name, size in part.sizes(tensors).items()}


def reads(form: Form) -> Reads:
    """The statistics of the trunk's levels that a task of this form reads."""
    return union(part.reads(form) for part in PARTS)


def measured(trunk: Trunk, form: Form) -> dict[str, Spec]:
    """What such a task has only while it trains, and does not train."""
    return {name: spec for part in PARTS for name, spec in part.measured(trunk, form).items()}


def measure(form: Form, moments: Moments) -> dict[str, Tensor]:
    """The tensors that are measured on training images; see `Part.measure`."""
    return {name: tensor for part in PARTS for name, tensor in part.measure(form, moments).items()}


def folded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a task with what was measured folded into the others."""
    for part in PARTS:
        tensors = part.folded(tensors)
    return tensors


def rates(trunk: Trunk, regime: Regime, form: Form) -> dict[str, float]:
    """For each tensor of a task its learning rate with Adam, as a multiple of that of class tokens."""
    return {name: rate for part in PARTS for name, rate in part.rates(trunk, regime, form).items()}


def contributions(
    tensors: Mapping[str, Tensor], choices: Mapping[str, str], features: Tensor, statistics: Statistics
) -> Iterator[Tensor]:
    """What each part adds to the logits of a task, (B, classes) each; the arguments are those of `Part.logits`."""
    for part in PARTS:
        found = part.logits(tensors, choices, features, statistics)
        if found is not None:
            yield found


def cost(trunk: Trunk, form: Form) -> int:
    """Multiply-adds that a task of these sizes adds to the pass over one image when nothing trains."""
    return sum(part.cost(trunk, form) for part in PARTS)


def kept(trunk: Trunk, form: Form, images: int) -> int:
    """How many numbers of the forward pass over so many images such a task keeps for its gradient."""
    return sum(part.kept(trunk, form, images) for part in PARTS)
