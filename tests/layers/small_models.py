"""A small random model of every family of backbones, and of what makes its layers differ."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.tiny import randomize_

ROTARY = {"use_rot_pos_emb": True}
MODELS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "vit": (VisionTransformer, {}),
    "vit, everything": (
        VisionTransformer,
        {"qk_norm": True, "init_values": 0.5, "reg_tokens": 2, "pre_norm": True, "qkv_bias": False, "fc_norm": True},
    ),
    "distilled": (VisionTransformerDistilled, {}),
    "no class token, mean": (VisionTransformer, {"class_token": False, "global_pool": "avg", "reg_tokens": 2}),
    "no class token, norm after mean": (
        VisionTransformer,
        {"class_token": False, "global_pool": "avg", "fc_norm": True},
    ),
    "no class token, attention pooling": (VisionTransformer, {"class_token": False, "global_pool": "map"}),
    "eva": (Eva, {}),
    "eva02": (
        Eva,
        ROTARY
        | {
            "swiglu_mlp": True,
            "qkv_fused": False,
            "scale_mlp": True,
            "scale_attn_inner": True,
            "ref_feat_shape": (3, 3),
        },
    ),
    "dinov3": (
        Eva,
        ROTARY
        | {
            "rope_type": "dinov3",
            "rope_rotate_half": True,
            "use_abs_pos_emb": False,
            "num_reg_tokens": 3,
            "init_values": 0.5,
            "use_fc_norm": False,
            "dynamic_img_size": True,
        },
    ),
    "rotary, mixed": (Eva, ROTARY | {"rope_type": "mixed", "attn_type": "rope", "global_pool": "token"}),
    "perception encoder": (
        Eva,
        ROTARY | {"attn_type": "rope", "use_pre_transformer_norm": True, "global_pool": "map"},
    ),
    "rotary, no class token": (
        Eva,
        ROTARY | {"class_token": False, "num_reg_tokens": 1, "no_embed_class": True},
    ),
    "grouped queries": (Eva, {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 1}),
    "grouped queries, rotary": (
        Eva,
        ROTARY | {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 1, "qk_norm": True},
    ),
    "beit, bias per layer": (Beit, {"use_rel_pos_bias": True, "init_values": 0.5}),
    "beit, shared bias": (Beit, {"use_shared_rel_pos_bias": True, "use_abs_pos_emb": False, "global_pool": "token"}),
    "beit, no bias": (Beit, {"swiglu_mlp": True, "scale_mlp": True}),
}
ROTARY_OR_NORMED = ("everything", "eva02", "dinov3", "rotary", "perception")
"""Parts of the names of models whose keys are no linear function of the normalised inputs."""


def small_model(name: str, seed: int = 0, **more: Any) -> Any:
    """One of MODELS: 2 layers, 32 wide, for 32 px images in patches of 8, with random parameters."""
    kind, changes = MODELS[name]
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vit = kind(**(arguments | changes | more))
    randomize_(vit, seed, std=0.2)
    return vit.eval()
