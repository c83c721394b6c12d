"""What enters and leaves the layers of a timm model, found without memtok."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def levels(vit: Any, images: Tensor) -> list[Tensor]:
    """(B, N, D) before each layer, and after the last one, as timm computes them."""
    found: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, given: found.append(given[0])) for block in vit.blocks]
    hooks.append(vit.blocks[-1].register_forward_hook(lambda _, __, output: found.append(output)))
    with torch.no_grad():
        vit(images)
    for hook in hooks:
        hook.remove()
    return found


def normalised(tokens: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the width of every token."""
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    return centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt()
