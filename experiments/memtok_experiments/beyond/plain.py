"""Methods that change the trunk and so do not compose, in plain timm and PyTorch: LoRA and VPT-deep.

Each is a `FullModel` whose own weights are buffers, so that it trains by `memtok.train` as full fine-tuning does: the
same batches, optimizer, schedule and exact resume. Letters for shapes: B images, N tokens, D width, r rank, P prompts.

LoRA: Hu et al., ICLR 2022, arXiv 2106.09685. VPT-deep: Jia et al., ECCV 2022, arXiv 2203.12119.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from memtok.backbone import Backbone
from memtok.checkpoint.tensor_files import read_tensors
from memtok.errors import MemtokError
from memtok.files import atomic_write
from memtok.training import FullModel

QUERY, KEY, VALUE = 0, 1, 2  # blocks of rows in timm's joint projection


class PlainModel(FullModel):
    """A frozen copy of the backbone with something in it that trains, and a trained head.

    prompts: tokens that it adds in every layer.
    """

    prompts = 0

    def save(self, path: str | Path) -> None:
        """Writes what trains, and nothing else, to a `.safetensors` file, atomically; `restore` reads it."""
        tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in self.named_parameters()}
        with atomic_write(path) as temporary:
            save_file(tensors, temporary)

    @torch.no_grad()
    def restore(self, path: Path) -> None:
        """Takes the values that `save` wrote; MemtokError for a file of something else."""
        tensors, _ = read_tensors(path)
        own = dict(self.named_parameters())
        if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in own.items()}:
            raise MemtokError(f"expected the tensors of {self.name!r} in {path}, found others; delete it to train anew")
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def frozen(backbone: Backbone, *, name: str, classes: Sequence[str], seed: int) -> PlainModel:
    """A copy of the backbone of which nothing trains but a new head, that of full fine-tuning with this seed."""
    vit = FullModel.create(backbone, name=name, classes=classes, seed=seed).vit
    for block in vit.blocks:
        if not all(hasattr(block, part) for part in ("attn", "mlp")) or not hasattr(block.attn, "qkv"):
            raise MemtokError(
                f"expected a backbone with joint projections for LoRA and VPT, found {type(block).__name__} in "
                f"{backbone.source}; leave these columns out",
                argument="columns",
            )
    heads = {id(module) for head in (vit.head, getattr(vit, "head_dist", None)) if head for module in head.modules()}
    for module in list(vit.modules()):
        for key, value in [] if id(module) in heads else list(module.named_parameters(recurse=False)):
            delattr(module, key)
            module.register_buffer(key, value.detach())
    return PlainModel(backbone, vit, name=name, classes=classes)


class LowRank(nn.Module):
    """A frozen linear layer plus a low-rank update of some of its `blocks` equal blocks of rows.

    The update of a block is up (rows, r) down (r, inputs), and starts at 0: down as nn.Linear draws it, up zero.
    """

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator, blocks: int, adapted: Sequence[int]):
        super().__init__()
        self.linear, self.blocks, self.adapted = linear, blocks, tuple(adapted)
        rows, inputs = linear.weight.shape
        bound = 1 / math.sqrt(inputs)
        device = linear.weight.device
        draw = partial(torch.rand, rank, inputs, generator=generator)
        self.down = nn.ParameterList([((2 * draw() - 1) * bound).to(device) for _ in adapted])
        self.up = nn.ParameterList([torch.zeros(rows // blocks, rank, device=device) for _ in adapted])

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., rows)."""
        y: Tensor = self.linear(x)
        none = y.new_zeros(*y.shape[:-1], y.shape[-1] // self.blocks)
        updates = dict(zip(self.adapted, zip(self.down, self.up, strict=True), strict=True))
        return y + torch.cat(
            [
                x @ updates[block][0].T @ updates[block][1].T if block in updates else none
                for block in range(self.blocks)
            ],
            dim=-1,
        )


class Prompted(nn.Module):
    """A frozen block that P trained prompts pass beside the tokens; its output of them is dropped."""

    def __init__(self, block: nn.Module, prompts: Tensor):
        super().__init__()
        self.block, self.prompts = block, nn.Parameter(prompts)  # (P, D)

    def forward(self, x: Tensor, **more: Any) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        joined = torch.cat([x, self.prompts.expand(len(x), -1, -1)], dim=1)  # (B, N + P, D)
        y: Tensor = self.block(joined, **more)
        return y[:, : x.shape[1]]


def lora(
    backbone: Backbone, *, name: str, classes: Sequence[str], seed: int, size: int, everything: bool
) -> PlainModel:
    """LoRA of rank `size` and scale 1 on query and value, or on all projections of every layer."""
    model, generator = frozen(backbone, name=name, classes=classes, seed=seed), torch.Generator().manual_seed(seed)
    for block in model.vit.blocks:
        rows = (QUERY, KEY, VALUE) if everything else (QUERY, VALUE)
        block.attn.qkv = LowRank(block.attn.qkv, size, generator, 3, rows)
        if everything:
            block.attn.proj = LowRank(block.attn.proj, size, generator, 1, (0,))
            block.mlp.fc1 = LowRank(block.mlp.fc1, size, generator, 1, (0,))
            block.mlp.fc2 = LowRank(block.mlp.fc2, size, generator, 1, (0,))
    return model


def vpt(backbone: Backbone, *, name: str, classes: Sequence[str], seed: int, size: int) -> PlainModel:
    """VPT-deep: `size` prompts in every layer, drawn as the paper does; the class token stays as it is."""
    model, generator = frozen(backbone, name=name, classes=classes, seed=seed), torch.Generator().manual_seed(seed)
    height, width = backbone.vit.patch_embed.patch_size
    bound = math.sqrt(6 / (3 * height * width + backbone.dim))
    for index, block in enumerate(model.vit.blocks):
        drawn = (2 * torch.rand(size, backbone.dim, generator=generator) - 1) * bound
        model.vit.blocks[index] = Prompted(block, drawn.to(backbone.device))
    model.prompts = size
    return model


METHODS: dict[str, Callable[..., PlainModel]] = {
    "lora-qv": partial(lora, everything=False),
    "lora-all": partial(lora, everything=True),
    "vpt-deep": vpt,
}
