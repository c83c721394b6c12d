"""The structure of a timm Vision Transformer: described, and rebuilt from the description.

`describe` reads the constructor arguments from a model, also from one that was built by hand, and raises an error that
names what the task streams do not support. `build` makes the model of a description. The families of models are in
architectures/.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from memtok.checkpoint.architectures import FAMILIES
from memtok.checkpoint.architectures.common import Architecture, check_as_built, floating
from memtok.errors import MemtokError


def from_json(text: str) -> Architecture:
    """The reverse of `Architecture.to_json`; MemtokError for anything else, or for what this version does not know."""
    try:
        values: dict[str, Any] = json.loads(text)
        name = values.pop("family", "vit")  # the first versions have no other
        family = next((family for family in FAMILIES if family.family == name), None)
        known = {field.name for field in fields(family)} if family else values.keys()
        unknown = ", ".join(sorted(values.keys() - known))
        if family is None or unknown:
            raise MemtokError(
                f"expected known settings, found {unknown or f'the family {name!r}'}; read the file with a newer memtok"
            )
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        for key in ("image_size", "patch_size"):
            height, width = values[key]
            values[key] = (int(height), int(width))
        return family(**values)
    except MemtokError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MemtokError(
            f"expected the description of a Vision Transformer, found {text[:100]!r}; write the file again"
        ) from error


def build(architecture: Architecture, device: str = "cpu") -> nn.Module:
    """The timm model of a description, in float32, with uninitialised weights. It draws no random numbers."""
    with torch.device("meta"):
        vit = architecture.make()
    vit = vit.float()  # whatever torch's default precision is
    if device == "meta":
        return vit
    empty: nn.Module = vit.to_empty(device=device)
    fill_tables(empty)
    return empty


def fill_tables(vit: nn.Module) -> None:
    """Computes what timm never stores: rotary tables, indices of relative positions, the keys' bias of zeros."""
    for module in vit.modules():
        compute: Any = getattr(module, "init_non_persistent_buffers", None)
        if compute is not None:
            compute()


def check_supported(vit: nn.Module) -> None:
    """MemtokError that names what the task streams do not support."""
    describe(vit)


def describe(vit: nn.Module) -> Architecture:
    """The description of a timm model; MemtokError that names what the task streams do not support.

    Those are all but the models of FAMILIES with plain global attention in every layer: windowed attention and norms
    after the residual are among them.
    """
    family = next((family for family in FAMILIES if type(vit) in family.models), None)
    if family is None:
        names = ", ".join(model.__name__ for known in FAMILIES for model in known.models)
        raise MemtokError(
            f"expected one of timm's {names}, found {type(vit).__name__}; task streams understand plain global "
            "attention only, so take a ViT, DeiT, DINOv2 or CLIP"
        )
    family.check(vit)
    architecture = family.read(vit)
    check_as_built(vit, build(architecture, "meta"), head_modules(vit))
    return architecture


def head_modules(vit: Any) -> tuple[str, ...]:
    """Modules for the base model's own classes. All others are the trunk, which tasks use.

    Without a class token the features are the output of the model's pooling, which then is part of the trunk.
    """
    heads = ("head", "head_dist")
    return heads if vit.cls_token is None else (*heads, "attn_pool")


def trunk_tensors(vit: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything but the head: all that the features of a token depend on."""
    heads = head_modules(vit)
    return ((name, tensor) for name, tensor in floating(vit) if name.partition(".")[0] not in heads)
