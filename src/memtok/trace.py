"""The trace: what one pass of the trunk leaves behind for the task streams, and how class tokens read it.

A trace has one of two forms. Keys and values of every layer are what the trunk computes anyway. The normalised inputs
of attention take half the memory and are what is kept on disk; from them keys and values are computed anew, or, for few
queries, their projections are absorbed: q (W x) = (q W) x, so that W meets the queries instead of all N tokens (the
trick of multi-head latent attention, DeepSeek-V2, arXiv 2405.04434). Which of the two is cheaper follows from the
sizes (`Layer.break_even`). Letters as in layers/base.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from memtok.layers import Layer, Positions
from memtok.levels import Statistics

Kept = tuple[Tensor] | tuple[Tensor, Tensor]
"""Of one layer: the normalised inputs (B, N, D), or keys and values (B, H, N, d)."""


class TrunkLayer(Protocol):
    """One layer of a trace, as class tokens read it. bias: (..., H, 1, N) of positions, None without."""

    @property
    def bias(self) -> Tensor | None: ...

    def scores(self, query: Tensor) -> Tensor:
        """(B, H, T, N) scaled queries (B, H, T, d) times the keys of the trunk's tokens, with the bias of positions."""

    def read(self, probabilities: Tensor) -> Tensor:
        """(B, H, T, d) sums of the trunk's values, weighted by probabilities (B, H, T, N)."""


@dataclass(frozen=True)
class KeysAndValues:
    """A layer's keys and values, (B, H, N, d) each; bias: (..., H, 1, N) of positions, None without."""

    key: Tensor
    value: Tensor
    bias: Tensor | None

    def scores(self, query: Tensor) -> Tensor:
        scores = query @ self.key.transpose(-2, -1)
        return scores if self.bias is None else scores + self.bias

    def read(self, probabilities: Tensor) -> Tensor:
        return probabilities @ self.value


@dataclass(frozen=True)
class AbsorbedInputs:
    """A layer's normalised inputs (B, N, D), whose projections are applied to the queries and to what they read."""

    layer: Layer
    inputs: Tensor
    bias: Tensor | None

    def scores(self, query: Tensor) -> Tensor:
        weight, _, bias, _ = self.layer.key_and_value_weights()
        batch, heads, count, _ = query.shape
        wide = per_head(query, weight)  # (B, H, T, D)
        scores = (wide.flatten(1, 2) @ self.inputs.transpose(-2, -1)).reshape(batch, heads, count, self.inputs.shape[1])
        if bias is not None:  # the same for all N tokens, but not for memory, which stands in the same softmax
            scores = scores + query @ bias.unsqueeze(-1)
        return scores if self.bias is None else scores + self.bias

    def read(self, probabilities: Tensor) -> Tensor:
        _, weight, _, bias = self.layer.key_and_value_weights()
        batch, heads, count, _ = probabilities.shape
        mixed = (probabilities.flatten(1, 2) @ self.inputs).reshape(
            batch, heads, count, self.inputs.shape[2]
        )  # (B, H, T, D)
        read = per_head(mixed, weight.transpose(-2, -1))  # (B, H, T, d)
        return read if bias is None else read + probabilities.sum(dim=-1, keepdim=True) * bias.unsqueeze(1)


def per_head(rows: Tensor, weight: Tensor) -> Tensor:
    """(B, H, T, outputs): rows (B, H, T, inputs) times weights (H, inputs, outputs).

    A plain matmul would copy the weights for every image.
    """
    batch, heads, count, _ = rows.shape
    product = rows.transpose(0, 1).flatten(1, 2) @ weight  # (H, B T, outputs)
    return product.reshape(heads, batch, count, weight.shape[-1]).transpose(0, 1)


@dataclass(frozen=True)
class Trace:
    """Features of one pass of the trunk. The first three are empty unless requested.

    keys, values: one tensor (B, H, N, d) per layer; inputs: instead of these, the output (B, N, D) of each layer's
    first norm, in any precision. features: (B, D) the base class token after the final norm, None when the last layer
    was skipped. base: (B, base classes) the timm model's own answer, None without a classifier or when the last layer
    was skipped. backbone: the fingerprint of the one that made it, None for a trace assembled by the caller.
    statistics: (B, n, k, D) by name, of the last n levels; see `memtok.levels`. Empty unless requested.
    """

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    features: Tensor | None = None
    base: Tensor | None = None
    inputs: list[Tensor] = field(default_factory=list)
    backbone: str | None = None
    statistics: Statistics = field(default_factory=dict)

    @property
    def layers(self) -> list[Kept]:
        """What was kept of each layer; empty if nothing was."""
        if self.inputs:
            return [(inputs,) for inputs in self.inputs]
        return list(zip(self.keys, self.values, strict=True))

    def append(self, kept: Kept) -> None:
        """Adds what was kept of the next layer."""
        if len(kept) == 1:
            self.inputs.append(kept[0])
        else:
            # Copies: views would hold the queries in memory as well, and every reader would copy them anyway.
            self.keys.append(kept[0].contiguous())
            self.values.append(kept[1].contiguous())


def matched(kept: Kept, precision: torch.dtype) -> Kept:
    """What was kept of a layer in the precision of queries that come in `precision`, or in what autocast makes of it.

    Inputs stay as they are: `read_layer` widens them.
    """
    if len(kept) == 1:
        return kept
    kind = kept[0].device.type
    if torch.is_autocast_enabled(kind):
        precision = torch.get_autocast_dtype(kind)
    return kept[0].to(precision), kept[1].to(precision)


def rotated_keys_and_values(layer: Layer, inputs: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
    """Keys and values, (B, H, N, d) each, of the trunk's normalised inputs (B, N, D)."""
    key, value = layer.keys_and_values(inputs)
    return layer.rotate(key, positions), value


def read_layer(layer: Layer, kept: Kept, positions: Positions, queries: int) -> TrunkLayer:
    """What was kept of a layer, as `queries` class tokens read it."""
    bias = class_bias(layer, positions)
    if len(kept) == 2:
        # Laid out once: the products of every bucket would each do it for themselves, and keep it for their gradient.
        return KeysAndValues(kept[0].contiguous(), kept[1].contiguous(), bias)
    inputs = kept[0].to(layer.dtype)
    if layer.absorbs and queries < layer.break_even(inputs.shape[1], training=torch.is_grad_enabled()):
        return AbsorbedInputs(layer, inputs, bias)
    key, value = rotated_keys_and_values(layer, inputs, positions)
    return KeysAndValues(key.contiguous(), value.contiguous(), bias)


def class_bias(layer: Layer, positions: Positions) -> Tensor | None:
    """(..., H, 1, N) what is added to the scores of a class token; column 0 is for its scores over class tokens."""
    bias = layer.position_bias(positions)
    return None if bias is None else bias[..., :1, :]
