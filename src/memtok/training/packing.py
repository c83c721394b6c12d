"""Frozen weights packed once for products of few rows: what a run from kept traces spends most of its time on.

There nobody reads the backbone but the class tokens, one row per image and query. A BLAS brings a matrix into the order
of its kernel at every call, which with few rows takes as long as the product itself. Intel's MKL can do it once and
keep the result (`cblas_sgemm_pack`, `cblas_sgemm_compute`), and torch has both as operators; without them all is as
ever. Packed weights take their own room again, once for the forward and once for the backward pass; a live run, whose
trunk has rows enough, goes without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from memtok.backbone import Backbone

MOST_ROWS = 96
"""With more rows packing is a small part of a product, and a packed one has nothing to gain."""

SHARE = 8
"""Packed weights may take the machine's memory divided by this."""


@dataclass(frozen=True)
class Packed:
    """A weight W (outputs, inputs) as it was, and packed: for x W^T of `rows` rows, and for the gradient, g W."""

    weight: Tensor
    version: int
    rows: int
    forward: Tensor
    backward: Tensor


class PackedWeights(TorchFunctionMode):
    """A context in which linear layers of a backbone's blocks compute with packed weights where that pays.

    It does where a gradient is wanted of at most `MOST_ROWS` rows. A weight is packed for one number of rows, the first
    that comes; others are computed as ever. A part of a weight, such as that of keys and values, which memory meets, is
    a weight of its own.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.storages = {weight.untyped_storage().data_ptr() for weight in matrices(backbone)}
        self.packed: dict[tuple[int, torch.Size], Packed] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is F.linear and not kwargs:
            packed = self.packed_for(args[0], args[1])
            if packed is not None:
                return FewRows.apply(args[0], packed, args[2] if len(args) > 2 else None)
        return function(*args, **(kwargs or {}))

    def packed_for(self, inputs: Tensor, weight: Tensor) -> Packed | None:
        """The packed form of a weight, for inputs (..., inputs); None where they are to be computed as ever."""
        rows = inputs.numel() // inputs.shape[-1]
        if not (torch.is_grad_enabled() and inputs.requires_grad) or torch.is_autocast_enabled("cpu"):
            return None
        if not 1 < rows <= MOST_ROWS or inputs.dtype != torch.float32 or weight.requires_grad:
            return None
        if weight.untyped_storage().data_ptr() not in self.storages or not weight.is_contiguous():
            return None
        key = weight.data_ptr(), weight.shape
        found = self.packed.get(key)
        if found is None or found.version != weight._version:
            found = self.packed[key] = pack(weight, rows)
        return found if found.rows == rows else None


class FewRows(torch.autograd.Function):
    """x W^T + b, (..., outputs) of (..., inputs), with a packed weight that has no gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return product(inputs, packed.forward, packed.weight, bias, packed.rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        packed = ctx.packed
        return product(gradient, packed.backward, packed.weight.t(), None, packed.rows), None, None


def product(rows: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None, count: int) -> Tensor:
    """`rows` (..., inputs) times a packed weight (outputs, inputs), plus bias (outputs,): (..., outputs)."""
    result: Tensor = torch.ops.mkl._mkl_linear(rows, packed, weight, bias, count)
    return result


@torch.no_grad()
def pack(weight: Tensor, rows: int) -> Packed:
    """Packs a weight (outputs, inputs) for products with so many rows."""
    reorder = torch.ops.mkl._mkl_reorder_linear_weight
    return Packed(
        weight=weight,
        version=weight._version,
        rows=rows,
        forward=reorder(weight.detach(), rows),
        backward=reorder(weight.detach().t().contiguous(), rows),
    )


def can_pack(backbone: Backbone) -> bool:
    """Whether torch can pack this backbone's weights here, and the machine has the room."""
    if backbone.device.type != "cpu" or backbone.dtype != torch.float32 or not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    import psutil

    room = 2 * sum(weight.numel() * weight.element_size() for weight in matrices(backbone))
    return hasattr(torch.ops.mkl, "_mkl_linear") and room <= psutil.virtual_memory().total // SHARE


def matrices(backbone: Backbone) -> list[Tensor]:
    """The weights of all linear layers of the blocks."""
    modules = backbone.vit.blocks.modules()
    return [module.weight for module in modules if isinstance(module, torch.nn.Linear)]
