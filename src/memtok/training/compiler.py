"""`compile=True`: what of a run `torch.compile` compiles, and what to say where it cannot.

Tasks that compose: one layer of the trunk and one of the streams, for all layers. Other regimes: the whole pass. What
is compiled for the first size of batch is compiled once more for all sizes from 2 on when another one comes: the last
batch of an epoch is smaller. So a run compiles in its first epoch and its first validation, and no more.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from memtok.backbone import run_layer
from memtok.compiling import Compiled
from memtok.errors import Argument, MemtokError
from memtok.streams import stream_layer

INDUCTOR = "inductor"  # torch's own compiler, which writes C++ for a CPU and Triton for a GPU
SHOWN = 160  # characters of what went wrong


@dataclass(frozen=True)
class Compiler:
    """Compiles for one run. backend: torch's name of what does it. layers: those of trunk and streams, compiled."""

    backend: str
    layers: Compiled

    def function(self, function: Callable[..., Tensor], *modules: Any) -> Callable[[Tensor], Tensor]:
        """`function(*modules, images)` as a function of images alone, (B, 3, height, width), compiled as a whole."""
        code = compiled(function, self.backend)
        return lambda images: code(*modules, images)


def make_compiler(choice: bool | str, device: torch.device) -> Compiler | None:
    """The compiler of a run on `device`; None where nothing is to be compiled. MemtokError if it does not work here."""
    if choice is False:
        return None
    backend = INDUCTOR if choice is True else choice
    if backend == INDUCTOR:
        check_inductor(device)
    return Compiler(backend, Compiled(compiled(run_layer, backend), compiled(stream_layer, backend)))


def check_compile(choice: bool | str) -> None:
    """MemtokError unless `choice` is True, False or the name of a backend of `torch.compile`."""
    if isinstance(choice, bool):
        return
    known = torch.compiler.list_backends(None) if isinstance(choice, str) else []
    if choice not in known:
        raise MemtokError(
            f"expected {Argument('compile')} as True, False or a backend of torch.compile, found {choice!r}; use "
            f"{Argument('compile', True)}"
        )


@cache  # asked at every pass of a sweep; a failure is not kept
def check_inductor(device: torch.device) -> None:
    """MemtokError unless torch's own compiler works for `device`: compiles a line and runs it."""
    try:
        # What an earlier run left in torch's cache does not show that the compiler is still there.
        torch.compile(a_line, backend=INDUCTOR, options={"fx_graph_cache": False})(torch.ones(64, device=device))
    except Exception as error:  # whatever it is, the run could not go on
        wanted = "C++ compiler" if device.type == "cpu" else "C++ compiler and Triton"
        raise MemtokError(
            f"expected a working {wanted} for compile, found {reason(error)}; install one (g++, for example), or leave "
            f"{Argument('compile')} out"
        ) from error


def a_line(x: Tensor) -> Tensor:
    """Something to compile."""
    return torch.sin(x) + 1


def compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """`function` through `torch.compile`, with compiled versions of its own: 8, whatever was compiled before.

    Where the compiled call fails and the plain one does not, the compiler is at fault: a MemtokError of one line.
    Other errors are those of the plain call.
    """
    code = torch.compile(function, **arguments_of(backend))

    def run(*args: Any) -> Any:
        try:
            return code(*args)
        except Exception as error:
            function(*args)
            raise MemtokError(
                f"expected a training step that torch.compile ({backend}) can compile, found {reason(error)}; "
                f"leave {Argument('compile')} out"
            ) from error

    return run


def arguments_of(backend: str) -> dict[str, Any]:
    """The arguments of `torch.compile`."""
    arguments: dict[str, Any] = {"backend": backend}
    if backend == INDUCTOR:
        arguments["options"] = {"fallback_random": True}  # dropout draws the numbers that it would draw uncompiled
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:  # earlier torch has one limit for all
        arguments["isolate_recompiles"] = True
    return arguments


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, down to the first cause."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = getattr(error, "inner_exception", None) or error.__cause__


def reason(error: BaseException) -> str:
    """The first cause in one line."""
    causes = list(chain(error))
    if any(type(one).__name__ == "InvalidCxxCompiler" for one in causes):
        return "none"
    lines = [line.strip() for line in str(causes[-1]).splitlines() if line.strip()]
    said = f"{type(causes[-1]).__name__}: {lines[0]}" if lines else type(causes[-1]).__name__
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}..."
