"""The dense masked form: what the public reproduction computes, in the verbs of `memtok.layers`.

All tokens of image and tasks pass through the layers together; memory is put beside them in every layer, for every
image; scores are computed in full, masked, and put through a softmax. With the backbone trainable this is the
reproduction (github.com/necrashter/transformers-learnable-memory, vit.py and vit_train.py), which never freezes it:
every step computes the gradients of all parameters and steps only the task's. Frozen, it is the same without them.

Its answers are those of `memtok.reference.reference_outputs`; a test compares them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from memtok.backbone import Backbone
from memtok.layers import family_of, final_norm
from memtok.reference import attention_mask, dense_layer
from memtok.task import Task


class DenseMasked(nn.Module):
    """A backbone with tasks of one class token each in one dense attention per layer.

    trainable: a float32 copy of the backbone with gradients everywhere; else the backbone itself, frozen.
    """

    def __init__(self, backbone: Backbone, tasks: Sequence[Task], *, trainable: bool) -> None:
        super().__init__()
        self.vit: Any = copy.deepcopy(backbone.vit).float().requires_grad_(True) if trainable else backbone.vit
        self.tokens = nn.ParameterList([task.class_tokens.detach().clone() for task in tasks])  # (1, D) each
        self.memory = nn.ParameterList([task.memory.detach().clone() for task in tasks])  # (L, m, D) each
        self.heads = nn.ModuleList([copy.deepcopy(task.head) for task in tasks])
        self.family = family_of(self.vit)
        self.mask: Tensor  # (N + T, N + T + M) bool, True where row i sees column j
        self.register_buffer(
            "mask", attention_mask(backbone.tokens, tasks).to(backbone.device)
        )  # (N + T, N + T + M), True where row i sees column j

    def task_parameters(self) -> list[nn.Parameter]:
        """What an optimizer moves: all but the backbone."""
        return [*self.tokens.parameters(), *self.memory.parameters(), *self.heads.parameters()]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, classes) logits of every task for images (B, 3, height, width)."""
        vit, family = self.vit, self.family
        entered = family.enter(vit, images)  # (B, N, D)
        batch, count, _ = entered.shape
        tokens = family.enter_class_tokens(vit, torch.cat([*self.tokens]).to(entered.dtype))  # (T, D)
        position_of = [*range(count), *[0] * len(tokens)]
        x = torch.cat([entered, tokens.expand(batch, -1, -1)], dim=1)  # (B, N + T, D)
        for index, (layer, positions) in enumerate(zip(family.layers(vit), family.positions(vit), strict=True)):
            cells = layer.normed(torch.cat([memory[index] for memory in self.memory]).to(x.dtype))  # (M, D)
            x, _ = dense_layer(layer, x, positions, position_of, count, cells, self.mask)
        final = final_norm(vit, x[:, count:])
        heads: Any = self.heads
        return [head(final[:, index].to(head.weight.dtype)) for index, head in enumerate(heads)]
