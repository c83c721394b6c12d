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
from memtok.trace import Trace

Tensors = Mapping[str, tuple[str, Sequence[int]]]
"""Precision, such as "float16", and shape of each tensor of a record, by name."""


def trace_tensors(backbone: Backbone) -> Tensors:
    """The tensors of a record. Another one is another line here, and one in `TraceReader.traced`, which computes it."""
    return {
        "features": ("float32", (backbone.dim,)),  # the base class token after the final norm
        "inputs": ("float16", (backbone.depth, backbone.tokens, backbone.dim)),  # of attention, normalised
        "statistics": ("float16", (backbone.depth, *backbone.statistics_shape)),  # of the tokens after each layer
    }


def record_type(tensors: Tensors) -> np.dtype[Any]:
    """A record as it lies on disk: one tensor after the other, without gaps."""
    return np.dtype([(name, precision, tuple(shape)) for name, (precision, shape) in tensors.items()])


@dataclass(frozen=True)
class KeptBatch:
    """Records of B images by name: inputs (B, L, N, D) and statistics (B, L, S, D) float16, features (B, D) float32.

    They are float32 where an image of the batch is beyond half precision. Like a tensor of images a batch has a length,
    is cut along the images, and moves between devices.
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
        """(B, L, N, D)."""
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
        layers = self.inputs.unbind(1)  # (B, N, D) each
        if self.inputs.dtype == dtype:  # no widening makes them contiguous
            layers = tuple(layer.contiguous() for layer in layers)
        statistics = self.tensors["statistics"]  # widened by the tasks that read them
        return Trace(features=self.features.to(dtype), inputs=list(layers), statistics=statistics)
