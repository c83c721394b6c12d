"""What is cached of an image: a few named tensors. Manifest, shards, batches and sizes follow from this one list.

Letters for shapes: B images of a batch, L layers, N tokens of the trunk, D width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memtok.backbone import Backbone
from memtok.levels import NO_READS, Reads, Statistics
from memtok.trace import Trace

OF_LEVELS = "statistics."  # before the name of a statistic

Tensors = Mapping[str, tuple[str, Sequence[int]]]
"""Precision, such as "float16", and shape of each tensor of a record, by name."""


@dataclass(frozen=True)
class Needs:
    """What is kept beside the features. inputs: those of every layer's attention, for class tokens; by far the most.

    statistics: of all levels of the trunk, by name; see `memtok.levels`.
    """

    inputs: bool = True
    statistics: frozenset[str] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        """What serves both."""
        return Needs(self.inputs or other.inputs, self.statistics | other.statistics)

    def reads(self, backbone: Backbone) -> Reads:
        """The same statistics of every level."""
        return Reads(backbone.depth + 1, self.statistics) if self.statistics else NO_READS


EVERYTHING, NO_NEEDS = Needs(), Needs(inputs=False)


def trace_tensors(backbone: Backbone, needs: Needs = EVERYTHING) -> Tensors:
    """The tensors of a record. Another one is another line here, and one in `TraceReader.traced`, which computes it."""
    found: dict[str, tuple[str, Sequence[int]]] = {"features": ("float32", (backbone.dim,))}  # see `Trace`
    if needs.inputs:
        found["inputs"] = ("float16", (backbone.depth, backbone.tokens, backbone.dim))
    for name in sorted(needs.statistics):
        found[OF_LEVELS + name] = ("float16", backbone.shape_of(name))
    return found


def of_tensors(tensors: Tensors) -> Needs:
    """What records of these tensors were made for."""
    names = frozenset(name.removeprefix(OF_LEVELS) for name in tensors if name.startswith(OF_LEVELS))
    return Needs("inputs" in tensors, names)


def record_type(tensors: Tensors) -> np.dtype[Any]:
    """A record as it lies on disk: one tensor after the other, without gaps."""
    return np.dtype([(name, precision, tuple(shape)) for name, (precision, shape) in tensors.items()])


@dataclass(frozen=True)
class KeptBatch:
    """Records of B images by name: features (B, D) float32, and as asked for inputs (B, L, N, D) and statistics.

    Statistics are `statistics.NAME` (B, L + 1, k, D); they and the inputs are float16, or float32 where an image of the
    batch is beyond half precision. Like a tensor of images a batch has a length, is cut along the images, and moves
    between devices.
    """

    tensors: Mapping[str, Tensor]

    @classmethod
    def empty(
        cls, tensors: Tensors, count: int, device: torch.device | None = None, *, pin_memory: bool = False
    ) -> KeptBatch:
        """Memory for the records of `count` images, without values yet."""
        return cls(
            {
                name: torch.empty(
                    (count, *shape), dtype=getattr(torch, precision), device=device, pin_memory=pin_memory
                )
                for name, (precision, shape) in tensors.items()
            }
        )

    @property
    def inputs(self) -> Tensor:
        """(B, L, N, D), where they were asked for."""
        return self.tensors["inputs"]

    @property
    def features(self) -> Tensor:
        """(B, D)."""
        return self.tensors["features"]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, images: Any) -> KeptBatch:
        """Those of some images: a slice, or anything else that indexes the first dimension of a tensor."""
        return KeptBatch({name: values[images] for name, values in self.tensors.items()})

    def tensor_split(self, count: int) -> list[KeptBatch]:
        """`count` parts, as `Tensor.tensor_split` cuts them."""
        cut = {name: values.tensor_split(count) for name, values in self.tensors.items()}
        return [KeptBatch({name: parts[number] for name, parts in cut.items()}) for number in range(count)]

    def to(self, device: torch.device, non_blocking: bool = False) -> KeptBatch:
        """The same on another device."""
        return KeptBatch({name: values.to(device, non_blocking=non_blocking) for name, values in self.tensors.items()})

    def clone(self) -> KeptBatch:
        """The same in memory of its own."""
        return KeptBatch({name: values.clone() for name, values in self.tensors.items()})

    def trace(self, dtype: torch.dtype) -> Trace:
        """What the tasks of a model answer from. dtype: of the backbone, for features; inputs are widened when read."""
        inputs = self.tensors.get("inputs")
        layers = () if inputs is None else inputs.unbind(1)  # (B, N, D) each
        if inputs is not None and inputs.dtype == dtype:  # no widening makes them contiguous
            layers = tuple(layer.contiguous() for layer in layers)
        return Trace(features=self.features.to(dtype), inputs=list(layers), statistics=self.statistics)

    @property
    def statistics(self) -> Statistics:
        """(B, L + 1, k, D) by name, widened by the tasks that read them."""
        return {n.removeprefix(OF_LEVELS): tensor for n, tensor in self.tensors.items() if n.startswith(OF_LEVELS)}
