"""timm's `VisionTransformer` and `VisionTransformerDistilled`, with or without a class token.

Source: timm.models.vision_transformer, timm.models.deit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from timm.layers import GatedMlp, GluMlp, Mlp, PatchEmbed, SwiGLU, get_act_layer, get_norm_layer
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from memtok.checkpoint.architectures.common import (
    Architecture,
    add_gates,
    check_blocks,
    check_patches,
    is_there,
    mlp_ratio,
    new_head,
    read_common,
    read_tokens,
)

MLPS: dict[str, Any] = {
    "mlp": Mlp,
    "glu": GluMlp,
    "glu_gate_first": partial(GluMlp, gate_last=False),
    "swiglu": SwiGLU,
    "gated": GatedMlp,
}


@dataclass(frozen=True, kw_only=True)
class VitArchitecture(Architecture):
    """A plain Vision Transformer."""

    family: ClassVar[str] = "vit"
    models: ClassVar[tuple[type[nn.Module], ...]] = (VisionTransformer, VisionTransformerDistilled)

    projection_bias: bool = True
    patch_norm: bool = False
    pool_include_prefix: bool = False

    @classmethod
    def check(cls, vit: Any) -> None:
        check_patches(vit, PatchEmbed)
        check_blocks(vit, Block, Attention)

    @classmethod
    def read(cls, vit: Any) -> VitArchitecture:
        block = vit.blocks[0]
        return cls(
            **read_common(vit),
            **read_tokens(vit),
            qkv_bias=block.attn.qkv.bias is not None,
            projection_bias=block.attn.proj.bias is not None,
            qk_norm=is_there(block.attn.q_norm),
            attention_norm=is_there(getattr(block.attn, "norm", None)),
            attention_gate=getattr(block.attn, "gate", None) is not None,
            layer_scale=is_there(block.ls1),
            distilled=isinstance(vit, VisionTransformerDistilled),
            patch_norm=is_there(vit.patch_embed.norm),
            pool_include_prefix=vit.pool_include_prefix,
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
            "qk_norm": self.qk_norm,
            "proj_bias": self.projection_bias,
            "init_values": 1.0 if self.layer_scale else None,
            "num_classes": self.classes,
            "global_pool": self.pool,
            "class_token": self.class_token,
            "no_embed_class": self.positions == "patches",
            "pos_embed": "none" if self.positions == "none" else "learn",
            "reg_tokens": self.registers,
            "pre_norm": self.pre_norm,
            "final_norm": self.final_norm != "none",
            "fc_norm": self.final_norm == "fc_norm",
            "pool_include_prefix": self.pool_include_prefix,
            "dynamic_img_size": self.dynamic_image_size,
            "dynamic_img_pad": self.dynamic_image_pad,
            "norm_layer": partial(get_norm_layer(self.norm), eps=self.epsilon),
            "act_layer": get_act_layer(self.activation),
            "mlp_layer": MLPS[self.mlp],
            "weight_init": "skip",
        }
        if self.attention_norm or self.mlp_norm:  # older versions of timm know neither
            arguments["scale_attn_norm"] = self.attention_norm
            arguments["scale_mlp_norm"] = self.mlp_norm
        if self.patch_norm:
            arguments["embed_norm_layer"] = arguments["norm_layer"]
        vit: Any = (VisionTransformerDistilled if self.distilled else VisionTransformer)(**arguments)
        if not self.head_bias:
            vit.head = new_head(self.dim, self.classes, bias=False)
        if self.attention_gate:
            add_gates(vit, self.qkv_bias)
        made: nn.Module = vit
        return made

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        # As versions wrote it that knew one family, and class tokens in all of it: they read it still.
        del values["family"]
        if self.class_token:
            del values["class_token"]
        return values

    def facts(self) -> dict[str, Any]:
        facts = super().facts()
        facts["extra_tokens"] += self.distilled
        if not self.class_token and self.pool_include_prefix:
            facts["pool_include_prefix"] = True
        return facts

    def canonical(self, name: str, tensor: Tensor) -> str | None:
        """One token beside the class token, with a position of its own, is the same trunk whatever it is called.

        DeiT's files have a distillation token (two heads) or a register (one head, on the class token).
        """
        single = self.registers == 1 and self.positions == "all" and self.class_token
        return "dist_token" if name == "reg_token" and single else name
