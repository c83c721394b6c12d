"""The dense masked form: what the public reproduction computes, written on timm's modules.

All tokens of image and tasks walk up together; memory is put beside them in every layer, for every image; scores are
computed in full, masked by adding minus infinity, and put through a softmax. With the backbone trainable this is the
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
from torch.nn import functional as F

from memtok.backbone import Backbone
from memtok.reference import attention_mask
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
        count = int(self.vit.patch_embed.num_patches + self.vit.num_prefix_tokens)
        seen = attention_mask(count, tasks)
        mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
        self.register_buffer("mask", mask.to(backbone.device))  # (N + T, N + T + M), added to the scores

    def task_parameters(self) -> list[nn.Parameter]:
        """What an optimizer moves: all but the backbone."""
        return [*self.tokens.parameters(), *self.memory.parameters(), *self.heads.parameters()]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, classes) logits of every task for images (B, 3, height, width)."""
        vit = self.vit
        embedded = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))  # (B, N, D)
        batch, count, _ = embedded.shape
        position = 0 if vit.pos_embed is None or vit.no_embed_class else vit.pos_embed[0, 0]
        entered = vit.norm_pre(torch.cat([token + position for token in self.tokens]).to(embedded.dtype))  # (T, D)
        x = torch.cat([embedded, entered.expand(batch, -1, -1)], dim=1)  # (B, N + T, D)
        for layer, block in enumerate(vit.blocks):
            cells = torch.cat([memory[layer] for memory in self.memory]).to(x.dtype).expand(batch, -1, -1)  # (B, M, D)
            normed = block.norm1(x)
            heads = self.attention(block.attn, normed, torch.cat([normed, block.norm1(cells)], dim=1))
            x = x + block.ls1(block.attn.proj(heads))
            x = x + block.ls2(block.mlp(block.norm2(x)))
        norm = vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm
        final = norm(x[:, count:])
        return [head(final[:, index].to(head.weight.dtype)) for index, head in enumerate(self.heads)]

    def attention(self, attention: Any, asking: Tensor, seen: Tensor) -> Tensor:
        """(B, n, D): what the n tokens that ask get from all that they see, masked."""
        width = attention.attn_dim
        weight, bias = attention.qkv.weight, attention.qkv.bias
        query = F.linear(asking, weight[:width], None if bias is None else bias[:width])
        both = F.linear(seen, weight[width:], None if bias is None else bias[width:])
        query = query.reshape(*query.shape[:2], attention.num_heads, -1).transpose(1, 2)  # (B, H, n, d)
        both = both.reshape(*both.shape[:2], 2, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        key, value = both.unbind(0)  # (B, H, columns, d) each
        query, key = attention.q_norm(query), attention.k_norm(key)
        scores = (query @ key.transpose(-2, -1)) * attention.scale + self.mask.to(query.dtype)
        joined: Tensor = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        return joined
