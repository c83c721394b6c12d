"""A readout: the head also reads statistics of the trunk's last layers, not of its end alone.

Middle layers help to tell classes apart (Evci et al., Head2Toe, ICML 2022, arXiv 2201.03529). It adds no layer work:
the trunk computes these tokens anyway, and the readout is one matrix product over their statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memtok.errors import Argument, MemtokError
from memtok.parts.base import Option, Part, Sizes, Spec, Trunk, length
from memtok.regimes import Regime

if TYPE_CHECKING:
    from torch import Tensor


class Readout(Part):
    """`readout.weight` (classes, n, S, D) over the statistics of the last n layers; see `Backbone.statistics`.

    S is 2, class token and mean of the patches, or 1 where the backbone has no class token. It starts at zero, as no
    change of the answers. n is 0 for none, and 1 reads the last layer alone.
    """

    options = (
        Option(
            name="readout",
            help="last layers whose class token and mean of the patches the head reads too",
            axis="readouts",
            heading="readout",
            tag="readout",
            fits=lambda regime: regime.composable,
        ),
    )
    names = ("readout.weight",)

    def specs(self, trunk: Trunk, regime: Regime, sizes: Sizes) -> dict[str, Spec]:
        shape = (sizes["classes"], sizes["readout"], *trunk.statistics_shape)
        return {"readout.weight": Spec(shape)} if sizes["readout"] else {}

    def sizes(self, tensors: Mapping[str, Any]) -> dict[str, int]:
        return {"readout": max(0, length(tensors.get("readout.weight"), 1, 4))}

    def check(self, trunk: Trunk, sizes: Sizes) -> None:
        if sizes["readout"] > trunk.depth:
            raise MemtokError(
                f"expected {Argument('readout')} of {trunk.depth} at most, the layers of this backbone, found "
                f"{sizes['readout']}; use fewer"
            )

    def reads(self, sizes: Sizes) -> int:
        return sizes["readout"]

    def logits(self, tensors: Mapping[str, Tensor], features: Tensor, statistics: Tensor | None) -> Tensor | None:
        weight = tensors.get("readout.weight")
        if weight is None:
            return None
        count = 0 if statistics is None else statistics.shape[1]
        if statistics is None or count < weight.shape[1]:
            raise MemtokError(
                f"expected the statistics of {weight.shape[1]} layers for a readout, found those of {count}; make the "
                "trace with a model that has all tasks to answer"
            )
        # As rows of one product: the last n of as many layers as the trace has.
        return statistics[:, -weight.shape[1] :].flatten(1) @ weight.flatten(1).T

    def cost(self, trunk: Trunk, sizes: Sizes) -> int:
        return sizes["readout"] * math.prod(trunk.statistics_shape) * sizes["classes"]
