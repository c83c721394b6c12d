"""The fingerprint of a trunk: two backbones with the same one carry the same tasks.

It covers the trunk's tensors under timm's names, widened to float32, and what the tensors do not say. It leaves out
the head, the precision of the run, and the layout of the files.
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

from memtok.checkpoint.architecture import describe, trunk_tensors


def fingerprint_of(vit: nn.Module) -> str:
    """ "sha256:..." of the trunk as it stands: its tensors widened to float32, and what they do not say.

    It does not depend on the head, the precision of the run, or the file layout that the numbers came from; the size
    of the position embeddings is part of it, so take it before they are resized.
    """
    architecture = describe(vit)
    digest = hashlib.sha256(json.dumps(architecture.facts(), sort_keys=True).encode())
    named = [(architecture.canonical(name, tensor), tensor) for name, tensor in trunk_tensors(vit)]
    tensors = {name: tensor for name, tensor in named if name is not None}
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(json.dumps([name, list(values.shape)]).encode())
        digest.update(values.numpy().astype("<f4", copy=False).tobytes())
    return f"sha256:{digest.hexdigest()}"
