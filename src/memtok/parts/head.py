"""The head: a linear layer from a task's class tokens, or from the backbone's features, to its classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtok.parts.base import Part, Sizes, Spec, Trunk

HEAD_STD = 0.02


class Head(Part):
    """`head.weight` (classes, max(queries, 1) * D) over the class tokens side by side, and `head.bias` (classes,)."""

    names = ("head.weight", "head.bias")

    def specs(self, trunk: Trunk, regime: str, sizes: Sizes) -> dict[str, Spec]:
        width = max(sizes["queries"], 1) * trunk.dim
        return {
            "head.weight": Spec((sizes["classes"], width), HEAD_STD),
            "head.bias": Spec((sizes["classes"],), decays=False),
        }

    def sizes(self, tensors: Mapping[str, Any]) -> dict[str, int]:
        return {}
