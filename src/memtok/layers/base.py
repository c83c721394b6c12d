"""One layer of a trunk, in the verbs that the trunk, the task streams, the reference and the variants are written in.

A `Layer` wraps one block of timm and changes nothing in it; a `Family` says how models of one kind of block turn images
into tokens and what their positions are. What a layer costs is written here, beside it.

Letters for shapes, here and everywhere else:
    B  images in the batch          L  layers (depth)          H  attention heads
    N  tokens of the trunk: prefix tokens (class, distillation, register), then P patches
    T  class tokens of tasks        M  memory cells            D  width of a token      d  width of a head
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Adapt = Callable[[str, Tensor, Tensor], Tensor]
"""(name of a projection, its input, its output) -> its output with the tasks' adapters added."""

Positions = Tensor | None
"""The positions of the image tokens as attention uses them: a rotary table, a bias, or None; see the family."""

IDENTITY = nn.Identity()


def unadapted(name: str, inputs: Tensor, outputs: Tensor) -> Tensor:
    """The output of a projection as it is."""
    return outputs


class Layer(ABC):
    """One block: norm, attention, residual, norm, MLP, residual. Tokens are (B, n, D), any number of them.

    Queries, keys and values come from one joint projection unless a family says otherwise.

    Attributes:
        block, attention: timm's modules. heads: H. head_dim: d. inner: H d. dim: D.
    """

    def __init__(self, block: Any) -> None:
        self.block, self.attention = block, block.attn
        self.heads = int(self.attention.num_heads)
        self.dim, self.inner = int(self.attention.proj.out_features), int(self.attention.proj.in_features)
        self.head_dim = self.inner // self.heads

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        dtype: torch.dtype = self.attention.proj.weight.dtype
        return dtype

    @property
    def projected(self) -> int:
        """Outputs of the projection to queries, keys and values, all of them side by side."""
        return 3 * self.inner

    @property
    def hidden(self) -> int:
        """Outputs of the MLP's first matrices, both halves of a gated unit counted."""
        linears = [module for module in self.block.mlp.modules() if isinstance(module, nn.Linear)]
        return sum(linear.out_features for linear in linears[:-1])

    @property
    def absorbs(self) -> bool:
        """Whether keys are a linear function of the normalised inputs, so that queries can absorb their projection."""
        return isinstance(self.part("k_norm"), nn.Identity)

    # The verbs, in the order in which a layer uses them.

    def normed(self, x: Tensor) -> Tensor:
        """(B, n, D) the normalised input of attention."""
        normed: Tensor = self.block.norm1(x)
        return normed

    def queries_keys_values(self, normed: Tensor, adapt: Adapt = unadapted) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, n, d), without positions."""
        batch, count, _ = normed.shape
        projected = adapt("qkv", normed, F.linear(normed, self.attention.qkv.weight, self.bias()))
        query, key, value = projected.reshape(batch, count, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.part("q_norm")(query), self.part("k_norm")(key), value

    def keys_and_values(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values alone, each (B, H, n, d), without positions: a third of the projection is saved."""
        batch, count, _ = normed.shape
        bias = self.bias()
        weight = self.attention.qkv.weight[self.inner :]
        projected = F.linear(normed, weight, None if bias is None else bias[self.inner :])  # (B, n, 2 H d)
        key, value = projected.reshape(batch, count, 2, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.part("k_norm")(key), value

    def rotate(self, rows: Tensor, positions: Positions) -> Tensor:
        """Queries or keys (B, H, n, d) of image tokens with rotary positions applied; patches are the last of them."""
        return rows

    def position_bias(self, positions: Positions) -> Tensor | None:
        """(..., H, N, N) what is added to the score of query i and key j, both image tokens; None for nothing.

        Row 0 is the class token's, which the class tokens of tasks take; column 0 of it is theirs to each other.
        """
        return None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, positions: Positions) -> Tensor:
        """(B, H, N, d) the attention of image tokens to each other, by the kernel that timm would take."""
        bias = self.position_bias(positions)
        if self.attention.fused_attn:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        scores = (query * self.scale) @ key.transpose(-2, -1)
        heads: Tensor = (scores if bias is None else scores + bias).softmax(dim=-1) @ value
        return heads

    def add_attention(self, x: Tensor, heads: Tensor, normed: Tensor, adapt: Adapt = unadapted) -> Tensor:
        """(B, n, D) tokens with the output of attention added.

        heads: (B, H, n, d). normed: (B, n, D) the input of attention, which the gate of some models reads.
        """
        batch, _, count, _ = heads.shape
        joined = self.part("norm")(heads.transpose(1, 2).reshape(batch, count, self.inner))
        gate = getattr(self.attention, "gate", None)
        if gate is not None:
            joined = joined * gate(normed).sigmoid()
        return x + self.scale_branch(1, adapt("proj", joined, self.attention.proj(joined)))

    def add_mlp(self, x: Tensor, adapt: Adapt = unadapted) -> Tensor:
        """(B, n, D) tokens with the output of the MLP added: the end of the layer."""
        normed = self.block.norm2(x)
        return x + self.scale_branch(2, adapt("mlp", normed, self.block.mlp(normed)))

    # What they are made of.

    @property
    def scale(self) -> float:
        """What queries are multiplied by before they meet keys."""
        return float(self.attention.scale)

    def part(self, name: str) -> nn.Module:
        """A norm of the attention module; an identity where the family has none."""
        found: nn.Module = getattr(self.attention, name, IDENTITY)
        return found

    @abstractmethod
    def bias(self) -> Tensor | None:
        """(3 H d,) the bias of the joint projection, None without."""

    @abstractmethod
    def scale_branch(self, branch: int, update: Tensor) -> Tensor:
        """(B, n, D) the output of attention (branch 1) or of the MLP (branch 2) under the block's layer scale."""

    def key_and_value_weights(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Weights of keys and of values, each (H, d, D), and their biases, each (H, d) or None."""
        _, key, value = self.attention.qkv.weight.reshape(3, self.heads, self.head_dim, self.dim).unbind(0)
        bias = self.bias()
        if bias is None:
            return key, value, None, None
        _, key_bias, value_bias = bias.reshape(3, self.heads, self.head_dim).unbind(0)
        return key, value, key_bias, value_bias

    # What a layer costs, in multiply-adds for one image.

    def cost(self, tokens: int, seen: int | None = None) -> int:
        """Of `tokens` that attend to `seen` keys each, by default to each other: matrices, then scores and sums."""
        matrices = sum(int(parameter.numel()) for parameter in self.block.parameters() if parameter.ndim == 2)
        return tokens * matrices + 2 * tokens * (tokens if seen is None else seen) * self.inner

    def absorbing_cost(self, tokens: int) -> int:
        """What a query costs more with absorbed projections than without, over N `tokens` of the trunk.

        Without: 2 N (H d), scores and sums. With: 2 D (H d) for the two projections, and 2 N H D for scores and sums
        over inputs that are D wide in every head.
        """
        return 2 * self.dim * self.inner + 2 * tokens * self.heads * self.dim - 2 * tokens * self.inner

    def break_even(self, tokens: int, *, training: bool = False) -> float:
        """The number of queries per image from which on projecting all N `tokens` is cheaper than absorbing.

        A backward pass repeats what every query costs, twice the forward pass in all, but not the projection of the
        trunk's tokens, which has no gradient.
        """
        project = 2 * tokens * self.dim * self.inner
        return project / (self.absorbing_cost(tokens) * (2 if training else 1))


class Family(ABC):
    """Models with one kind of block: how images become tokens, and their positions. It holds no state."""

    layer: type[Layer]

    def layers(self, vit: Any) -> tuple[Layer, ...]:
        """The layers of a timm model, first to last."""
        return tuple(self.layer(block) for block in vit.blocks)

    @abstractmethod
    def enter(self, vit: Any, images: Tensor) -> Tensor:
        """(B, N, D) prefix tokens and patches as they enter the first layer, of images (B, 3, height, width)."""

    def positions(self, vit: Any) -> Sequence[Positions]:
        """The positions of the image tokens, for each layer."""
        return [None] * len(vit.blocks)

    def class_position(self, vit: Any) -> Tensor | None:
        """(D,) what the class token gets added before the first layer; None without class token or without position."""
        if vit.cls_token is None or vit.pos_embed is None or getattr(vit, "no_embed_class", False):
            return None
        position: Tensor = vit.pos_embed[0, 0]
        return position

    def enter_class_tokens(self, vit: Any, class_tokens: Tensor) -> Tensor:
        """(..., D) class tokens as they enter the first layer: with their position, and under CLIP's norm."""
        position = self.class_position(vit)
        entered: Tensor = norm_before(vit)(class_tokens if position is None else class_tokens + position)
        return entered


def final_norm(vit: Any, tokens: Tensor) -> Tensor:
    """(..., D) tokens after the norm that precedes the head: `norm`, or `fc_norm` where the model pools first."""
    normed: Tensor = (vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm)(tokens)
    return normed


def norm_before(vit: Any) -> nn.Module:
    """The norm between embedding and first layer, an identity for most models."""
    norm: nn.Module = getattr(vit, "norm_pre", IDENTITY)
    return norm
