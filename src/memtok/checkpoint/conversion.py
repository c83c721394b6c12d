"""transformers' checkpoints as timm models: ViT, DeiT, DINOv2 with and without registers, CLIP's vision tower.

Nothing of transformers is imported: its checkpoints are read by tensor name (layouts.py). Every tensor is used, or
is in LEFT_OUT; what is missing or unknown is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memtok.checkpoint.architecture import Architecture, build
from memtok.checkpoint.layouts import (
    ACTIVATIONS,
    DEIT_TEACHER,
    DINOV2,
    DINOV2_SWIGLU,
    DINOV2_SWIGLU_SPLIT,
    LAYOUTS,
    LEFT_OUT,
    MODEL_TYPES,
    Layout,
)
from memtok.checkpoint.tensor_files import load_tensors, one_line
from memtok.errors import MemtokError
from memtok.preprocessing import size_pair

# The heads that say how many classes there are; a layout has one of them at most.
_HEADS = ("classifier.weight", "cls_classifier.weight", "visual_projection.weight")


@dataclass(frozen=True)
class Converted:
    """A transformers checkpoint as a timm model, at the image size that its position embeddings are for.

    layout: a key of LAYOUTS. left_out: names of its tensors that were not read. position_resize: as in Preprocessing.
    """

    vit: nn.Module
    layout: str
    classes: tuple[str, ...]
    left_out: tuple[str, ...]
    position_resize: str


def convert(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Converted:
    """The timm model of a transformers checkpoint: `config` is its config.json, `tensors` what its files hold.

    MemtokError for an unknown model type or setting, and for a missing, unknown or misshapen tensor.
    """
    name = layout_name(config)
    kept, left_out = split_left_out(tensors, name)
    named = _file_names(kept, LAYOUTS[name])
    try:
        settings = _settings(config, name)
        vit = build(_architecture(name, settings, named))
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise MemtokError(
            f"expected the settings of a {name} model in config.json, found: {one_line(error)}; get it again"
        ) from error
    modules = _modules(name, settings, named)
    used: set[str] = set()
    values = {target: _gather(target, modules, named, used) for target in vit.state_dict()}
    unknown = sorted(named.keys() - used)
    if unknown:
        raise MemtokError(
            f"expected only tensors of a {name} model, found {unknown[0]} (unknown tensors: {len(unknown)}); "
            "check that config.json belongs to these weights"
        )
    if name == "dinov2_with_registers":
        _fold_class_position(values)
    if name == "clip":  # (D,) and (N, D) there
        values["cls_token"], values["pos_embed"] = values["cls_token"][None, None], values["pos_embed"][None]
    load_tensors(vit, values, {target: " + ".join(_sources(target, modules)) for target in values})
    # Registers are the one model type that transformers resizes with antialiasing, as timm does all.
    position_resize = "timm" if name == "dinov2_with_registers" else "transformers"
    classes = () if name == "clip" else _class_names(config, vit)  # CLIP's projection answers no classes
    return Converted(vit, name, classes, left_out, position_resize)


def layout_name(config: Mapping[str, Any]) -> str:
    """The key of LAYOUTS for a config.json; MemtokError, by name, for a model type that is not read."""
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise MemtokError(
            f"expected a transformers model of type {', '.join(MODEL_TYPES)}, found {model_type!r} in config.json; "
            "take one of these, or a timm model"
        )
    return MODEL_TYPES[str(model_type)]


def split_left_out(tensors: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What is read of a checkpoint, and the names of what LEFT_OUT leaves out of this layout ("timm" for timm's)."""
    rules = [re.compile(rule.pattern) for rule in LEFT_OUT if layout in rule.layouts]
    left_out = tuple(sorted(name for name in tensors if any(rule.fullmatch(name) for rule in rules)))
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}, left_out


def _settings(config: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """The settings of the vision tower, complete. CLIP nests them, and old files repeat them with more weight."""
    given = [config]
    if config.get("model_type") == "clip":
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


def _architecture(layout: str, settings: Mapping[str, Any], named: Mapping[str, Tensor]) -> Architecture:
    swiglu = bool(settings.get("use_swiglu_ffn"))
    teacher = "distillation_classifier.weight" in named
    head = next((named[key] for key in _HEADS if key in named), None)
    architecture = Architecture(
        image_size=size_pair(settings["image_size"], "image_size in config.json"),
        patch_size=size_pair(settings["patch_size"], "patch_size in config.json"),
        dim=settings["hidden_size"],
        depth=settings["num_hidden_layers"],
        heads=settings["num_attention_heads"],
        mlp="glu_gate_first" if swiglu else "mlp",
        mlp_hidden=_mlp_hidden(settings, layout),
        activation="silu" if swiglu else _activation(settings["hidden_act"]),
        epsilon=float(settings["layer_norm_eps"]),
        qkv_bias=bool(settings.get("qkv_bias", True)),
        layer_scale=layout in DINOV2,
        distilled=teacher,
        # DeiT's distillation token without a head of its own does what a register with a position does.
        registers=1 if layout == "deit" and not teacher else settings.get("num_register_tokens", 0),
        positions="patches" if layout == "dinov2_with_registers" else "all",
        pre_norm=layout == "clip",
        classes=0 if head is None else head.shape[0],
        head_bias=layout != "clip",
    )
    (height, width), (tall, wide) = architecture.image_size, architecture.patch_size
    if layout in DINOV2 and height // tall != width // wide:
        raise MemtokError(
            f"expected a square image_size, which is all that transformers resizes for {layout}, found "
            f"{architecture.image_size} in config.json; take another model"
        )
    return architecture


def _mlp_hidden(settings: Mapping[str, Any], layout: str) -> int:
    """Outputs of the MLP's first layer, as transformers counts them."""
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


def _modules(layout: str, settings: Mapping[str, Any], named: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """The layout's table, in the variant that this checkpoint is written in."""
    if layout == "deit" and "distillation_classifier.weight" in named:
        return DEIT_TEACHER
    if layout in DINOV2 and settings["use_swiglu_ffn"]:
        return DINOV2_SWIGLU_SPLIT if "encoder.layer.0.mlp.gate_proj.weight" in named else DINOV2_SWIGLU
    return LAYOUTS[layout].modules


def _file_names(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The tensors without their prefix, spelled as in files."""
    named: dict[str, Tensor] = {}
    for original, tensor in tensors.items():
        name = original.removeprefix(layout.prefix)
        for pattern, replacement in layout.respelled:
            name = re.sub(pattern, replacement, name)
        if name in named:
            raise MemtokError(f"expected each tensor once, found {original} twice under two names; write it again")
        named[name] = tensor
    return named


def _sources(target: str, modules: Mapping[str, tuple[str, ...]]) -> list[str]:
    """transformers' names for one of timm's tensors."""
    number = re.search(r"(?<=^blocks\.)\d+", target)
    row = re.sub(r"^blocks\.\d+", "blocks.{}", target)
    layer = number.group() if number else ""
    if row in modules:
        return [source.format(layer) for source in modules[row]]
    module, _, leaf = row.rpartition(".")
    return [f"{source.format(layer)}.{leaf}" for source in modules[module]]


def _gather(target: str, modules: Mapping[str, tuple[str, ...]], named: Mapping[str, Tensor], used: set[str]) -> Tensor:
    """The value of one of timm's tensors, as stored; notes in `used` what it was made of."""
    parts = []
    for source in _sources(target, modules):
        if source not in named:
            raise MemtokError(
                f"expected the tensor {source}, found none in the checkpoint; get it again, or check that config.json "
                "belongs to it"
            )
        used.add(source)
        parts.append(named[source])
    if any(part.shape != parts[0].shape for part in parts):
        found = ", ".join(f"{source} {tuple(named[source].shape)}" for source in _sources(target, modules))
        raise MemtokError(f"expected tensors of one shape, found {found}; get the checkpoint again")
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _fold_class_position(values: dict[str, Tensor]) -> None:
    """Registers as timm has them: the class token brings its position embedding along, the registers have none."""
    position, token = values["pos_embed"].float(), values["cls_token"].float()
    if position.ndim != 3 or token.ndim != 3 or position.shape[-1] != token.shape[-1] or position.shape[1] < 2:
        raise MemtokError(
            f"expected embeddings.position_embeddings of shape (1, patches + 1, {token.shape[-1]}), found "
            f"{tuple(position.shape)}; get the checkpoint again"
        )
    values["cls_token"] = token + position[:, :1]
    values["pos_embed"] = position[:, 1:]


def _class_names(config: Mapping[str, Any], vit: Any) -> tuple[str, ...]:
    """Names of the classes of a classifier, in order; none where config.json does not name them all."""
    names = config.get("id2label") or {}
    outputs = 0 if isinstance(vit.head, nn.Identity) else vit.head.out_features
    wanted = [str(index) for index in range(outputs)]
    named = {str(key): str(value) for key, value in names.items()} if isinstance(names, Mapping) else {}
    return tuple(named[index] for index in wanted) if set(wanted) == named.keys() else ()
