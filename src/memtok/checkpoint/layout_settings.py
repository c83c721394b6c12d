"""The settings in transformers' config.json, and the description of the timm model with these settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from memtok.checkpoint.architectures.beit import BeitArchitecture
from memtok.checkpoint.architectures.common import Architecture
from memtok.checkpoint.architectures.eva import EvaArchitecture
from memtok.checkpoint.architectures.vit import VitArchitecture
from memtok.checkpoint.layouts import ACTIVATIONS, DINOV2, LAYOUTS
from memtok.errors import MemtokError
from memtok.preprocessing import size_pair

# Weights of heads, which give the number of classes; a layout has one of them at most.
HEADS = ("classifier.weight", "cls_classifier.weight", "visual_projection.weight")
NESTED = ("clip", "siglip")  # model types whose vision tower has settings of its own


def settings_of(config: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """The complete settings of the vision tower; keys that config.json leaves out have transformers' defaults.

    CLIP and SigLIP nest them, and old files of CLIP repeat them in a second table, which takes precedence. MemtokError
    for invalid values.
    """
    given = [config]
    if config.get("model_type") in NESTED:
        given = [config.get("vision_config") or {}, config.get("vision_config_dict") or {}]
    settings = dict(LAYOUTS[layout].defaults)
    for part in given:
        settings.update({key: part[key] for key in settings if part.get(key) is not None})
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(settings[key], int) or settings[key] < 1:
            raise MemtokError(f"expected {key} in config.json as a number above 0, found {settings[key]!r}; correct it")
    if settings["num_channels"] != 3:
        raise MemtokError(
            f"expected a model of 3 colour channels, found num_channels = {settings['num_channels']} in config.json; "
            "take another"
        )
    if settings["hidden_size"] % settings["num_attention_heads"]:
        raise MemtokError(
            f"expected a hidden_size that the {settings['num_attention_heads']} attention heads share evenly, found "
            f"{settings['hidden_size']} in config.json; correct it there"
        )
    return settings


def architecture_of(layout: str, settings: Mapping[str, Any], named: Mapping[str, Tensor]) -> Architecture:
    """The description of the timm model; MemtokError that names a setting that no timm model has.

    named: the tensors of the checkpoint, by which the head is found.
    """
    if layout == "dinov3_vit":
        return _dinov3(settings)
    if layout == "beit":
        return _beit(settings, named)
    swiglu = bool(settings.get("use_swiglu_ffn"))
    pooled = bool(settings.get("vision_use_head"))
    teacher = "distillation_classifier.weight" in named
    head = next((named[key] for key in HEADS if key in named), None)
    architecture = VitArchitecture(
        **_sizes(settings),
        mlp="glu_gate_first" if swiglu else "mlp",
        mlp_hidden=_mlp_hidden(settings, layout),
        activation="silu" if swiglu else _activation(settings["hidden_act"]),
        qkv_bias=bool(settings["qkv_bias"]),
        layer_scale=layout in DINOV2,
        distilled=teacher,
        # DeiT's distillation token without a head of its own is a register with a position.
        registers=1 if layout == "deit" and not teacher else settings.get("num_register_tokens", 0),
        class_token=layout != "siglip",
        positions="patches" if layout == "dinov2_with_registers" else "all",
        pre_norm=layout == "clip",
        # Without SigLIP's attention pooling the features are the mean of the patches.
        pool="token" if layout != "siglip" else "map" if pooled else "avg",
        classes=0 if head is None else head.shape[0],
        head_bias=layout != "clip",
    )
    if layout in DINOV2:
        _check_square(architecture, layout)
    return architecture


def _check_square(architecture: Architecture, layout: str) -> None:
    """MemtokError for layouts that transformers resizes even at their own size, which works for square grids only."""
    rows, columns = architecture.grid()
    if rows != columns:
        raise MemtokError(
            f"expected a square image_size, which is all that transformers resizes for {layout}, found "
            f"{architecture.image_size} in config.json; take another model"
        )


def _sizes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that have the same names in all layouts."""
    return {
        "image_size": size_pair(settings["image_size"], "image_size in config.json"),
        "patch_size": size_pair(settings["patch_size"], "patch_size in config.json"),
        "dim": settings["hidden_size"],
        "depth": settings["num_hidden_layers"],
        "heads": settings["num_attention_heads"],
        "epsilon": float(settings["layer_norm_eps"]),
    }


def _dinov3(settings: Mapping[str, Any]) -> EvaArchitecture:
    biases = {kind: bool(settings[f"{kind}_bias"]) for kind in ("query", "key", "value", "proj", "mlp")}
    alike = biases["query"] == biases["value"] and (biases["query"] or not biases["key"])
    if not (alike and biases["proj"] and biases["mlp"]):
        raise MemtokError(
            "expected biases of query and value alone, of query, key and value, or of none of them, and those of the "
            f"projection and the MLP, found {', '.join(f'{kind}_bias = {value}' for kind, value in biases.items())} in "
            "config.json; no timm model is like that, take another"
        )
    return EvaArchitecture(
        **_sizes(settings),
        mlp="swiglu" if settings["use_gated_mlp"] else "mlp",
        mlp_hidden=int(settings["intermediate_size"]),
        activation=_activation(settings["hidden_act"]),
        qkv_bias=biases["query"],
        attention="rope" if biases["key"] else "eva",
        layer_scale=True,
        registers=settings["num_register_tokens"],
        positions="none",
        rope="dinov3",
        rope_temperature=float(settings["rope_theta"]),
        rotate_half=True,
    )


def _beit(settings: Mapping[str, Any], named: Mapping[str, Tensor]) -> BeitArchitecture:
    head = named.get("classifier.weight")
    averaged = bool(settings["use_mean_pooling"])
    architecture = BeitArchitecture(
        **_sizes(settings),
        mlp_hidden=int(settings["intermediate_size"]),
        activation=_activation(settings["hidden_act"]),
        layer_scale=float(settings["layer_scale_init_value"]) > 0,
        positions="all" if settings["use_absolute_position_embeddings"] else "none",
        layer_bias=bool(settings["use_relative_position_bias"]),
        shared_bias=bool(settings["use_shared_relative_position_bias"]),
        # Masked pre-training has a norm of its own after the last layer, and no pooler.
        final_norm="fc_norm" if averaged and "pooler.layernorm.weight" in named else "norm",
        pool="avg" if averaged else "token",
        classes=0 if head is None else head.shape[0],
    )
    if architecture.layer_bias or architecture.shared_bias:
        _check_square(architecture, "beit")
    return architecture


def _mlp_hidden(settings: Mapping[str, Any], layout: str) -> int:
    """Outputs of the MLP's first layer, computed as in transformers."""
    if layout not in DINOV2:
        return int(settings["intermediate_size"])
    hidden = int(settings["hidden_size"] * settings["mlp_ratio"])
    # Two thirds, rounded up to a multiple of 8, and both halves of the gated unit in one layer.
    return (int(hidden * 2 / 3) + 7) // 8 * 8 * 2 if settings["use_swiglu_ffn"] else hidden


def _activation(name: Any) -> str:
    if name not in ACTIVATIONS:
        raise MemtokError(
            f"expected hidden_act out of {', '.join(ACTIVATIONS)}, found {name!r} in config.json; take another model"
        )
    return ACTIVATIONS[name]
