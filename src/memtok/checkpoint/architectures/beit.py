"""timm's `Beit`: BEiT and BEiT v2, with a bias for the relative position of two tokens.

Source: timm.models.beit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from timm.layers import PatchEmbed, get_norm_layer
from timm.models.beit import Attention, Beit, Block
from torch import nn

from memtok.checkpoint.architectures.common import (
    Architecture,
    check_blocks,
    check_patches,
    mlp_ratio,
    new_activation,
    new_head,
    read_common,
)


@dataclass(frozen=True, kw_only=True)
class BeitArchitecture(Architecture):
    """A Beit. layer_bias: each layer has a table of relative positions; shared_bias: all have one table together."""

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
        block = vit.blocks[0]
        return cls(
            **read_common(vit),
            qkv_bias=block.attn.q_bias is not None,
            layer_scale=block.gamma_1 is not None,
            positions="none" if vit.pos_embed is None else "all",
            layer_bias=block.attn.relative_position_bias_table is not None,
            shared_bias=vit.rel_pos_bias is not None,
        )

    def make(self) -> nn.Module:
        arguments: dict[str, Any] = {
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "embed_dim": self.dim,
            "depth": self.depth,
            "num_heads": self.heads,
            "mlp_ratio": mlp_ratio(self.mlp_hidden, self.dim),
            "qkv_bias": self.qkv_bias,
            "swiglu_mlp": self.mlp != "mlp",
            "scale_mlp": self.mlp_norm,
            "init_values": 1.0 if self.layer_scale else None,
            "num_classes": self.classes,
            "global_pool": self.pool,
            "use_abs_pos_emb": self.positions != "none",
            "use_rel_pos_bias": self.layer_bias,
            "use_shared_rel_pos_bias": self.shared_bias,
            "norm_layer": partial(get_norm_layer(self.norm), eps=self.epsilon),
        }
        after_pooling = self.final_norm == "fc_norm"
        if after_pooling != (self.pool == "avg"):  # older versions of timm have no choice
            arguments["use_fc_norm"] = after_pooling
        vit: Any = Beit(**arguments)
        if not self.head_bias:
            vit.head = new_head(self.dim, self.classes, bias=False)
        for block in vit.blocks:
            block.mlp.act = new_activation(self.activation)
        made: nn.Module = vit
        return made

    def facts(self) -> dict[str, Any]:
        placed = self.positions != "none" or self.layer_bias or self.shared_bias
        return {**super().facts(), "family": self.family, "grid": self.grid() if placed else None}
