"""Device, precision and processes. The order of the data is not its business.

Several processes (`accelerate launch`, `torchrun`): every process takes its rows of every batch, and gradients are
all-reduced, so the result is that of one process up to rounding. They meet through accelerate, which keeps them and
their device for as long as they live; one process does without it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, reduce
from torch import Tensor, nn
from torch.distributed import DistError

from memtok.errors import Argument, MemtokError
from memtok.launch import ADVICE, check_launch, launched_on_cpu, launched_processes, mpi_processes

logger = logging.getLogger("memtok")

MEETING = timedelta(minutes=30)  # that processes wait for each other, at the start and at every exchange
PATIENCE = 10.0  # seconds until a process says that it waits
MASTER = ("MASTER_ADDR", "MASTER_PORT")


class Processes:
    """The processes that train together, and the device and the precision of this one; alone without a `state`."""

    def __init__(self, device: torch.device, precision: str, state: PartialState | None = None) -> None:
        self.device, self.precision, self.state = device, precision, state
        self.num_processes = 1 if state is None else state.num_processes
        self.process_index = 0 if state is None else state.process_index

    @property
    def is_main_process(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.process_index == 0

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision where it was asked for."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def main_process_first(self) -> AbstractContextManager[None]:
        """A block that the others enter when the first process has left it."""
        return nullcontext() if self.state is None else self.state.main_process_first()

    def wait_for_everyone(self) -> None:
        """Returns when all processes have come here."""
        if self.state is not None:
            self.state.wait_for_everyone()


def processes_for(device: str, precision: str) -> Processes:
    """For "auto", "cpu" or "cuda" and "float32" or "bf16": all processes that a launcher started, or this one alone.

    MemtokError if the device cannot do it, or if the other processes do not come. Launched processes keep the device
    that they met on, be it that of an Accelerator of the caller's; the precision may differ from run to run.
    """
    check_launch()
    if device == "auto" and launched_on_cpu():
        device = "cpu"
    # Those of MPI alone meet on the CPU only.
    if launched_processes() > 1 or (device == "cpu" and mpi_processes() > 1):
        found = met(device, precision)
    else:
        found = Processes(chosen_device(device), precision)
    try:
        found.autocast()
    except RuntimeError as error:
        raise MemtokError(
            f"expected a device that trains in {precision}, found one that does not ({' '.join(str(error).split())}); "
            f"use {Argument('precision', 'float32')} or another device"
        ) from error
    return found


def chosen_device(device: str) -> torch.device:
    """The device by name; of "auto" a GPU or another accelerator that torch knows, else the CPU."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if hasattr(torch, "accelerator") and torch.accelerator.is_available():  # torch 2.6
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return torch.device("cpu")


def met(device: str, precision: str) -> Processes:
    """This process among those of a launcher, when all are there."""
    cpu = device == "cpu" or not torch.cuda.is_available()  # accelerate does not look for processes there unasked
    try:
        with announced_meeting() if launched_processes() > 1 else nullcontext():
            state = PartialState(cpu=cpu, timeout=MEETING)
    except DistError as error:
        raise MemtokError(
            f"expected {meeting()}, found not all of them ({str(error).splitlines()[0][:200]}); {ADVICE}"
        ) from error
    if device not in ("auto", state.device.type):
        raise MemtokError(
            f"expected {Argument('device', state.device.type)}, on which these processes met, found "
            f"{Argument('device', device)}; use one device in all runs of a launch"
        )
    return Processes(state.device, precision, state)


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


def add_up(processes: Processes, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each tensor over all processes; one exchange for all."""
    if processes.num_processes == 1:
        return list(tensors)
    flat = reduce(torch.cat([tensor.flatten() for tensor in tensors]), reduction="sum")
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def add_up_gradients(processes: Processes, parameters: Sequence[nn.Parameter]) -> None:
    """Adds the gradients of all processes."""
    if processes.num_processes > 1:
        with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in with_gradient if parameter.grad is not None]
        for parameter, total in zip(with_gradient, add_up(processes, gradients), strict=True):
            parameter.grad = total


def same_start(processes: Processes, parameters: Sequence[nn.Parameter]) -> None:
    """Gives every process the parameters of the first."""
    if processes.num_processes > 1:
        with torch.no_grad():
            for parameter in parameters:
                parameter.copy_(broadcast(parameter.detach().clone(), from_process=0))


def own_rows(processes: Processes, rows: Tensor) -> Tensor:
    """This process's rows of a batch; empty where there are fewer rows than processes."""
    return rows[processes.process_index :: processes.num_processes]
