"""Old checkpoints for tests: state dicts as the public reproduction saves them, and what its model would answer.

Both are written from the layout alone (names, shapes, mask), so that memtok's reading is compared with something else.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

State = OrderedDict[str, Tensor]


def old_state(
    vit: VisionTransformer, tasks: Sequence[tuple[int, int]] = ((2, 3),), *, extension: bool = False, seed: int = 0
) -> State:
    """The state dict of a model with this backbone and a task per (cells, classes), its numbers drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    own = vit.state_dict()
    depth, dim = len(vit.blocks), vit.embed_dim
    state: State = OrderedDict()
    state["vit.embeddings.position_embeddings"] = own["pos_embed"]
    state["vit.embeddings.cls_tokens.0"] = own["cls_token"]
    for index in range(len(tasks)):
        state[f"vit.embeddings.cls_tokens.{index + 1}"] = torch.randn(1, 1, dim, generator=generator)
    for leaf in ("weight", "bias"):
        state[f"vit.embeddings.patch_embeddings.projection.{leaf}"] = own[f"patch_embed.proj.{leaf}"]
        state[f"vit.layernorm.{leaf}"] = own[f"norm.{leaf}"]
        state[f"classifiers.0.{leaf}"] = own[f"head.{leaf}"]
    mask = old_mask(own["pos_embed"].shape[1] - 1, [cells for cells, _ in tasks], extension)
    for layer in range(depth):
        state |= old_layer(own, layer)
        attention = f"vit.encoder.layer.{layer}.attention.attention."
        state[attention + "attention_mask"] = mask.clone()
        for index, (cells, _) in enumerate(tasks):
            state[f"{attention}memory_tokens.{index}"] = torch.randn(1, cells, dim, generator=generator)
    for index, (_, classes) in enumerate(tasks):
        state[f"classifiers.{index + 1}.weight"] = torch.randn(classes, dim, generator=generator)
        state[f"classifiers.{index + 1}.bias"] = torch.randn(classes, generator=generator)
    return OrderedDict((key, value.clone()) for key, value in state.items())


def old_layer(own: dict[str, Tensor], layer: int) -> State:
    """One encoder layer of a timm model, under the names of transformers."""
    block, old = f"blocks.{layer}.", f"vit.encoder.layer.{layer}."
    pairs = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    state: State = OrderedDict()
    for leaf in ("weight", "bias"):
        for name, part in zip(("query", "key", "value"), own[f"{block}attn.qkv.{leaf}"].chunk(3), strict=True):
            state[f"{old}attention.attention.{name}.{leaf}"] = part
        for name, renamed in pairs.items():
            state[f"{old}{renamed}.{leaf}"] = own[f"{block}{name}.{leaf}"]
    return state


def old_mask(patches: int, cells: Sequence[int], extension: bool) -> Tensor:
    """(1, patches + 1 + tasks, patches + 1 + tasks + all cells): 0 where the row sees the column, else -inf."""
    owner = [*range(len(cells)), *(index for index, count in enumerate(cells) for _ in range(count))]
    mask = torch.zeros(1, patches + 1 + len(cells), patches + 1 + len(owner))
    for row in range(patches + 1 + len(cells)):
        task = row - patches - 1
        for column, other in enumerate(owner):
            sees = task >= 0 and (other <= task if extension else other == task)
            mask[0, row, patches + 1 + column] = 0.0 if sees else -math.inf
    return mask


@torch.no_grad()
def old_answers(state: State, images: Tensor, *, heads: int, epsilon: float) -> list[Tensor]:
    """The logits of every head, the base one first. Class tokens stand behind the patches, memory skips the norm."""
    depth = 1 + max(int(key.split(".")[3]) for key in state if key.startswith("vit.encoder.layer."))
    count = sum(key.startswith("vit.embeddings.cls_tokens.") for key in state)
    positions = state["vit.embeddings.position_embeddings"]
    projection = "vit.embeddings.patch_embeddings.projection."
    weight = state[projection + "weight"]
    patches = F.conv2d(images, weight, state[projection + "bias"], stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    tokens = [state[f"vit.embeddings.cls_tokens.{index}"] + positions[:, :1] for index in range(count)]
    x = torch.cat([patches + positions[:, 1:], *(token.expand(len(images), -1, -1) for token in tokens)], dim=1)

    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, state[name + ".weight"], state[name + ".bias"])

    def norm(name: str, value: Tensor) -> Tensor:
        return F.layer_norm(value, value.shape[-1:], state[name + ".weight"], state[name + ".bias"], epsilon)

    def split(value: Tensor) -> Tensor:
        return value.unflatten(-1, (heads, -1)).transpose(1, 2)

    for layer in range(depth):
        name = f"vit.encoder.layer.{layer}."
        own = name + "attention.attention."
        cells = [state[f"{own}memory_tokens.{index}"].expand(len(images), -1, -1) for index in range(count - 1)]
        normed = norm(name + "layernorm_before", x)
        seen = torch.cat([normed, *cells], dim=1)
        query, key, value = (
            split(linear(own + part, source))
            for part, source in zip(("query", "key", "value"), (normed, seen, seen), strict=True)
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + state[own + "attention_mask"]
        x = x + linear(name + "attention.output.dense", (scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        hidden = F.gelu(linear(name + "intermediate.dense", norm(name + "layernorm_after", x)))
        x = x + linear(name + "output.dense", hidden)
    last = norm("vit.layernorm", x)[:, -count:]
    return [linear(f"classifiers.{index}", last[:, index]) for index in range(count)]
