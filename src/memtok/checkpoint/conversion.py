"""transformers' checkpoints as timm models: ViT, DeiT, DINOv2 with and without registers, towers of CLIP and SigLIP.

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

from memtok.checkpoint.architecture import build
from memtok.checkpoint.layout_settings import architecture_of, settings_of
from memtok.checkpoint.layouts import (
    DEIT_TEACHER,
    DINOV2,
    DINOV2_SWIGLU,
    DINOV2_SWIGLU_SPLIT,
    LAYOUTS,
    LEFT_OUT,
    MODEL_TYPES,
    Layout,
)
from memtok.checkpoint.tensor_files import load_tensors
from memtok.errors import MemtokError, one_line


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
        settings = settings_of(config, name)
        vit = build(architecture_of(name, settings, named))
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise MemtokError(
            f"expected the settings of a {name} model in config.json, found: {one_line(error)}; get it again"
        ) from error
    if "attn_pool.latent" in vit.state_dict():
        _split_in_projection(named)
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
    if name in ("clip", "siglip"):  # (N, D) there
        values["pos_embed"] = values["pos_embed"][None]
    if name == "clip":  # (D,) there
        values["cls_token"] = values["cls_token"][None, None]
    load_tensors(vit, values, {target: " + ".join(_sources(target, modules)) for target in values})
    # Registers are the one model type that transformers resizes with antialiasing, as timm does all.
    position_resize = "timm" if name == "dinov2_with_registers" else "transformers"
    classes = () if name == "clip" else class_names(config.get("id2label"), vit)  # CLIP has no classes
    return Converted(vit, name, classes, left_out, position_resize)


def layout_name(config: Mapping[str, Any]) -> str:
    """The key of LAYOUTS for a config.json; MemtokError that names a model type that is not supported."""
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise MemtokError(
            f"expected a transformers model of type {', '.join(MODEL_TYPES)}, found {model_type!r} in config.json; "
            "take one of these, or a timm model"
        )
    return MODEL_TYPES[str(model_type)]


def split_left_out(tensors: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors that are read, and the names of those in LEFT_OUT for this layout ("timm" for timm's)."""
    rules = [
        re.compile(rule.pattern)
        for rule in LEFT_OUT
        if layout in rule.layouts and (not rule.beside or rule.beside in tensors)
    ]
    left_out = tuple(sorted(name for name in tensors if any(rule.fullmatch(name) for rule in rules)))
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}, left_out


def _modules(layout: str, settings: Mapping[str, Any], named: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """The table of the layout, in the variant of this checkpoint."""
    if layout == "deit" and "distillation_classifier.weight" in named:
        return DEIT_TEACHER
    if layout in DINOV2 and settings["use_swiglu_ffn"]:
        return DINOV2_SWIGLU_SPLIT if "encoder.layer.0.mlp.gate_proj.weight" in named else DINOV2_SWIGLU
    return LAYOUTS[layout].modules


def _file_names(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The tensors by their names in files, without prefix."""
    named: dict[str, Tensor] = {}
    for original, tensor in tensors.items():
        name = original.removeprefix(layout.prefix)
        for pattern, replacement in layout.respelled:
            name = re.sub(pattern, replacement, name)
        if name in named:
            raise MemtokError(f"expected each tensor once, found {original} twice under two names; write it again")
        if tensor.numel():  # DINOv3 without registers has an empty tensor
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
    """The value of one of timm's tensors, as stored; adds its sources to `used`."""
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


def _split_in_projection(named: dict[str, Tensor]) -> None:
    """Splits torch's joint projection of attention pooling, (3 D, D): timm has a separate one for the query."""
    for leaf in ("weight", "bias"):
        source = f"head.attention.in_proj_{leaf}"
        if source not in named:
            raise MemtokError(f"expected the tensor {source}, found none in the checkpoint; get it again")
        joint = named.pop(source)
        third = len(joint) // 3 if joint.ndim else 0
        named[f"head.attention.q.{leaf}"], named[f"head.attention.kv.{leaf}"] = joint[:third], joint[third:]


def _fold_class_position(values: dict[str, Tensor]) -> None:
    """Adds the position embedding of the class token to it, as timm has it for models with registers."""
    position, token = values["pos_embed"].float(), values["cls_token"].float()
    if position.ndim != 3 or token.ndim != 3 or position.shape[-1] != token.shape[-1] or position.shape[1] < 2:
        raise MemtokError(
            f"expected embeddings.position_embeddings of shape (1, patches + 1, {token.shape[-1]}), found "
            f"{tuple(position.shape)}; get the checkpoint again"
        )
    values["cls_token"] = token + position[:, :1]
    values["pos_embed"] = position[:, 1:]


def class_names(names: Any, vit: Any) -> tuple[str, ...]:
    """The class names of config.json, a list or {index: name}, in order; none if they are not one per output."""
    outputs = getattr(vit.head, "out_features", 0)
    if isinstance(names, Mapping):
        named = {str(index): name for index, name in names.items()}
        names = [named.get(str(index)) for index in range(outputs)] if len(named) == outputs else None
    whole = isinstance(names, list | tuple) and len(names) == outputs and None not in names
    return tuple(str(name) for name in names) if whole else ()
