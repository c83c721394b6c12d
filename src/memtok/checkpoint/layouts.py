"""transformers' names of the tensors and settings of ViT, DeiT, DINOv2, DINOv3, BEiT, CLIP and SigLIP.

A layout is a table from timm's tensor names to transformers'. Files keep their tensor names while the
names of modules change between versions; both are here. LEFT_OUT lists every tensor that is not read, and why.

Sources: transformers' `modeling_vit`, `modeling_deit`, `modeling_dinov2`, `modeling_dinov2_with_registers`,
`modeling_dinov3_vit`, `modeling_beit`, `modeling_clip`, `modeling_siglip` and their configurations (versions 4.40 and
5.24).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LeftOut:
    """Tensors that are not read: in which layouts, a pattern of their whole names, and why.

    beside: only in a checkpoint that has a tensor of this name too.
    """

    layouts: tuple[str, ...]
    pattern: str
    reason: str
    beside: str = ""


MASKED = ("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "beit")
DINOV2 = ("dinov2", "dinov2_with_registers")
LEFT_OUT = (
    LeftOut(("vit", "deit"), r"((vit|deit)\.)?pooler\.dense\.(weight|bias)", "the pooler, which no classifier uses"),
    LeftOut(("vit", "deit"), r"decoder\.0\.(weight|bias)", "the decoder of masked pre-training"),
    LeftOut(MASKED, r"(\w+\.)?embeddings\.mask_token", "replaces masked patches in pre-training"),
    LeftOut(DINOV2, r"classifier\.(weight|bias)", "its input has the mean of the patches besides the class token"),
    LeftOut(("clip",), r"classifier\.(weight|bias)", "its input is the mean of the patches before the final norm"),
    LeftOut(("clip",), r"text_model\..*|text_projection\.weight|logit_scale", "the text tower"),
    LeftOut(("beit",), r"lm_head\.(weight|bias)", "predicts masked patches in pre-training"),
    LeftOut(("beit",), r"layernorm\.(weight|bias)", "a second norm, of pre-training", beside="beit.layernorm.weight"),
    LeftOut(
        ("beit", "timm"), r"(.*\.)?relative_position_index", "indices of relative positions; written by older versions"
    ),
    LeftOut(
        ("siglip",), r"classifier\.(weight|bias)", "its input is the mean of the patches, without attention pooling"
    ),
    LeftOut(("siglip",), r"text_model\..*|logit_scale|logit_bias", "the text tower of SigLIP"),
    LeftOut(
        ("clip", "siglip"),
        r"(vision_model\.)?embeddings\.position_ids",
        "the numbers from 0; written by older versions",
    ),
    LeftOut(("timm",), r"mask_token", "replaces masked patches in pre-training"),
    LeftOut(("timm",), r"pre_logits\..*", "a layer that timm no longer has"),
)


@dataclass(frozen=True)
class Layout:
    """transformers' names for one model type.

    prefix: of the trunk's names in a model with a head. modules: timm's module or tensor -> theirs; several are
    concatenated. "{}" is the number of the layer. respelled: (pattern, replacement), from the
    module names of transformers 5 to the names in files.
    """

    prefix: str
    modules: dict[str, tuple[str, ...]]
    respelled: tuple[tuple[str, str], ...]
    defaults: dict[str, Any]


# The values of keys that a config.json leaves out, from transformers' configuration classes.
_VIT_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "qkv_bias": True,
}
_DINOV2_DEFAULTS = {
    **_VIT_DEFAULTS,
    "mlp_ratio": 4,
    "layer_norm_eps": 1e-6,
    "patch_size": 14,
    "use_swiglu_ffn": False,
    "num_register_tokens": 0,
}
_CLIP_DEFAULTS = {**_VIT_DEFAULTS, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32}
_SIGLIP_DEFAULTS = {
    **_CLIP_DEFAULTS,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "patch_size": 16,
    "vision_use_head": True,
}
_DINOV3_DEFAULTS = {
    **_VIT_DEFAULTS,
    "hidden_size": 384,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "layer_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "use_gated_mlp": False,
    "num_register_tokens": 0,
}
_BEIT_DEFAULTS = {
    **_VIT_DEFAULTS,
    "use_absolute_position_embeddings": False,
    "use_relative_position_bias": False,
    "use_shared_relative_position_bias": False,
    "layer_scale_init_value": 0.1,
    "use_mean_pooling": True,
}

_EMBEDDINGS = {
    "cls_token": ("embeddings.cls_token",),
    "pos_embed": ("embeddings.position_embeddings",),
    "patch_embed.proj": ("embeddings.patch_embeddings.projection",),
    "norm": ("layernorm",),
}
_ATTENTION = {
    "blocks.{}.attn.qkv": (
        "encoder.layer.{}.attention.attention.query",
        "encoder.layer.{}.attention.attention.key",
        "encoder.layer.{}.attention.attention.value",
    ),
    "blocks.{}.attn.proj": ("encoder.layer.{}.attention.output.dense",),
}
_VIT = {
    **_EMBEDDINGS,
    **_ATTENTION,
    "blocks.{}.norm1": ("encoder.layer.{}.layernorm_before",),
    "blocks.{}.norm2": ("encoder.layer.{}.layernorm_after",),
    "blocks.{}.mlp.fc1": ("encoder.layer.{}.intermediate.dense",),
    "blocks.{}.mlp.fc2": ("encoder.layer.{}.output.dense",),
    "head": ("classifier",),
}
_DEIT = {**_VIT, "reg_token": ("embeddings.distillation_token",), "dist_token": ("embeddings.distillation_token",)}
DEIT_TEACHER = {**_DEIT, "head": ("cls_classifier",), "head_dist": ("distillation_classifier",)}
_DINOV2 = {
    **_EMBEDDINGS,
    **_ATTENTION,
    "reg_token": ("embeddings.register_tokens",),
    "blocks.{}.norm1": ("encoder.layer.{}.norm1",),
    "blocks.{}.norm2": ("encoder.layer.{}.norm2",),
    "blocks.{}.mlp.fc1": ("encoder.layer.{}.mlp.fc1",),
    "blocks.{}.mlp.fc2": ("encoder.layer.{}.mlp.fc2",),
    "blocks.{}.ls1.gamma": ("encoder.layer.{}.layer_scale1.lambda1",),
    "blocks.{}.ls2.gamma": ("encoder.layer.{}.layer_scale2.lambda1",),
}
DINOV2_SWIGLU = {
    **_DINOV2,
    "blocks.{}.mlp.fc1": ("encoder.layer.{}.mlp.weights_in",),
    "blocks.{}.mlp.fc2": ("encoder.layer.{}.mlp.weights_out",),
}
# With the two halves of the gated unit as separate matrices, as in the modules of transformers 5.
DINOV2_SWIGLU_SPLIT = {
    **DINOV2_SWIGLU,
    "blocks.{}.mlp.fc1": ("encoder.layer.{}.mlp.gate_proj", "encoder.layer.{}.mlp.up_proj"),
}
_CLIP = {
    "cls_token": ("embeddings.class_embedding",),
    "pos_embed": ("embeddings.position_embedding.weight",),
    "patch_embed.proj": ("embeddings.patch_embedding",),
    "norm_pre": ("pre_layrnorm",),  # the spelling in every file
    "norm": ("post_layernorm",),
    "blocks.{}.norm1": ("encoder.layers.{}.layer_norm1",),
    "blocks.{}.norm2": ("encoder.layers.{}.layer_norm2",),
    "blocks.{}.attn.qkv": tuple(f"encoder.layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
    "blocks.{}.attn.proj": ("encoder.layers.{}.self_attn.out_proj",),
    "blocks.{}.mlp.fc1": ("encoder.layers.{}.mlp.fc1",),
    "blocks.{}.mlp.fc2": ("encoder.layers.{}.mlp.fc2",),
    "head": ("visual_projection",),
}
_SIGLIP = {
    **{target: sources for target, sources in _CLIP.items() if target not in ("cls_token", "norm_pre", "head")},
    "attn_pool.latent": ("head.probe",),
    "attn_pool.q": ("head.attention.q",),  # of the joint in_proj_weight and in_proj_bias
    "attn_pool.kv": ("head.attention.kv",),
    "attn_pool.proj": ("head.attention.out_proj",),
    "attn_pool.norm": ("head.layernorm",),
    "attn_pool.mlp.fc1": ("head.mlp.fc1",),
    "attn_pool.mlp.fc2": ("head.mlp.fc2",),
}
_DINOV3 = {
    "cls_token": ("embeddings.cls_token",),
    "reg_token": ("embeddings.register_tokens",),
    "patch_embed.proj": ("embeddings.patch_embeddings",),
    "norm": ("norm",),
    "blocks.{}.norm1": ("layer.{}.norm1",),
    "blocks.{}.norm2": ("layer.{}.norm2",),
    "blocks.{}.attn.qkv": tuple(f"layer.{{}}.attention.{part}_proj" for part in "qkv"),
    "blocks.{}.attn.q_bias": ("layer.{}.attention.q_proj.bias",),
    "blocks.{}.attn.v_bias": ("layer.{}.attention.v_proj.bias",),
    "blocks.{}.attn.proj": ("layer.{}.attention.o_proj",),
    "blocks.{}.mlp.fc1": ("layer.{}.mlp.up_proj",),
    "blocks.{}.mlp.fc1_g": ("layer.{}.mlp.gate_proj",),
    "blocks.{}.mlp.fc1_x": ("layer.{}.mlp.up_proj",),
    "blocks.{}.mlp.fc2": ("layer.{}.mlp.down_proj",),
    "blocks.{}.gamma_1": ("layer.{}.layer_scale1.lambda1",),
    "blocks.{}.gamma_2": ("layer.{}.layer_scale2.lambda1",),
}
_TABLE = "relative_position_bias.relative_position_bias_table"
_BEIT = {
    **_VIT,
    "fc_norm": ("pooler.layernorm",),
    "blocks.{}.attn.q_bias": ("encoder.layer.{}.attention.attention.query.bias",),
    "blocks.{}.attn.v_bias": ("encoder.layer.{}.attention.attention.value.bias",),
    "blocks.{}.attn.relative_position_bias_table": (f"encoder.layer.{{}}.attention.attention.{_TABLE}",),
    "rel_pos_bias.relative_position_bias_table": (f"encoder.{_TABLE}",),
    "blocks.{}.gamma_1": ("encoder.layer.{}.lambda_1",),
    "blocks.{}.gamma_2": ("encoder.layer.{}.lambda_2",),
}

_ATTENTION_RESPELLED = (
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
_VIT_RESPELLED = (
    (r"^layers\.", "encoder.layer."),
    *_ATTENTION_RESPELLED,
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_BEIT_RESPELLED = (
    *_VIT_RESPELLED,
    (r"^(encoder\.layer\.\d+)\.relative_position_bias\.", r"\1.attention.attention.relative_position_bias."),
    (r"^shared_position_bias\.", "encoder.relative_position_bias."),
)
_DINOV3_RESPELLED = ((r"^model\.layer\.", "layer."),)
_DINOV2_RESPELLED = (*_ATTENTION_RESPELLED, (r"\.mlp\.down_proj\.", ".mlp.weights_out."))

LAYOUTS = {
    "vit": Layout("vit.", _VIT, _VIT_RESPELLED, _VIT_DEFAULTS),
    "deit": Layout("deit.", _DEIT, _VIT_RESPELLED, _VIT_DEFAULTS),
    "dinov2": Layout("dinov2.", _DINOV2, _DINOV2_RESPELLED, _DINOV2_DEFAULTS),
    "dinov2_with_registers": Layout(
        "dinov2_with_registers.",
        _DINOV2,
        _DINOV2_RESPELLED,
        {**_DINOV2_DEFAULTS, "patch_size": 16, "num_register_tokens": 4},
    ),
    "dinov3_vit": Layout("dinov3_vit.", _DINOV3, _DINOV3_RESPELLED, _DINOV3_DEFAULTS),
    "beit": Layout("beit.", _BEIT, _BEIT_RESPELLED, _BEIT_DEFAULTS),
    "clip": Layout("vision_model.", _CLIP, (), _CLIP_DEFAULTS),
    "siglip": Layout("vision_model.", _SIGLIP, (), _SIGLIP_DEFAULTS),
}
MODEL_TYPES = {**{name: name for name in LAYOUTS}, "clip_vision_model": "clip", "siglip_vision_model": "siglip"}

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "mish": "mish",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}
