"""timm's `Beit`: BEiT and BEiT v2, with a bias for the relative position of two tokens.

Source: timm.models.beit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from timm.layers import PatchEmbed
from timm.models.beit import Attention, Beit, Block
from torch import nn

from memtok.checkpoint.architectures.common import (
    Architecture,
    check_blocks,
    check_patches,
    read_common,
    set_activations,
)


@dataclass(frozen=True, kw_only=True)
class BeitArchitecture(Architecture):
    """A Beit. layer_bias: each layer has a table of relative positions; shared_bias: all layers share one table."""

    family: ClassVar[str] = "beit"
    models: ClassVar[tuple[type[nn.Module], ...]] = (Beit,)

    layer_bias: bool = False
    shared_bias: bool = False

    @classmethod
    def check(cls, vit: Any) -> None:
        check_patches(vit, PatchEmbed)
        check_blocks(vit, Block, Attention)

    @classmethod
    def read(cls, vit: Any) -> BeitArchitecture:
        attention = vit.blocks[0].attn
        return cls(
            **read_common(vit),
            qkv_bias=attention.q_bias is not None,
            layer_bias=attention.relative_position_bias_table is not None,
            shared_bias=vit.rel_pos_bias is not None,
        )

    def new_model(self) -> Any:
        arguments = self.arguments() | {
            "swiglu_mlp": self.mlp != "mlp",
            "scale_mlp": self.mlp_norm,
            "use_abs_pos_emb": self.positions != "none",
            "use_rel_pos_bias": self.layer_bias,
            "use_shared_rel_pos_bias": self.shared_bias,
        }
        after_pooling = self.final_norm == "fc_norm"
        if after_pooling != (self.pool == "avg"):  # older versions of timm have no choice
            arguments["use_fc_norm"] = after_pooling
        vit = Beit(**arguments)
        set_activations(vit, self.activation)
        return vit

    def facts(self) -> dict[str, Any]:
        placed = self.positions != "none" or self.layer_bias or self.shared_bias
        return {**super().facts(), "family": self.family, "grid": self.grid() if placed else None}
