"""Class tokens with memory in every layer: the paper's own capacity.

Source: Sandler et al., CVPR 2022 (arXiv 2203.15243), sections 3.1 to 3.3. Several class tokens (`queries`) are memtok's
addition. How the paper draws a new class token is not known; see docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memtok.parts.base import Option, Part, Sizes, Spec, Trunk, length

if TYPE_CHECKING:
    from torch import Tensor

    from memtok.layers import Layer

MEMORY_STD = 0.02  # the paper's N(0, 0.02); 0.02 is the standard deviation


class Memory(Part):
    """`class_tokens` (queries, D), without position embedding, and `memory` (L, cells, D), the cells of each layer.

    Regime `head` has 0 class tokens; `memory-propagated` has cells below the first layer only, (1, cells, D).
    """

    options = (
        Option("memory", 0, None, "memory cells per layer (default: 5 where the regime has memory)"),
        Option("queries", 1, 1, "class tokens"),
    )
    names = ("class_tokens", "memory")

    def specs(self, trunk: Trunk, regime: str, sizes: Sizes) -> dict[str, Spec]:
        layers = 1 if regime == "memory-propagated" else trunk.depth
        return {
            "class_tokens": Spec((sizes["queries"], trunk.dim), MEMORY_STD, decays=False),
            "memory": Spec((layers, sizes["memory"], trunk.dim), MEMORY_STD, decays=False),
        }

    def sizes(self, tensors: Mapping[str, Any]) -> dict[str, int]:
        return {"memory": length(tensors["memory"], 1, 3), "queries": length(tensors["class_tokens"], 0, 2)}

    def begin(self, trunk: Trunk, regime: str, drawn: dict[str, Tensor]) -> None:
        """The first class token is the base one exactly, further ones are near it; a backbone without has none to copy.

        The updates of `memory-additive` start as no change.
        """
        if regime == "memory-additive":
            drawn["memory"][1:] = 0.0
        base = trunk.class_token
        if base is not None:
            drawn["class_tokens"][:1] = 0.0
            drawn["class_tokens"] += base.detach().cpu().float()


def keys_and_values(layer: Layer, before: bool | Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (H, M, d) of the memory cells (M, D) of all tasks in one layer.

    before: which cells go through the layer's norm, one answer or (M, 1) bool; the others are taken as they are.
    """
    if isinstance(before, bool):
        cells = layer.normed(cells) if before else cells
    else:
        cells = layer.normed(cells).where(before, cells)
    key, value = layer.keys_and_values(cells.unsqueeze(0))
    return key[0], value[0]
