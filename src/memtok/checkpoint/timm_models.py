"""Checkpoints in timm's own layout: by model name, as a folder or file with timm's tensor names, as an object.

Source: timm's `create_model`, `load_pretrained` and `save_for_hf` (timm.models).
"""

from __future__ import annotations

import copy
import difflib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from memtok.checkpoint.architecture import check_supported, fill_tables
from memtok.checkpoint.architectures.common import pretrained_config, stride_of
from memtok.checkpoint.conversion import class_names, split_left_out
from memtok.checkpoint.positions import TABLE, set_image_size
from memtok.checkpoint.processors import has_timm_preprocessing, timm_preprocessing
from memtok.checkpoint.tensor_files import load_tensors
from memtok.errors import MemtokError, one_line
from memtok.preprocessing import Preprocessing


@dataclass(frozen=True)
class Found:
    """A checkpoint as read: position embeddings as stored, preprocessing at the size wanted.

    origin, classes, left_out, record: as in Checkpoint.
    """

    vit: nn.Module
    preprocessing: Preprocessing
    origin: str
    classes: tuple[str, ...]
    left_out: tuple[str, ...]
    record: dict[str, Any] = field(default_factory=dict)


def read_timm_name(name: str, size: tuple[int, int] | None) -> Found:
    """A timm model with its published weights; MemtokError for an unknown name or weights that cannot be downloaded."""
    vit = _create(name, pretrained=True)
    check_supported(vit)
    return _found(vit, size or _own_size(vit), "checkpoint")


def read_timm_object(model: nn.Module, size: tuple[int, int] | None) -> Found:
    """A copy of a timm model in memory, as it is, in float32 on the CPU."""
    check_supported(model)
    vit = copy.deepcopy(model).cpu().float()
    fill_tables(vit)  # in half precision they are rounded
    has_own = has_timm_preprocessing(pretrained_config(vit))
    origin = "checkpoint" if has_own else "usual for timm's Vision Transformers (the object has no pretrained_cfg)"
    return _found(vit, size or _own_size(vit), origin)


def read_timm_config(config: Mapping[str, Any], tensors: Mapping[str, Tensor], size: tuple[int, int] | None) -> Found:
    """A folder in timm's layout: `config` is its config.json, as `save_for_hf` writes it or older versions did."""
    name, arguments = str(config["architecture"]), config.get("model_args") or {}
    if not isinstance(arguments, Mapping):
        raise MemtokError(f"expected model_args as a table in config.json, found {arguments!r}; get the file again")
    nested = config.get("pretrained_cfg")
    given = dict(nested if isinstance(nested, Mapping) else config)
    given.update({key: config[key] for key in ("num_classes", "label_names") if config.get(key) is not None})
    known = {field.name for field in fields(PretrainedCfg)} - {"architecture"}
    pretrained = {key: value for key, value in given.items() if key in known and value is not None}
    if has_timm_preprocessing(pretrained):
        return _fill(_create(name, pretrained_cfg=pretrained, **arguments), tensors, size, "checkpoint")
    origin = f"usual for {name} (config.json does not say)"
    return _fill(_create(name, pretrained_cfg_overlay=pretrained, **arguments), tensors, size, origin)


def read_timm_tensors(name: str, tensors: Mapping[str, Tensor], size: tuple[int, int] | None) -> Found:
    """Tensors with timm's names of an architecture that timm knows by `name`."""
    head = tensors.get("head.weight")
    classes = 0 if head is None or not head.ndim else head.shape[0]
    return _fill(_create(name, num_classes=classes), tensors, size, f"usual for {name} (the file does not say)")


def _create(name: str, **arguments: Any) -> nn.Module:
    """timm's `create_model`, in float32 on the CPU; it does not change the global random generator."""
    if not timm.is_model(name):
        similar = difflib.get_close_matches(
            name.partition(".")[0], timm.list_models("*vit*") + timm.list_models("*deit*")
        )
        raise MemtokError(
            f"expected a folder, a .safetensors file, org/name on the Hub or a timm model name, found {name!r}; "
            + (f"did you mean {', '.join(similar)}?" if similar else "check the spelling"),
            argument="source",
        )
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.CRITICAL)  # it prints every attempt to reach the Hub
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            vit: nn.Module = timm.create_model(name, **arguments).float()
    except Exception as error:  # timm raises errors of its own, of its downloads, and assertions of its models
        raise MemtokError(
            f"expected to make timm's {name}, found: {one_line(error)}; check the name, its settings and the connection"
        ) from error
    finally:
        hub.setLevel(level)
    return vit


def _fill(vit: nn.Module, tensors: Mapping[str, Tensor], size: tuple[int, int] | None, origin: str) -> Found:
    """Loads tensors with timm's names, with position embeddings on the grid of the file."""
    check_supported(vit)
    wanted = size or _own_size(vit)
    kept, left_out = split_left_out(tensors, "timm")
    _fit_grid(vit, kept)
    _fit_head(vit, kept)
    load_tensors(vit, kept)
    return _found(vit, wanted, origin, left_out)


def _fit_grid(vit: Any, tensors: Mapping[str, Tensor]) -> None:
    """Gives the model the grid of the file's position embeddings: square, as timm assumes, where it is another one.

    They are resized to the size wanted only later, so that this happens once and the fingerprint is of what is stored.
    """
    expected = vit.state_dict()
    for name, stored in tensors.items():
        if name not in expected or stored.shape == expected[name].shape:
            continue
        side = 0
        if name == "pos_embed" and stored.ndim == 3:
            prefix = 0 if getattr(vit, "no_embed_class", False) else vit.num_prefix_tokens
            side = math.isqrt(max(0, stored.shape[1] - prefix))
        elif name.endswith(TABLE):  # (2 side - 1) x (2 side - 1) distances, and three of the class token
            side = (math.isqrt(max(0, len(stored) - 3)) + 1) // 2
        if side:
            height, width = stride_of(vit.patch_embed)
            set_image_size(vit, (side * height, side * width))
            return


def _fit_head(vit: Any, tensors: Mapping[str, Tensor]) -> None:
    """Gives the model a head with the number of classes of the file, where the config has another one."""
    for name in ("head", "head_dist"):
        weight = tensors.get(f"{name}.weight")
        if weight is None or weight.ndim != 2 or weight.shape[1] != vit.num_features:
            continue
        if getattr(getattr(vit, name, None), "out_features", 0) != len(weight):
            bias = f"{name}.bias" in tensors
            # Made on the meta device, so that torch does not draw initial values from its global generator.
            head = nn.Linear(vit.num_features, len(weight), bias, device="meta", dtype=torch.float32)
            setattr(vit, name, head.to_empty(device="cpu"))


def _own_size(vit: Any) -> tuple[int, int]:
    """(height, width) in pixels that the model is for: its own, or what it recommends where it takes any."""
    recommended = pretrained_config(vit).get("input_size") if getattr(vit, "dynamic_img_size", False) else None
    height, width = recommended[-2:] if recommended else vit.patch_embed.img_size
    return height, width


def _found(vit: nn.Module, size: tuple[int, int], origin: str, left_out: tuple[str, ...] = ()) -> Found:
    config = pretrained_config(vit)
    preprocessing = timm_preprocessing(config if has_timm_preprocessing(config) else {}, size)
    return Found(vit, preprocessing, origin, class_names(config.get("label_names"), vit), left_out)
