"""timm's `Eva`: EVA, EVA-02, DINOv3, Perception Encoder, ViTs with rotary positions.

Source: timm.models.eva, timm.layers.attention, timm.layers.pos_embed_sincos.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from timm.layers import (
    AttentionRope,
    PatchEmbed,
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
    RotaryEmbeddingMixed,
)
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn

from memtok.checkpoint.architectures.common import (
    Architecture,
    check_blocks,
    check_patches,
    mlp_ratio,
    read_common,
    set_activations,
)
from memtok.errors import MemtokError

ROPES: dict[type[nn.Module], str] = {
    RotaryEmbeddingCat: "cat",
    RotaryEmbeddingMixed: "mixed",
    RotaryEmbeddingDinoV3: "dinov3",
}
ATTENTIONS: dict[type[nn.Module], str] = {EvaAttention: "eva", AttentionRope: "rope"}


@dataclass(frozen=True, kw_only=True)
class EvaArchitecture(Architecture):
    """An Eva, with or without rotary positions.

    attention: "eva" (biases of query and value alone) or "rope" (biases of all three, or none). fused: query, key and
    value are one projection. kv_heads: heads of keys and values in each layer, empty where all have their own.
    mlp_layer_scale: layer scale after the MLP too. rotate_half: channels that are rotated together are half
    a head apart.
    rope: a value of ROPES or "none"; rope_...: its settings, named as in timm; rope_reference: ref_feat_shape.
    pool_heads, pool_mlp_hidden: of attention pooling, 0 without it.
    """

    family: ClassVar[str] = "eva"
    models: ClassVar[tuple[type[nn.Module], ...]] = (Eva,)

    attention: str = "eva"
    fused: bool = True
    kv_heads: tuple[int, ...] = ()
    mlp_layer_scale: bool = True
    rotate_half: bool = False
    rope: str = "none"
    rope_temperature: float = 10000.0
    rope_grid_offset: float = 0.0
    rope_grid_indexing: str = "ij"
    rope_reference: tuple[int, int] | None = None
    pool_heads: int = 0
    pool_mlp_hidden: int = 0

    @classmethod
    def check(cls, vit: Any) -> None:
        check_patches(vit, PatchEmbed)
        check_blocks(vit, EvaBlock, *ATTENTIONS)
        if vit.rope is not None and type(vit.rope) not in ROPES:
            raise MemtokError(
                f"expected timm's {' or '.join(kind.__name__ for kind in ROPES)} in rope, found "
                f"{type(vit.rope).__name__}; task streams do not understand it, take another model"
            )

    @classmethod
    def read(cls, vit: Any) -> EvaArchitecture:
        block, pool = vit.blocks[0], vit.attn_pool
        attention, heads = block.attn, block.attn.num_heads
        fused = attention.qkv is not None
        if type(attention) is AttentionRope:
            bias = (attention.qkv if fused else attention.q_proj).bias is not None
        else:
            bias = attention.q_bias is not None if fused else attention.q_proj.bias is not None
        kv_heads = tuple(getattr(one.attn, "num_kv_heads", heads) for one in vit.blocks)
        return cls(
            **read_common(vit),
            **cls._read_rope(vit.rope),
            qkv_bias=bias,
            mlp_layer_scale=block.gamma_1 is None or block.gamma_2 is not None,
            attention=ATTENTIONS[type(attention)],
            fused=fused,
            kv_heads=() if set(kv_heads) == {heads} else kv_heads,
            rotate_half=getattr(attention, "rotate_half", False),
            pool_heads=pool.num_heads if pool is not None else 0,
            pool_mlp_hidden=pool.mlp.fc1.out_features if pool is not None else 0,
        )

    @staticmethod
    def _read_rope(rope: Any) -> dict[str, Any]:
        if rope is None:
            return {}
        reference = getattr(rope, "ref_feat_shape", None)
        return {
            "rope": ROPES[type(rope)],
            "rope_temperature": float(rope.temperature),
            "rope_grid_offset": float(getattr(rope, "grid_offset", 0.0)),
            "rope_grid_indexing": rope.grid_indexing,
            "rope_reference": None if reference is None else tuple(reference),
        }

    def new_model(self) -> Any:
        swiglu = self.mlp != "mlp"
        packed = self.mlp == "glu_gate_first"  # both halves of the gated unit in one matrix
        arguments = (
            self.arguments()
            | self.token_arguments()
            | {
                "mlp_ratio": mlp_ratio(self.mlp_hidden // 2 if packed else self.mlp_hidden, self.dim),
                "qkv_fused": self.fused,
                "swiglu_mlp": swiglu,
                "swiglu_align_to": int(swiglu and not packed),  # to multiples of 1: the width is exact already
                "scale_mlp": self.mlp_norm,
                "scale_attn_inner": self.attention_norm,
                "attn_type": self.attention,
                "num_reg_tokens": self.registers,
                "use_abs_pos_emb": self.positions != "none",
                "use_rot_pos_emb": self.rope != "none",
                "rope_type": self.rope,
                "rope_temperature": self.rope_temperature,
                "rope_grid_offset": self.rope_grid_offset,
                "rope_grid_indexing": self.rope_grid_indexing,
                "rope_rotate_half": self.rotate_half,
                "ref_feat_shape": self.rope_reference,
                "use_pre_transformer_norm": self.pre_norm,
                "use_post_transformer_norm": self.final_norm in ("norm", "both"),
                "use_fc_norm": self.final_norm in ("fc_norm", "both"),
                "attn_pool_num_heads": self.pool_heads or None,
                "attn_pool_mlp_ratio": mlp_ratio(self.pool_mlp_hidden, self.dim) if self.pool_mlp_hidden else None,
            }
        )
        # Older versions of timm know none of these.
        if self.qk_norm:
            arguments["qk_norm"] = True
        if self.kv_heads:
            arguments["num_kv_heads"] = self.kv_heads
        if not self.mlp_layer_scale:
            arguments["attn_only_layer_scale"] = True
        vit = Eva(**arguments)
        set_activations(vit, self.activation)
        return vit

    def facts(self) -> dict[str, Any]:
        facts = {**super().facts(), "family": self.family, "attention": self.attention, "rope": self.rope}
        if self.rope != "none":
            facts["rotate_half"] = self.rotate_half
            facts["grid_indexing"] = self.rope_grid_indexing
        if self.rope in ("cat", "dinov3"):  # the frequencies of mixed tables are tensors
            facts["temperature"] = repr(self.rope_temperature)
            facts["grid_offset"] = repr(self.rope_grid_offset)
            facts["reference"] = None if self.rope_reference is None else list(self.rope_reference)
        if not self.class_token:
            facts["pool_heads"] = self.pool_heads
        return facts

    def canonical(self, name: str, tensor: Tensor) -> str | None:
        """Biases of queries and values that are all zero are left out: DINOv3's files exist with and without them."""
        empty = name.endswith((".attn.q_bias", ".attn.v_bias")) and not tensor.any()
        return None if empty else name
