"""Keeps what follows from the tasks alone, for as long as they do not change.

When nothing trains, memory keys and values are computed once and serve every batch. They are keyed on the parameters
themselves: the same objects, at the same place in memory, of the same version (torch counts every change in place), and
on all else that they follow from. So an optimizer step, a loaded state or a move to another device is noticed.

Optimizers may write without being counted (torch's own with `fused=True` do), so every step of any optimizer counts.

What cannot be noticed is any other write that torch does not count, such as one through `parameter.data`; change
parameters under `torch.no_grad()` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

if TYPE_CHECKING:
    from memtok.backbone import Backbone
    from memtok.streams import Values


@dataclass(frozen=True)
class Folded:
    """Values and what they were made of. It never changes, so that several threads may answer with one model at once.

    aliases: they hold on to the memory of `tensors`, so that no other tensor can come to lie there.
    """

    values: Values
    tensors: list[Tensor]
    aliases: list[Tensor]
    versions: list[int]
    circumstances: tuple[object, ...]

    def unchanged(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the tensors that the values were made of, with the values that they had."""
        return len(tensors) == len(self.tensors) and all(
            tensor is old and tensor._version == version and tensor.data_ptr() == alias.data_ptr()
            for tensor, old, version, alias in zip(tensors, self.tensors, self.versions, self.aliases, strict=True)
        )


class Folding:
    """One set of values and what it was made of."""

    def __init__(self) -> None:
        self.kept: Folded | None = None

    def values(
        self,
        tensors: Sequence[Tensor],
        facts: tuple[object, ...],
        backbone: Backbone,
        compute: Callable[[], Values],
    ) -> Values:
        """The kept values if they are those of `tensors`, `facts` and `backbone` as they are now, else computed anew.

        facts: what the values depend on of the tasks beside their tensors. With gradients, nothing is kept: the values
        belong to one step.
        """
        trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        read = [*tensors, backbone.vit.blocks[0].attn.qkv.weight]  # the first is enough to notice a move
        if trains or torch.compiler.is_compiling() or any(tensor.is_inference() for tensor in read):
            self.forget()
            return compute()
        around = (*facts, *circumstances(backbone))
        kept = self.kept
        if kept is not None and kept.circumstances == around and kept.unchanged(read):
            return kept.values
        self.forget()
        # Read before the values are made: what another thread changes meanwhile shows the next time.
        versions, aliases = [tensor._version for tensor in read], [tensor.detach() for tensor in read]
        with torch.inference_mode(False), torch.no_grad():  # the values may serve outside as well
            values = compute()
        self.kept = Folded(values, read, aliases, versions, around)
        return values

    def forget(self) -> None:
        """Drops the values."""
        self.kept = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy of a model starts without."""
        return type(self)()

    def __getstate__(self) -> dict[str, Any]:
        """A pickled model goes without."""
        return vars(type(self)())


steps_of_optimizers = 0


def count_step(*_: Any) -> None:
    """Called by torch after every step of any optimizer. A compiled step counts its writes itself."""
    global steps_of_optimizers
    if not torch.compiler.is_compiling():
        steps_of_optimizers += 1


register_optimizer_step_post_hook(count_step)


def circumstances(backbone: Backbone) -> tuple[object, ...]:
    """What the values depend on beside the tasks."""
    kind = backbone.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    # What one stream of a GPU computes is not there yet for another.
    stream = torch.cuda.current_stream(backbone.device).cuda_stream if kind == "cuda" else None
    return id(backbone), backbone.device, backbone.dtype, autocast, stream, steps_of_optimizers
