"""timm's `Eva`: EVA, EVA-02, DINOv3, Perception Encoder, and ViTs with rotary positions.

Rotary positions rotate the queries and keys of patches (Su et al., arXiv 2104.09864; in two dimensions Heo et al., ECCV
2024, arXiv 2403.13298). Prefix tokens, the class tokens of tasks and memory have no position: theirs are not rotated.

Source: Fang et al., CVPR 2023 (arXiv 2211.07636), arXiv 2303.11331, and DINOv3 (arXiv 2508.10104), as implemented by
timm's `Eva`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

from memtok.layers.base import Adapt, Family, Layer, Positions, norm_before, unadapted


class EvaLayer(Layer):
    """timm's `EvaBlock`: projections joint or apart, biases of queries and values alone, rotary positions.

    Attributes:
        key_heads: heads of keys and values; fewer than H where several queries share one (grouped-query attention).
    """

    def __init__(self, block: Any, *, rotary: bool) -> None:
        super().__init__(block)
        self.rotary = rotary
        self.key_heads = int(getattr(self.attention, "num_kv_heads", self.heads))

    @property
    def projected(self) -> int:
        return self.inner + 2 * self.key_heads * self.head_dim

    @property
    def absorbs(self) -> bool:
        return super().absorbs and not self.rotary

    def queries_keys_values(self, normed: Tensor, adapt: Adapt = unadapted) -> tuple[Tensor, Tensor, Tensor]:
        if self.attention.qkv is not None:
            return super().queries_keys_values(normed, adapt)
        apart = [projection(normed) for projection in self.projections()]
        if adapt is not unadapted:  # adapters act on all three at once; the trunk is spared the copy
            together = adapt("qkv", normed, torch.cat(apart, dim=-1))
            apart = list(torch.split(together, [part.shape[-1] for part in apart], dim=-1))
        query, key, value = map(self.split_heads, apart)
        return self.part("q_norm")(query), self.shared(self.part("k_norm")(key), dim=1), self.shared(value, dim=1)

    def keys_and_values(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        if self.attention.qkv is not None:
            return super().keys_and_values(normed)
        key, value = (self.split_heads(projection(normed)) for projection in self.projections()[1:])
        return self.shared(self.part("k_norm")(key), dim=1), self.shared(value, dim=1)

    def projections(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Those of queries, keys and values, where they are apart."""
        return self.attention.q_proj, self.attention.k_proj, self.attention.v_proj

    def split_heads(self, projected: Tensor) -> Tensor:
        """(B, heads, n, d) of (B, n, heads d)."""
        batch, count, width = projected.shape
        return projected.reshape(batch, count, width // self.head_dim, self.head_dim).transpose(1, 2)

    def shared(self, of_key_heads: Tensor, dim: int) -> Tensor:
        """What all H heads read, of that of the key heads along `dim`."""
        groups = self.heads // self.key_heads
        return of_key_heads if groups == 1 else of_key_heads.repeat_interleave(groups, dim=dim)

    def rotate(self, rows: Tensor, positions: Positions) -> Tensor:
        if positions is None:
            return rows
        prefix = rows.shape[2] - positions.shape[-2]
        half = getattr(self.attention, "rotate_half", False)
        turned = apply_rot_embed_cat(rows[:, :, prefix:], positions, half=half)
        return torch.cat([rows[:, :, :prefix], turned], dim=2).type_as(rows)

    def bias(self) -> Tensor | None:
        return separate_biases(self.attention)

    def key_and_value_weights(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        if self.attention.qkv is not None:
            return super().key_and_value_weights()
        found = []
        for name, shape in (("weight", (self.key_heads, self.head_dim, self.dim)), ("bias", (self.key_heads, -1))):
            values = [getattr(projection, name) for projection in self.projections()[1:]]
            found += [None if value is None else self.shared(value.reshape(shape), dim=0) for value in values]
        key, value, key_bias, value_bias = found
        assert key is not None
        assert value is not None
        return key, value, key_bias, value_bias

    def scale_branch(self, branch: int, update: Tensor) -> Tensor:
        return scaled_by_gamma(self.block, branch, update)


def separate_biases(attention: Any) -> Tensor | None:
    """(3 H d,) the bias of a joint projection whose queries, keys and values have theirs apart, or one for all."""
    bias: Tensor | None = attention.qkv.bias
    if bias is None and getattr(attention, "q_bias", None) is not None:
        return torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
    return bias


def scaled_by_gamma(block: Any, branch: int, update: Tensor) -> Tensor:
    """(B, n, D) an update under the block's `gamma_1` or `gamma_2`, as it is without."""
    scale: Tensor | None = block.gamma_1 if branch == 1 else block.gamma_2
    return update if scale is None else scale * update


class Eva(Family):
    """timm's `Eva`, with and without rotary positions, with and without class token."""

    layer = EvaLayer

    def layers(self, vit: Any) -> tuple[Layer, ...]:
        return tuple(EvaLayer(block, rotary=vit.rope is not None) for block in vit.blocks)

    def enter(self, vit: Any, images: Tensor) -> Tensor:
        # See `Vit.enter`: timm has no public method for this.
        entered: Tensor = norm_before(vit)(vit._pos_embed(vit.patch_embed(images))[0])
        return entered

    def positions(self, vit: Any) -> Sequence[Positions]:
        """The rotary table of each layer: sines and cosines (P, 2 d), or (H, P, 2 d) where heads have their own."""
        if vit.rope is None:
            return super().positions(vit)
        grid = vit.patch_embed.grid_size if vit.dynamic_img_size else None
        table: Tensor = vit.rope.get_embed(shape=grid)
        return table.unbind(0) if vit.rope_mixed else [table] * len(vit.blocks)
