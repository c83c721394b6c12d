"""Keeps what follows from the tasks alone, for as long as they do not change.

When nothing trains, memory keys and values are computed once and serve every batch. They are keyed on the parameters
themselves: the same objects, at the same place in memory, of the same version (torch counts every change in place), and
on all else that they follow from. So an optimizer step, a loaded state or a move to another device is noticed.

What cannot be noticed is a write through `parameter.data`, which torch does not count; change parameters under
`torch.no_grad()` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from memtok.backbone import Backbone
    from memtok.streams import Values


class Folding:
    """One set of values and what it was made of."""

    def __init__(self) -> None:
        self.kept: Values | None = None
        self.tensors: list[Tensor] = []
        self.aliases: list[Tensor] = []  # they hold on to the memory, so that no other tensor can come to lie there
        self.versions: list[int] = []
        self.circumstances: tuple[object, ...] = ()

    def values(self, tensors: Sequence[Tensor], backbone: Backbone, compute: Callable[[], Values]) -> Values:
        """The kept values if they are those of `tensors` and `backbone` as they are now, else computed anew.

        With gradients, nothing is kept: the values belong to one step.
        """
        trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if trains or torch.compiler.is_compiling() or any(tensor.is_inference() for tensor in tensors):
            self.forget()
            return compute()
        read = [*tensors, backbone.vit.blocks[0].attn.qkv.weight]  # the first is enough to notice a move
        around = circumstances(backbone)
        if self.kept is None or around != self.circumstances or not self.unchanged(read):
            self.forget()
            with torch.inference_mode(False), torch.no_grad():  # the values may serve outside as well
                self.kept = compute()
            self.tensors, self.circumstances = read, around
            self.aliases = [tensor.detach() for tensor in read]
            self.versions = [tensor._version for tensor in read]
        return self.kept

    def unchanged(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the tensors that the values were made of, with the values that they had."""
        return len(tensors) == len(self.tensors) and all(
            tensor is old and tensor._version == version and tensor.data_ptr() == alias.data_ptr()
            for tensor, old, version, alias in zip(tensors, self.tensors, self.versions, self.aliases, strict=True)
        )

    def forget(self) -> None:
        """Drops the values."""
        self.__init__()  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy of a model starts without."""
        return type(self)()

    def __getstate__(self) -> dict[str, Any]:
        """A pickled model goes without."""
        return vars(type(self)())


def circumstances(backbone: Backbone) -> tuple[object, ...]:
    """What the values depend on beside the tensors."""
    kind = backbone.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return id(backbone), backbone.device, backbone.dtype, autocast
