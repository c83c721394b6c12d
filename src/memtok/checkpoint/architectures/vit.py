"""timm's `VisionTransformer` and `VisionTransformerDistilled`, with or without a class token.

Source: timm.models.vision_transformer, timm.models.deit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import timm
from timm.layers import GatedMlp, GluMlp, HybridEmbed, Mlp, PatchEmbed, SwiGLU, get_act_layer
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from memtok.checkpoint.architectures.common import (
    Architecture,
    check_blocks,
    check_patches,
    is_there,
    pretrained_config,
    read_common,
    stride_of,
)
from memtok.errors import MemtokError

MLPS: dict[str, Any] = {
    "mlp": Mlp,
    "glu": GluMlp,
    "glu_gate_first": partial(GluMlp, gate_last=False),
    "swiglu": SwiGLU,
    "gated": GatedMlp,
}


@dataclass(frozen=True, kw_only=True)
class VitArchitecture(Architecture):
    """A plain Vision Transformer. stem: timm's name of the model whose convolutional stem it has, None for patches."""

    family: ClassVar[str] = "vit"
    models: ClassVar[tuple[type[nn.Module], ...]] = (VisionTransformer, VisionTransformerDistilled)

    projection_bias: bool = True
    patch_norm: bool = False
    stem: str | None = None
    pool_include_prefix: bool = False

    @classmethod
    def check(cls, vit: Any) -> None:
        check_patches(vit, HybridEmbed, PatchEmbed)
        if type(vit.patch_embed) is HybridEmbed and not timm.is_model(pretrained_config(vit).get("architecture") or ""):
            raise MemtokError(
                "expected timm's name of the model with a convolutional stem in pretrained_cfg, found "
                f"{pretrained_config(vit).get('architecture')}; make it by timm.create_model, or give the architecture"
            )
        check_blocks(vit, Block, Attention)

    @classmethod
    def read(cls, vit: Any) -> VitArchitecture:
        block = vit.blocks[0]
        return cls(
            **read_common(vit),
            qkv_bias=block.attn.qkv.bias is not None,
            projection_bias=block.attn.proj.bias is not None,
            distilled=isinstance(vit, VisionTransformerDistilled),
            patch_norm=is_there(getattr(vit.patch_embed, "norm", None)),
            stem=pretrained_config(vit)["architecture"] if type(vit.patch_embed) is HybridEmbed else None,
            pool_include_prefix=vit.pool_include_prefix,
        )

    def new_model(self) -> Any:
        arguments = (
            self.arguments()
            | self.token_arguments()
            | {
                "qk_norm": self.qk_norm,
                "proj_bias": self.projection_bias,
                "pos_embed": "none" if self.positions == "none" else "learn",
                "reg_tokens": self.registers,
                "pre_norm": self.pre_norm,
                "final_norm": self.final_norm != "none",
                "fc_norm": self.final_norm == "fc_norm",
                "pool_include_prefix": self.pool_include_prefix,
                "act_layer": get_act_layer(self.activation),
                "mlp_layer": MLPS[self.mlp],
                "weight_init": "skip",
            }
        )
        if self.attention_norm or self.mlp_norm:  # older versions of timm know neither
            arguments["scale_attn_norm"] = self.attention_norm
            arguments["scale_mlp_norm"] = self.mlp_norm
        if self.patch_norm:
            arguments["embed_norm_layer"] = arguments["norm_layer"]
        vit: Any = (VisionTransformerDistilled if self.distilled else VisionTransformer)(**arguments)
        if self.stem is not None:
            self._put_stem(vit)
        return vit

    def _put_stem(self, vit: Any) -> None:
        """Replaces the patch embedding by the stem of the model named `stem`, which is built for it."""
        stemmed: Any = timm.create_model(
            self.stem,
            img_size=self.image_size,
            embed_dim=self.dim,
            depth=1,
            num_heads=1,
            num_classes=0,
            pre_norm=self.pre_norm,
            dynamic_img_size=self.dynamic_image_size,
            dynamic_img_pad=self.dynamic_image_pad,
        )
        if stride_of(stemmed.patch_embed) != self.patch_size:
            raise MemtokError(
                f"expected a stem of stride {stride_of(stemmed.patch_embed)}, as timm makes that of {self.stem}, found "
                f"{self.patch_size}; only models as timm builds them can carry tasks"
            )
        vit.patch_embed = stemmed.patch_embed
        vit.pretrained_cfg = {"architecture": self.stem}

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        # Versions that know one family, always with class token, still read these files.
        del values["family"]
        if self.class_token:
            del values["class_token"]
        if self.stem is None:
            del values["stem"]
        return values

    def facts(self) -> dict[str, Any]:
        facts = super().facts()
        facts["extra_tokens"] += self.distilled
        if self.stem is not None:
            facts["stem"] = self.stem
        if not self.class_token and self.pool_include_prefix:
            facts["pool_include_prefix"] = True
        return facts

    def canonical(self, name: str, tensor: Tensor) -> str | None:
        """A single token beside the class token, with a position of its own, has one name: the trunk is the same.

        DeiT's files have a distillation token (two heads) or a register (one head, on the class token).
        """
        single = self.registers == 1 and self.positions == "all" and self.class_token
        return "dist_token" if name == "reg_token" and single else name
