"""The head: a linear layer from a task's class tokens, or from the backbone's features, to its classes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from memtok.levels import Statistics
from memtok.parts.base import Form, Part, Spec, Trunk
from memtok.parts.readout import rate_of_features
from memtok.regimes import Regime

if TYPE_CHECKING:
    from torch import Tensor

HEAD_STD = 0.02
BESIDE_SIDE = 0.1  # rate beside a side stream, over that of class tokens


class Head(Part):
    """`head.weight` (classes, max(queries, 1) * D) over the class tokens side by side, and `head.bias` (classes,)."""

    names = ("head.weight", "head.bias")

    def specs(self, trunk: Trunk, regime: Regime, form: Form) -> dict[str, Spec]:
        return {
            "head.weight": Spec((form["classes"], inputs(trunk, form)), HEAD_STD),
            "head.bias": Spec((form["classes"],), decays=False),
        }

    def sizes(self, tensors: Mapping[str, Any]) -> dict[str, int]:
        return {}

    def inputs(
        self, tensors: Mapping[str, Tensor], choices: Mapping[str, str], features: Tensor, statistics: Statistics
    ) -> Tensor:
        return features

    def weights(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return tensors["head.weight"], tensors["head.bias"]

    def source(
        self, tensors: Mapping[str, Tensor], choices: Mapping[str, str]
    ) -> tuple[Hashable, tuple[Tensor, ...]] | None:
        return None if len(tensors["class_tokens"]) else ("features", ())

    def rate(self, trunk: Trunk, form: Form) -> float:
        """Where it reads the base class token only, that of a readout beside it, or less beside a side stream.

        At a rate of its own a head moves the answers more than all else that is read: docs/training.md.
        """
        if form["queries"]:
            return 1.0
        if form["readout"]:
            return rate_of_features(trunk, form)
        return BESIDE_SIDE if form["side"] else 1.0

    def cost(self, trunk: Trunk, form: Form) -> int:
        return int(inputs(trunk, form) * form["classes"])

    def kept(self, trunk: Trunk, form: Form, images: int) -> int:
        return int(images * (form["queries"] * trunk.dim + form["classes"]))


def inputs(trunk: Trunk, form: Form) -> int:
    """How many numbers a head reads."""
    return int(max(form["queries"], 1) * trunk.dim)
