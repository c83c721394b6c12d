"""Low-rank updates of the layers' projections, which act on the task's own class tokens only.

Source: the form is LoRA's (Hu et al., ICLR 2022, arXiv 2106.09685); what they act on is memtok's addition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memtok.parts.base import Form, Option, Part, Spec, Trunk, length
from memtok.regimes import Regime

if TYPE_CHECKING:
    from torch import Tensor


ADAPTED = ("qkv", "proj", "mlp")
"""The projections of a layer that adapters act on: to queries, keys and values; of attention; and beside the MLP."""
RATE = 0.1  # with Adam, over that of class tokens: docs/training.md


class Adapters(Part):
    """For each projection `adapters.NAME.down` (L, rank, inputs) and `adapters.NAME.up` (L, outputs, rank).

    `up` starts at zero, so that they start as no change.
    """

    options = (
        Option(
            name="adapter_rank",
            help="rank of adapters on the task's own tokens",
            axis="adapter_ranks",
            heading="rank of adapters",
            tag="rank",
            fits=lambda regime: regime.streams,
        ),
    )
    in_layers = True
    names = tuple(f"adapters.{name}.{half}" for name in ADAPTED for half in ("down", "up"))

    def specs(self, trunk: Trunk, regime: Regime, form: Form) -> dict[str, Spec]:
        rank = form["adapter_rank"]
        found: dict[str, Spec] = {}
        for name, (inputs, outputs) in widths(trunk).items() if rank else ():
            found[f"adapters.{name}.down"] = Spec((trunk.depth, rank, inputs), inputs**-0.5)
            found[f"adapters.{name}.up"] = Spec((trunk.depth, outputs, rank))
        return found

    def sizes(self, tensors: Mapping[str, Any]) -> dict[str, int]:
        return {"adapter_rank": max(0, length(tensors.get("adapters.qkv.down"), 1, 3))}

    def rate(self, trunk: Trunk, form: Form) -> float:
        return RATE

    def cost(self, trunk: Trunk, form: Form) -> int:
        rows = trunk.depth * form["queries"] * form["adapter_rank"]
        return int(rows * sum(inputs + outputs for inputs, outputs in widths(trunk).values()))

    def kept(self, trunk: Trunk, form: Form, images: int) -> int:
        """What goes into adapters, and their low-rank middle; adapters of all layers are stacked once per step."""
        t, rank, layer, dim = form["queries"], form["adapter_rank"], trunk.layers[0], trunk.dim
        if not rank:
            return 0
        return int(trunk.depth * (images * t * (2 * dim + layer.inner + 3 * rank) + rank * 4 * (dim + layer.inner)))


def widths(trunk: Trunk) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each adapted projection."""
    layer, dim = trunk.layers[0], trunk.dim
    return {"qkv": (dim, layer.projected), "proj": (layer.inner, dim), "mlp": (dim, dim)}


def adapt(
    adapters: Sequence[Mapping[str, tuple[Tensor, Tensor]]],
    rows: Sequence[Tensor | None],
    name: str,
    tokens: Tensor,
    total: Tensor,
) -> Tensor:
    """`total`, the output (B, T, outputs) of a frozen projection of `tokens`, with the tasks' adapters added.

    adapters: for each group of K tasks of one shape, by projection, `down` (K, rank, inputs) and `up` (K, outputs,
    rank). rows: the rows of T that a group acts on, (K queries,), None for all.
    """
    for index, group in zip(rows, adapters, strict=True):
        down, up = group[name]
        picked = tokens if index is None else tokens.index_select(1, index)  # (B, K queries, inputs)
        batch, count, queries = tokens.shape[0], down.shape[0], picked.shape[1] // down.shape[0]
        # The images of a task are rows of one product, or the adapters would be copied for every image.
        picked = picked.reshape(batch, count, queries, tokens.shape[2])
        grouped = picked.transpose(0, 1).flatten(1, 2)  # (K, B queries, inputs)
        update = grouped @ down.transpose(-2, -1) @ up.transpose(-2, -1)  # (K, B queries, outputs)
        update = update.reshape(count, batch, queries, up.shape[1]).transpose(0, 1).flatten(1, 2)
        update = update.to(total.dtype)
        total = total + update if index is None else total.index_add(1, index, update)
    return total
