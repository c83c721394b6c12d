"""The fingerprint of a trunk: backbones with the same one can be used for the same tasks.

It covers the trunk's tensors under timm's names, widened to float32, and the facts that the tensors do not determine,
but not the head, the precision of the run, and the layout of the files.
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

from memtok.checkpoint.architecture import describe, trunk_tensors


def fingerprint_of(vit: nn.Module) -> str:
    """Of the trunk as it is, `sha256:...`; take it before position embeddings are resized, which are part of it."""
    architecture = describe(vit)
    digest = hashlib.sha256(json.dumps(architecture.facts(), sort_keys=True).encode())
    named = [(architecture.canonical(name, tensor), tensor) for name, tensor in trunk_tensors(vit)]
    tensors = {name: tensor for name, tensor in named if name is not None}
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(json.dumps([name, list(values.shape)]).encode())
        digest.update(values.numpy().astype("<f4", copy=False).tobytes())
    return f"sha256:{digest.hexdigest()}"
