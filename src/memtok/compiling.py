"""One layer of the trunk and one of the streams, compiled by `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from memtok.backbone import run_layer
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
