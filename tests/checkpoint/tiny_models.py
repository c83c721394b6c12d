"""Small Vision Transformers with random numbers, for the tests of checkpoints: timm's and transformers'."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import GatedMlp, GluMlp, LayerNorm, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models import save_for_hf
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

IMAGE_SIZE, PATCH = 48, 8  # a grid of 6 x 6 patches


def randomise(model: nn.Module, seed: int = 0) -> Any:
    """Gives every parameter numbers that half precision holds: nothing stays at a 0 or 1 that would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_((torch.randn(parameter.shape, generator=generator) * 0.2).half())
            if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
                parameter.add_(1).copy_(parameter.half())
    return model.eval()


def images(height: int = IMAGE_SIZE, width: int | None = None, seed: int = 0) -> Tensor:
    """(2, 3, height, width), already normalised."""
    return torch.randn(2, 3, height, width or height, generator=torch.Generator().manual_seed(seed))


def tiny_timm(kind: type[nn.Module] = VisionTransformer, seed: int = 0, **arguments: Any) -> Any:
    """timm's Vision Transformer, or another `kind` of it, 2 layers of 4 heads, width 32."""
    settings = dict(img_size=IMAGE_SIZE, patch_size=PATCH, embed_dim=32, depth=2, num_heads=4, num_classes=5)
    return randomise(kind(**{**settings, **arguments}), seed)


ROTARY: dict[str, Any] = dict(use_rot_pos_emb=True)
DINOV3: dict[str, Any] = dict(
    **ROTARY, use_abs_pos_emb=False, rope_type="dinov3", rope_temperature=100, rope_rotate_half=True, init_values=0.1,
    num_reg_tokens=4, use_fc_norm=False,
)  # fmt: skip
# Every way to build a Vision Transformer that task streams understand.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-head": dict(num_classes=0),
    "distilled": dict(kind=VisionTransformerDistilled),
    "registers": dict(reg_tokens=3),
    "registers-without-positions": dict(reg_tokens=3, no_embed_class=True),
    "no-positions": dict(pos_embed="none"),
    "qk-norm": dict(qk_norm=True),
    "no-biases": dict(qkv_bias=False, proj_bias=False),
    "layer-scale": dict(init_values=0.1),
    "scale-norms": dict(scale_attn_norm=True, scale_mlp_norm=True),
    "pre-norm": dict(pre_norm=True, norm_layer=partial(LayerNorm, eps=1e-5), act_layer="quick_gelu"),
    "patch-norm": dict(embed_norm_layer=LayerNorm),
    "average-pool": dict(global_pool="avg"),
    "average-pool-norm-first": dict(global_pool="avg", fc_norm=False),
    "average-with-prefix": dict(global_pool="avg", pool_include_prefix=True, reg_tokens=1),
    "attention-pool": dict(global_pool="map"),
    "no-final-norm": dict(final_norm=False),
    "swiglu-packed": dict(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, mlp_ratio=3),
    "swiglu": dict(mlp_layer=SwiGLU, act_layer=nn.SiLU, mlp_ratio=2.66667),
    "glu": dict(mlp_layer=GluMlp),
    "gated": dict(mlp_layer=GatedMlp),
    "rms-norm": dict(norm_layer=RmsNorm),
    "tanh-gelu": dict(act_layer=partial(nn.GELU, approximate="tanh")),
    "dynamic-size": dict(dynamic_img_size=True),
    "bare-average": dict(class_token=False, global_pool="avg"),
    "bare-average-norm-first": dict(class_token=False, global_pool="avg", fc_norm=False),
    "bare-maximum": dict(class_token=False, global_pool="max"),
    "bare-average-and-maximum": dict(class_token=False, global_pool="avgmax"),
    "bare-attention-pool": dict(class_token=False, global_pool="map", act_layer="gelu_tanh"),
    "bare-unpooled": dict(class_token=False, global_pool="", num_classes=0),
    "bare-registers": dict(class_token=False, global_pool="avg", reg_tokens=2, pool_include_prefix=True),
    "bare-registers-without-positions": dict(class_token=False, global_pool="map", reg_tokens=1, no_embed_class=True),
    "wide": dict(img_size=(24, 48), patch_size=(8, 4)),
    "eva": dict(kind=Eva, init_values=0.1),
    "eva-token": dict(kind=Eva, global_pool="token", use_abs_pos_emb=False, qkv_bias=False),
    "eva-no-biases": dict(kind=Eva, qkv_bias=False, qkv_fused=False, norm_layer=partial(LayerNorm, eps=1e-5)),
    "eva-scale-norms": dict(kind=Eva, scale_attn_inner=True, scale_mlp=True),
    "eva-both-norms": dict(kind=Eva, use_fc_norm=True, use_post_transformer_norm=True),
    "eva-no-final-norm": dict(kind=Eva, use_fc_norm=False, use_post_transformer_norm=False, head_init_scale=0),
    "eva-packed-swiglu": dict(kind=Eva, swiglu_mlp=True, mlp_ratio=8 / 3, **ROTARY),
    "eva02": dict(
        kind=Eva, swiglu_mlp=True, scale_mlp=True, qkv_fused=False, mlp_ratio=8 / 3, ref_feat_shape=(3, 3), **ROTARY
    ),
    "rotary": dict(kind=Eva, attn_type="rope", class_token=False, no_embed_class=True, rope_temperature=10, **ROTARY),
    "rotary-offset": dict(kind=Eva, rope_grid_offset=1.0, rope_grid_indexing="xy", num_reg_tokens=2, **ROTARY),
    "rotary-mixed": dict(
        kind=Eva, attn_type="rope", rope_type="mixed", rope_grid_indexing="xy", rope_temperature=10, **ROTARY
    ),
    "perception-encoder": dict(
        kind=Eva,
        attn_type="rope",
        use_pre_transformer_norm=True,
        global_pool="map",
        attn_pool_num_heads=2,
        attn_pool_mlp_ratio=1.5,
        rope_grid_offset=1.0,
        ref_feat_shape=(6, 6),
        dynamic_img_size=True,
        **ROTARY,
    ),
    "perception-encoder-bare": dict(
        kind=Eva, class_token=False, global_pool="map", attn_pool_num_heads=2, init_values=0.1, **ROTARY
    ),
    "dinov3": dict(kind=Eva, swiglu_mlp=True, swiglu_align_to=8, dynamic_img_size=True, **DINOV3),
    "dinov3-fixed-size": dict(kind=Eva, qkv_bias=False, **DINOV3),
    "dinov3-bare": dict(kind=Eva, class_token=False, **DINOV3),
    "beit": dict(kind=Beit, use_rel_pos_bias=True, init_values=0.1),
    "beit-shared": dict(kind=Beit, use_shared_rel_pos_bias=True, use_abs_pos_emb=False, global_pool="token"),
    "beit-plain": dict(kind=Beit, qkv_bias=False, swiglu_mlp=True, scale_mlp=True, use_fc_norm=False),
    "grouped-heads": dict(
        kind=Eva,
        attn_type="rope",
        qkv_fused=False,
        num_kv_heads=(4, 2),
        qk_norm=True,
        attn_only_layer_scale=True,
        norm_layer=RmsNorm,
        swiglu_mlp=True,
        **DINOV3,
    ),
}


# A registered name, made small: what timm's files record of it rebuilds it.
SMALL = dict(embed_dim=32, depth=2, num_heads=4, img_size=IMAGE_SIZE, patch_size=PATCH, num_classes=5)


def registered(name: str = "vit_tiny_patch16_224", **arguments: Any) -> Any:
    return randomise(timm.create_model(name, **{**SMALL, **arguments}))


def save_folder(model: Any, folder: Path, **config: Any) -> Path:
    """As timm saves for the Hub."""
    save_for_hf(model, folder, safe_serialization=True, **config)
    return folder


def transformers_settings(**more: Any) -> dict[str, Any]:
    settings = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=IMAGE_SIZE, patch_size=PATCH)
    return {**settings, **more}


def two_towers(kind: str, **vision: Any) -> Any:
    """A whole CLIP or SigLIP, its text tower as small as the other."""
    transformers = pytest.importorskip("transformers")

    text = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    if kind == "siglip":
        return transformers.SiglipConfig(
            text_config=dict(**text, vocab_size=20, max_position_embeddings=9, bos_token_id=1, eos_token_id=2),
            vision_config=transformers_settings(intermediate_size=48, **vision),
        )
    return transformers.CLIPConfig(
        text_config=dict(
            **text, vocab_size=20, max_position_embeddings=9, projection_dim=6, bos_token_id=1, eos_token_id=2
        ),
        vision_config=transformers_settings(intermediate_size=48, projection_dim=6, **vision),
        projection_dim=6,
    )


BEIT: dict[str, Any] = dict(intermediate_size=48, layer_norm_eps=1e-6)
# Name of a case -> the transformers class, its configuration class, and settings.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTModel", "ViTConfig", dict(intermediate_size=48)),
    "vit-classifier": ("ViTForImageClassification", "ViTConfig", dict(intermediate_size=48, num_labels=5)),
    "vit-no-qkv-bias": ("ViTModel", "ViTConfig", dict(intermediate_size=48, qkv_bias=False, layer_norm_eps=1e-3)),
    "vit-masked": ("ViTForMaskedImageModeling", "ViTConfig", dict(intermediate_size=48, encoder_stride=8)),
    "deit": ("DeiTModel", "DeiTConfig", dict(intermediate_size=48)),
    "deit-classifier": ("DeiTForImageClassification", "DeiTConfig", dict(intermediate_size=48, num_labels=5)),
    "deit-teacher": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", dict(intermediate_size=48, num_labels=5)),
    "dinov2": ("Dinov2Model", "Dinov2Config", dict(mlp_ratio=2)),
    "dinov2-classifier": ("Dinov2ForImageClassification", "Dinov2Config", dict(mlp_ratio=2, num_labels=5)),
    "dinov2-swiglu": ("Dinov2Model", "Dinov2Config", dict(mlp_ratio=3, use_swiglu_ffn=True)),
    "registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", dict(mlp_ratio=2, num_register_tokens=3)),
    "registers-classifier": (
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        dict(mlp_ratio=2, num_register_tokens=3, num_labels=5),
    ),
    "registers-swiglu": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        dict(mlp_ratio=2, num_register_tokens=1, use_swiglu_ffn=True),
    ),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", dict(intermediate_size=48, num_register_tokens=2)),
    "dinov3-gated": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        dict(intermediate_size=48, use_gated_mlp=True, hidden_act="silu", query_bias=False, value_bias=False),
    ),
    "dinov3-key-bias": ("DINOv3ViTModel", "DINOv3ViTConfig", dict(intermediate_size=48, key_bias=True, rope_theta=7.0)),
    "beit": ("BeitModel", "BeitConfig", dict(BEIT, use_relative_position_bias=True)),
    "beit-everything": (
        "BeitForImageClassification",
        "BeitConfig",
        dict(
            BEIT,
            use_relative_position_bias=True,
            use_shared_relative_position_bias=True,
            num_labels=5,
            use_absolute_position_embeddings=True,
            use_mean_pooling=False,
            hidden_act="relu",
        ),
    ),
    "beit-classifier": (
        "BeitForImageClassification",
        "BeitConfig",
        dict(BEIT, use_shared_relative_position_bias=True, num_labels=5, layer_scale_init_value=0.0),
    ),
    "beit-masked": (
        "BeitForMaskedImageModeling",
        "BeitConfig",
        dict(BEIT, use_mask_token=True, vocab_size=7, use_relative_position_bias=True),
    ),
    "beit-masked-token": (
        "BeitForMaskedImageModeling",
        "BeitConfig",
        dict(BEIT, use_mask_token=True, vocab_size=7, use_mean_pooling=False),
    ),
    "clip-vision": ("CLIPVisionModel", "CLIPVisionConfig", dict(intermediate_size=48, projection_dim=6)),
    "clip-projection": (
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        dict(intermediate_size=48, projection_dim=6),
    ),
    "clip": ("CLIPModel", "clip", {}),
    "clip-classifier": ("CLIPForImageClassification", "clip", {}),
    "siglip-vision": ("SiglipVisionModel", "SiglipVisionConfig", dict(intermediate_size=48)),
    "siglip-headless": ("SiglipVisionModel", "SiglipVisionConfig", dict(intermediate_size=48, vision_use_head=False)),
    "siglip": ("SiglipModel", "siglip", {}),
    "siglip-classifier": ("SiglipForImageClassification", "siglip", {}),
}


def tiny_transformers(case: str, seed: int = 0, **more: Any) -> Any:
    """A transformers model of one of CASES, with `more` settings."""
    transformers = pytest.importorskip("transformers")

    model, config, settings = CASES[case]
    configuration = (
        getattr(transformers, config)(**transformers_settings(**{**settings, **more}))
        if config.endswith("Config")
        else two_towers(config, **more)
    )
    return randomise(getattr(transformers, model)(configuration), seed)


def save_transformers(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """Changes the tensors of a safetensors file."""
    file = path / "model.safetensors" if path.is_dir() else path
    save_file({name: tensor.clone() for name, tensor in change(dict(load_file(file))).items()}, file)
    return path
