"""The fingerprint of a trunk: two backbones with the same one carry the same tasks.

It covers the trunk's tensors under timm's names, widened to float32, and what the tensors do not say. It leaves out
the head, the precision of the run, and the layout of the files.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from memtok.checkpoint.architecture import Architecture, describe, trunk_tensors


def fingerprint_of(vit: nn.Module) -> str:
    """ "sha256:..." of the trunk as it stands: its tensors widened to float32, and what they do not say.

    It does not depend on the head, the precision of the run, or the file layout that the numbers came from; the size
    of the position embeddings is part of it, so take it before they are resized.
    """
    architecture = describe(vit)
    digest = hashlib.sha256(json.dumps(_facts(architecture), sort_keys=True).encode())
    tensors = {_canonical(name, architecture): tensor for name, tensor in trunk_tensors(vit)}
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(json.dumps([name, list(values.shape)]).encode())
        digest.update(values.numpy().astype("<f4", copy=False).tobytes())
    return f"sha256:{digest.hexdigest()}"


def _facts(architecture: Architecture) -> dict[str, Any]:
    """What the tensors of a trunk do not say. Never change a name or a value here: every task file refers to it."""
    (height, width), (tall, wide) = architecture.image_size, architecture.patch_size
    return {
        "depth": architecture.depth,
        "heads": architecture.heads,
        "patch": list(architecture.patch_size),
        "mlp": architecture.mlp,
        "activation": architecture.activation,
        "norm": architecture.norm,
        "epsilon": repr(architecture.epsilon),
        "extra_tokens": architecture.registers + architecture.distilled,
        "positions": architecture.positions,
        # Their number does not tell 6 x 6 from 3 x 12.
        "grid": None if architecture.positions == "none" else [height // tall, width // wide],
        "pre_norm": architecture.pre_norm,
        "final_norm": architecture.final_norm,
    }


def _canonical(name: str, architecture: Architecture) -> str:
    """The name that a tensor is hashed under.

    One token beside the class token, with a position of its own, is the same trunk whether it is called a distillation
    token (two heads) or a register (one head, on the class token): DeiT's files come both ways.
    """
    single = architecture.registers == 1 and architecture.positions == "all"
    return "dist_token" if name == "reg_token" and single else name
