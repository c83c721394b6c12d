"""Class tokens with memory in every layer: the paper's own capacity.

Source: Sandler et al., CVPR 2022 (arXiv 2203.15243), sections 3.1 to 3.3. Several class tokens (`queries`) are memtok's
addition. How the paper draws a new class token is not known; see docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memtok.parts.base import Choice, Form, Option, Part, Spec, Trunk, length
from memtok.regimes import ENTERING, UPDATED, Regime

if TYPE_CHECKING:
    from torch import Tensor

    from memtok.layers import Layer

MEMORY_STD = 0.02  # the paper's N(0, 0.02); 0.02 is the standard deviation


class Memory(Part):
    """`class_tokens` (queries, D), without position embedding, and `memory` (L, cells, D), the cells of each layer.

    Regime `head` has 0 class tokens; `memory-propagated` has cells below the first layer only, (1, cells, D).
    """

    options = (
        Option(
            name="memory",
            default=5,
            help="memory cells per layer",
            axis="memory",
            heading="cells",
            tag="",
            fits=lambda regime: regime.memory,
        ),
        Option(
            name="queries",
            least=1,
            default=1,
            help="class tokens",
            axis="queries",
            heading="queries",
            tag="queries",
            fits=lambda regime: regime.streams,
        ),
    )
    choices = (
        Choice(
            name="placement",
            values=("before-norm", "after-norm"),
            default="before-norm",
            help="whether memory cells pass the norm of each layer before keys and values are projected",
            fits=lambda regime: regime.memory and not regime.enters,
        ),
    )
    names = ("class_tokens", "memory")
    in_layers = True

    def specs(self, trunk: Trunk, regime: Regime, form: Form) -> dict[str, Spec]:
        layers = 1 if regime.cells == ENTERING else trunk.depth
        return {
            "class_tokens": Spec((form["queries"], trunk.dim), MEMORY_STD, decays=False),
            "memory": Spec((layers, form["memory"], trunk.dim), MEMORY_STD, decays=False),
        }

    def sizes(self, tensors: Mapping[str, Any]) -> dict[str, int]:
        return {"memory": length(tensors["memory"], 1, 3), "queries": length(tensors["class_tokens"], 0, 2)}

    def begin(self, trunk: Trunk, regime: Regime, drawn: dict[str, Tensor]) -> None:
        """The first class token is the base one exactly, further ones are near it; see `Backbone.start_token`.

        The updates of `memory-additive` start as no change.
        """
        if regime.cells == UPDATED:
            drawn["memory"][1:] = 0.0
        drawn["class_tokens"][:1] = 0.0
        drawn["class_tokens"] += trunk.start_token.detach().cpu().float()

    def cost(self, trunk: Trunk, form: Form) -> int:
        t, seen = form["queries"], trunk.tokens + form["queries"] + form["memory"]
        return sum(layer.cost(t, seen) for layer in trunk.layers)

    def kept(self, trunk: Trunk, form: Form, images: int) -> int:
        """Of the class tokens; keys and values of the cells are projected once per step."""
        t, m, layer, dim = form["queries"], form["memory"], trunk.layers[0], trunk.dim
        # Both norms keep their input, the MLP its hidden layer; attention keeps keys, values, and queries as they are
        # and as laid out for the products with trunk and memory.
        of_tokens = t * (2 * dim + 5 * layer.inner + layer.hidden)
        # Probabilities as the softmax gives them, and as laid out for the same products.
        of_attention = 2 * layer.heads * t * (trunk.tokens + t + m)
        return int(trunk.depth * (images * (of_tokens + of_attention) + 3 * m * dim))


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
