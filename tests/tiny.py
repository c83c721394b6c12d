"""Small random models and tasks for tests. Every parameter has a value that shows: nothing is tested at zero."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import memtok
from memtok.regimes import REGIMES, TASK_REGIMES

VARIANTS = tuple(name for name in TASK_REGIMES if not REGIMES[name].composable)
"""Regimes whose image tokens attend to the task; each stands alone."""


def tiny_vit(seed: int = 0, **changes: Any) -> VisionTransformer:
    """A timm ViT of 2 layers, 32 wide, for 32 px images in patches of 8, with random parameters."""
    arguments: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 5,
    }
    with torch.random.fork_rng(devices=[]):  # timm draws its initial values from the global generator
        torch.manual_seed(seed)
        vit = VisionTransformer(**(arguments | changes))
    randomize_(vit, seed, std=0.2)
    return vit.eval()


def tiny_backbone(seed: int = 0, **changes: Any) -> memtok.Backbone:
    """`tiny_vit`, loaded as a backbone."""
    return memtok.load_backbone(tiny_vit(seed, **changes))


def tiny_task(
    backbone: memtok.Backbone, name: str = "pets", *, seed: int = 0, classes: int = 3, **more: Any
) -> memtok.Task:
    """A task with random parameters of a size that shows in its answers."""
    names = [f"class {index}" for index in range(classes)]
    task = memtok.Task.create(backbone, name=name, classes=names, seed=seed, **more)
    randomize_(task, seed + 1, std=0.5)
    with torch.no_grad():
        for part, adapter in task.adapters.items():
            # An update as large as what it is added to saturates attention, and rounding would show more than faults.
            adapter.mul_(0.2 if part.endswith("_up") else 1)
    return task


def tiny_images(count: int = 3, seed: int = 0, size: int = 32) -> Tensor:
    """Random (count, 3, size, size) images, already normalised."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def randomize_(module: nn.Module, seed: int, std: float) -> None:
    """Adds noise to every parameter, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)


def bytes_of(module: nn.Module) -> dict[str, bytes]:
    """The bytes of every parameter and buffer, by name."""
    return {name: tensor.detach().cpu().contiguous().numpy().tobytes() for name, tensor in module.state_dict().items()}
