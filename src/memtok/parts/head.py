"""The head: a linear layer from a task's class tokens, or from the backbone's features, to its classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memtok.parts.base import Part, Sizes, Spec, Trunk
from memtok.regimes import Regime

if TYPE_CHECKING:
    from torch import Tensor

HEAD_STD = 0.02


class Head(Part):
    """`head.weight` (classes, max(queries, 1) * D) over the class tokens side by side, and `head.bias` (classes,)."""

    names = ("head.weight", "head.bias")

    def specs(self, trunk: Trunk, regime: Regime, sizes: Sizes) -> dict[str, Spec]:
        return {
            "head.weight": Spec((sizes["classes"], inputs(trunk, sizes)), HEAD_STD),
            "head.bias": Spec((sizes["classes"],), decays=False),
        }

    def sizes(self, tensors: Mapping[str, Any]) -> dict[str, int]:
        return {}

    def logits(self, tensors: Mapping[str, Tensor], features: Tensor, statistics: Tensor | None) -> Tensor:
        from torch.nn import functional as F

        return F.linear(features, tensors["head.weight"], tensors["head.bias"])

    def cost(self, trunk: Trunk, sizes: Sizes) -> int:
        return inputs(trunk, sizes) * sizes["classes"]

    def kept(self, trunk: Trunk, sizes: Sizes, images: int) -> int:
        return images * (sizes["queries"] * trunk.dim + sizes["classes"])


def inputs(trunk: Trunk, sizes: Sizes) -> int:
    """How many numbers a head reads."""
    return max(sizes["queries"], 1) * trunk.dim
