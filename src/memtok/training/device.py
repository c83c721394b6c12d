"""Device, precision and processes, through accelerate. The order of the data is not its business.

Several processes (`accelerate launch`, `torchrun`): every process takes its rows of every batch, and gradients are
added up, so the result is that of one process up to rounding.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, broadcast
from torch import Tensor, nn
from torch.distributed import DistError

from memtok.errors import Argument, MemtokError
from memtok.launch import ADVICE, check_launch, launched_processes

logger = logging.getLogger("memtok")

MEETING = timedelta(minutes=30)  # that processes wait for each other, at the start and at every exchange
PATIENCE = 10.0  # seconds until a process says that it waits
MASTER = ("MASTER_ADDR", "MASTER_PORT")

SHARED_STATE = threading.RLock()
"""Held while accelerate's choices for the process are not the caller's."""


class OneProcess:
    """What training needs of an `Accelerator`, where one process trains: shares nothing with runs in other threads."""

    num_processes, process_index, is_main_process = 1, 0, True

    def __init__(self, device: torch.device, precision: str) -> None:
        self.device, self.precision = device, precision

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision where it was asked for."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Adds up the gradients."""
        torch.autograd.backward(loss)

    def clip_grad_norm_(self, parameters: Iterable[nn.Parameter], norm: float) -> Tensor:
        """Clips the gradients, and returns their norm before it."""
        return nn.utils.clip_grad_norm_(parameters, norm)

    def main_process_first(self) -> AbstractContextManager[None]:
        """Nobody to wait for."""
        return nullcontext()

    def wait_for_everyone(self) -> None:
        """Nobody to wait for."""


@contextmanager
def accelerator_for(device: str, precision: str) -> Iterator[Accelerator | OneProcess]:
    """An Accelerator for "auto", "cpu" or "cuda" and "float32" or "bf16"; a `OneProcess` where there is but one.

    accelerate keeps one set of choices per process. They are set aside and put back, so that runs may differ and an
    Accelerator of the caller's stays as it is. Runs of one process set them aside only while they ask for the
    device, so they may go on in several threads.
    """
    with SHARED_STATE, own_choices():
        accelerator = make_accelerator(device, precision)
        if accelerator.num_processes > 1:
            yield accelerator
            return
        place = accelerator.device
    yield OneProcess(place, precision)


@contextmanager
def own_choices() -> Iterator[None]:
    """Sets accelerate's choices for the process aside, and puts them back when the block ends."""
    shared = (AcceleratorState._shared_state, GradientState._shared_state, PartialState._shared_state)
    kept = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        yield
    finally:
        for state, content in zip(shared, kept, strict=True):
            state.clear()
            state.update(content)


def make_accelerator(device: str, precision: str) -> Accelerator:
    """The Accelerator itself; MemtokError if the device cannot do it, or if the other processes do not come."""
    check_launch()
    several = launched_processes() > 1
    try:
        with announced_meeting() if several else nullcontext():
            return Accelerator(
                # accelerate looks for other processes on the CPU only if it is told that the CPU trains
                cpu=device == "cpu" or (several and not torch.cuda.is_available()),
                mixed_precision="bf16" if precision == "bf16" else "no",
                # Parts of a batch may differ in size, so the loop itself divides by the size of the whole batch.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                kwargs_handlers=[InitProcessGroupKwargs(timeout=MEETING)],
            )
    except DistError as error:
        raise MemtokError(
            f"expected {meeting()}, found not all of them ({str(error).splitlines()[0][:200]}); {ADVICE}"
        ) from error
    except ValueError as error:
        raise MemtokError(
            f"expected a device that trains in {precision}, found one that does not ({' '.join(str(error).split())}); "
            f"use {Argument('precision', 'float32')} or another device"
        ) from error


def meeting() -> str:
    """The processes that a launcher started, and where they meet."""
    size, rank, address, port = (os.environ.get(name, "?") for name in ("WORLD_SIZE", "RANK", *MASTER))
    return f"{size} processes (WORLD_SIZE; this one is RANK {rank}) at {address}:{port}"


@contextmanager
def announced_meeting() -> Iterator[None]:
    """Says what is waited for if the processes that a launcher started do not find each other at once."""
    minutes = MEETING.total_seconds() / 60
    text = f"waiting for {meeting()}, for {minutes:.0f} minutes at most; {ADVICE}"
    timer = threading.Timer(PATIENCE, logger.warning, ["%s", text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def moved(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Modules on `device` while the block runs, then back where each was."""
    homes = [next(module.parameters()).device for module in modules]
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module, home in zip(modules, homes, strict=True):
            module.to(home)


@contextmanager
def kept_gpu_state(device: torch.device) -> Iterator[None]:
    """Puts the random generator of a CUDA device back as it was when the block ends."""
    if device.type != "cuda":
        yield
        return
    state = torch.cuda.get_rng_state(device)
    try:
        yield
    finally:
        torch.cuda.set_rng_state(state, device)


def add_up(accelerator: Accelerator | OneProcess, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each tensor over all processes; one exchange for all."""
    if isinstance(accelerator, OneProcess):
        return list(tensors)
    flat = accelerator.reduce(torch.cat([tensor.flatten() for tensor in tensors]), reduction="sum")
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def add_up_gradients(accelerator: Accelerator | OneProcess, parameters: Sequence[nn.Parameter]) -> None:
    """Adds the gradients of all processes."""
    if accelerator.num_processes > 1:
        with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in with_gradient if parameter.grad is not None]
        for parameter, total in zip(with_gradient, add_up(accelerator, gradients), strict=True):
            parameter.grad = total


def same_start(accelerator: Accelerator | OneProcess, parameters: Sequence[nn.Parameter]) -> None:
    """Gives every process the parameters of the first."""
    if accelerator.num_processes > 1:
        with torch.no_grad():
            for parameter in parameters:
                parameter.copy_(broadcast(parameter.detach().clone(), from_process=0))


def own_rows(accelerator: Accelerator | OneProcess, rows: Tensor) -> Tensor:
    """This process's rows of a batch; empty where there are fewer rows than processes."""
    return rows[accelerator.process_index :: accelerator.num_processes]
