"""The pieces of timm's attention block, apart: heads split, keys and values alone, plain attention, heads joined.

Everything takes timm's `Attention` module and changes nothing in it. Letters as in backbone.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


def split_heads(attention: Any, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each (B, H, n, d), of the output (B, n, 3 H d) of timm's joint projection."""
    batch, count, _ = qkv.shape
    heads = qkv.reshape(batch, count, 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
    query, key, value = heads.unbind(0)  # (B, H, n, d) each
    return attention.q_norm(query), attention.k_norm(key), value


def project_keys_and_values(attention: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values, each (B, H, n, d), of (B, n, D) tokens that ask nothing: a third of the projection is saved."""
    start = attention.attn_dim
    bias = None if attention.qkv.bias is None else attention.qkv.bias[start:]
    projected = F.linear(tokens, attention.qkv.weight[start:], bias)  # (B, n, 2 H d)
    batch, count, _ = projected.shape
    key, value = projected.reshape(batch, count, 2, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
    return attention.k_norm(key), value


def attend(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, H, n, d) of plain unmasked attention, by the kernel that timm would take."""
    if attention.fused_attn:
        return F.scaled_dot_product_attention(query, key, value)
    scores = (query * attention.scale) @ key.transpose(-2, -1)
    heads: Tensor = scores.softmax(dim=-1) @ value
    return heads


def join_heads(attention: Any, heads: Tensor, normed: Tensor) -> Tensor:
    """(B, n, H d) what the output projection of attention gets: heads (B, H, n, d) side by side, normed and gated.

    normed: (B, n, D) the input of the attention block, which the gate of some timm models reads.
    """
    batch, _, count, _ = heads.shape
    joined: Tensor = attention.norm(heads.transpose(1, 2).reshape(batch, count, attention.attn_dim))
    if attention.gate is not None:
        joined = joined * attention.gate(normed).sigmoid()
    return joined


def key_and_value_weights(attention: Any) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Of the joint projection: weights of keys and of values, each (H, d, D), and their biases, each (H, d) or None."""
    heads, width, dim = attention.num_heads, attention.head_dim, attention.qkv.weight.shape[1]
    _, key, value = attention.qkv.weight.reshape(3, heads, width, dim).unbind(0)
    if attention.qkv.bias is None:
        return key, value, None, None
    _, key_bias, value_bias = attention.qkv.bias.reshape(3, heads, width).unbind(0)
    return key, value, key_bias, value_bias


def can_absorb(attention: Any) -> bool:
    """Whether keys are a linear function of the inputs: not where timm norms them."""
    return isinstance(attention.k_norm, nn.Identity)
