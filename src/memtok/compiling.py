"""Code that `torch.compile` makes: of one layer of the trunk and of the streams, and of other functions of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Self

import torch
from torch import Tensor

from memtok.backbone import run_layer
from memtok.layers import Layer
from memtok.streams import stream_layer
from memtok.trace import Kept


@dataclass(frozen=True)
class Compiled:
    """One layer of the trunk and of the streams, compiled: `run_layer` and `stream_layer`."""

    trunk: Callable[..., tuple[Tensor, Kept | tuple[()]]]
    streams: Callable[..., tuple[Tensor, list[Tensor]]]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The same: code has no state of its own."""
        return self


def shared_layers(*args: Any, **kwargs: Any) -> Compiled:
    """Both layers by `torch.compile`, whose arguments these are. All that is compiled so shares torch's 8 versions."""
    return Compiled(torch.compile(run_layer, *args, **kwargs), torch.compile(stream_layer, *args, **kwargs))


def own_layers(*args: Any, **kwargs: Any) -> Compiled:
    """Both layers with versions of their own, each for batches of any size from 2 on."""
    trunk_code, streams_code = own_code(run_layer, *args, **kwargs), own_code(stream_layer, *args, **kwargs)

    def trunk(layer: Layer, x: Tensor, *more: Any) -> tuple[Tensor, Kept | tuple[()]]:
        any_batch(x)
        found: tuple[Tensor, Kept | tuple[()]] = trunk_code(layer, x, *more)
        return found

    def streams(layer: Layer, *more: Any) -> tuple[Tensor, list[Tensor]]:
        *_, x, kept = more
        any_batch(x, *kept)
        found: tuple[Tensor, list[Tensor]] = streams_code(layer, *more)
        return found

    return Compiled(trunk, streams)


def own_code(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """A copy of `function` by `torch.compile`, whose arguments the others are.

    Torch keeps what it compiled with the code object, 8 versions of it. A copy has its own: runs in one process take
    no versions away from each other, nor from the user.
    """
    assert isinstance(function, FunctionType)
    twin = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    compiled: Callable[..., Any] = torch.compile(twin, *args, **kwargs)
    return compiled


def any_batch(*tensors: Tensor) -> None:
    """Tells torch, before it compiles, that the first dimension may have any size: the last batch is smaller."""
    import torch._dynamo

    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
