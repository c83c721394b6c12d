"""timm's `Beit`: BEiT and BEiT v2, whose attention has a bias by relative position.

What is added to a score depends on the relative position of query and key; the class token has a row and a column of
its own. The class token of a task takes the base class token's row, and among class tokens the bias of the class token
to itself. Memory has no position: nothing is added to its scores.

Source: Bao et al., ICLR 2022 (arXiv 2106.08254), as implemented by timm's `Beit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memtok.layers.base import Family, Layer, Positions
from memtok.layers.eva import scaled_by_gamma, separate_biases


class BeitLayer(Layer):
    """timm's `Block` of `Beit`: biases of queries and values alone, a bias by relative position."""

    def position_bias(self, positions: Positions) -> Tensor | None:
        return positions

    def bias(self) -> Tensor | None:
        return separate_biases(self.attention)

    def scale_branch(self, branch: int, update: Tensor) -> Tensor:
        return scaled_by_gamma(self.block, branch, update)


class Beit(Family):
    """timm's `Beit`, with relative positions of each layer, shared by all layers, or without."""

    layer = BeitLayer

    def enter(self, vit: Any, images: Tensor) -> Tensor:
        patches = vit.patch_embed(images)
        tokens: Tensor = torch.cat((vit.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        return tokens if vit.pos_embed is None else tokens + vit.pos_embed

    def positions(self, vit: Any) -> Sequence[Positions]:
        """For each layer what is added to the scores of image tokens: (1, H, N, N), or (H, N, N) if all share it.

        The shapes are timm's: torch's kernels do not give the same bits for the two.
        """
        shared: Tensor | None = None if vit.rel_pos_bias is None else vit.rel_pos_bias()
        own = [block.attn.relative_position_bias_table for block in vit.blocks]
        biases = [
            None if table is None else looked_up(table, block.attn)
            for table, block in zip(own, vit.blocks, strict=True)
        ]
        return [shared if bias is None else bias if shared is None else bias + shared for bias in biases]


def looked_up(table: Tensor, attention: Any) -> Tensor:
    """(1, H, N, N) of a table (distances, H), by the distance of each two tokens."""
    index: Tensor = attention.relative_position_index
    return table[index.flatten()].reshape(*index.shape, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
