"""What follows from the tasks alone, computed once for a whole block of answers: `with model.folded():`.

Outside of such a block nothing is kept: every pass computes memory keys and values from the parameters as they are. In
the block the model answers as it stood on entry. All that its answers depend on of the tasks is copied there, so that
no way of changing a parameter (an optimizer, `.data`, a numpy view) can mix new values with old ones.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from memtok.backbone import Backbone
    from memtok.task import Task


class Made(Protocol):
    """What follows from tasks, of some tensors."""

    def tensors(self) -> Iterable[Tensor]:
        """Those that were computed."""


T = TypeVar("T", bound=Made)


class Snapshot:
    """Copies of a model's tasks, without gradients, and the values made of them in each way of computing.

    It only ever grows by values that follow from the copies, so several threads may answer with it at once.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = copies(tasks)
        self.moved: dict[torch.device, tuple[Task, ...]] = {}
        self.kept: dict[tuple[object, ...], Any] = {}

    def on(self, device: torch.device) -> tuple[Task, ...]:
        """The copies where the backbone is now: a model may be moved inside the block."""
        if not self.tasks or self.tasks[0].memory.device == device:
            return self.tasks
        if device not in self.moved:
            self.moved[device] = copies(self.tasks, device)
        return self.moved[device]

    def once(self, what: str, backbone: Backbone, compute: Callable[[], T], *around: object) -> T:
        """What `compute` makes of the copies, made once on each device and stream, and for each `around`.

        A program that is exported has what an answer before it left here, as constants; without one it computes that.
        """
        compiling = torch.compiler.is_compiling()
        if compiling and not is_exporting():
            return compute()
        key = what, *place(backbone), *around
        if key in self.kept:
            kept: T = self.kept[key]
            return kept
        if compiling:
            return compute()
        with torch.inference_mode(False), torch.no_grad():  # they serve outside of inference mode as well
            made = compute()
        if may_stay(made, backbone):
            self.kept[key] = made
        return made


class Folding:
    """The blocks that a model is in. Copies of the model, deep or pickled, start outside of any."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.blocks = 0
        self.snapshot: Snapshot | None = None

    @contextmanager
    def block(self, tasks: Sequence[Task]) -> Iterator[None]:
        """One block, in one thread. Blocks that overlap share what the first of them found."""
        with self.lock:
            if self.snapshot is None:
                self.snapshot = Snapshot(tasks)
            self.blocks += 1
        try:
            yield
        finally:
            with self.lock:
                self.blocks -= 1
                if not self.blocks:
                    self.snapshot = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Folding, ()


def copies(tasks: Sequence[Task], device: torch.device | None = None) -> tuple[Task, ...]:
    """Copies of tasks that share no tensor with them and take no gradient."""
    with torch.inference_mode(False), torch.no_grad():
        copied = tuple(copy.deepcopy(task).requires_grad_(False) for task in tasks)
        return copied if device is None else tuple(task.to(device) for task in copied)


def place(backbone: Backbone) -> tuple[object, ...]:
    """Where something is computed, and can be read: what one stream of a GPU computes is not there yet for another."""
    device = backbone.device
    return device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None


def precision(backbone: Backbone) -> tuple[object, ...]:
    """What the backbone computes in, and what autocast makes of it."""
    kind = backbone.device.type
    return backbone.dtype, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def is_exporting() -> bool:
    """Whether `torch.export` is tracing; torch tells since version 2.7."""
    told = getattr(torch.compiler, "is_exporting", None)
    return told is not None and bool(told())


def may_stay(made: Made, backbone: Backbone) -> bool:
    """Whether these are numbers that a later call can use: not those of a trace, an export or a function transform."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    if backbone.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return False
    return all(map(is_plain, made.tensors()))


def is_plain(tensor: Tensor) -> bool:
    """Whether it holds numbers of its own: neither a fake tensor nor one that `torch.func` has wrapped."""
    return type(tensor) is Tensor and torch.func.debug_unwrap(tensor) is tensor
