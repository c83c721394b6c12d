"""`compile=True`: what of a run `torch.compile` compiles, and what to say where it cannot.

Tasks that compose: one layer of the trunk and one of the streams, for all layers. Other regimes: the whole pass. All
sizes of batches from 2 on share their code, so a run compiles in its first epoch and its first validation, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from memtok.compiling import Compiled, any_batch, own_code, own_layers
from memtok.errors import Argument, MemtokError

INDUCTOR = "inductor"  # torch's own compiler, which writes C++ for a CPU and Triton for a GPU
SHOWN = 160  # characters of what went wrong


@dataclass(frozen=True)
class Compiler:
    """Compiles for one run. backend: torch's name of what does it. layers: those of trunk and streams, compiled."""

    backend: str
    layers: Compiled

    def function(self, function: Callable[..., Tensor], *modules: Any) -> Callable[[Tensor], Tensor]:
        """`function(*modules, images)` as a function of images alone, (B, 3, height, width), compiled as a whole."""
        code = own_code(function, **arguments_of(self.backend))

        def run(images: Tensor) -> Tensor:
            any_batch(images)
            found: Tensor = code(*modules, images)
            return found

        return run


def make_compiler(choice: bool | str, device: torch.device) -> Compiler | None:
    """The compiler of a run on `device`; None where nothing is to be compiled. MemtokError if it does not work here."""
    if choice is False:
        return None
    backend = INDUCTOR if choice is True else choice
    if backend == INDUCTOR:
        check_inductor(device)
    return Compiler(backend, own_layers(**arguments_of(backend)))


def arguments_of(backend: str) -> dict[str, Any]:
    """The arguments of `torch.compile`. Dropout draws the numbers that it would draw uncompiled."""
    return {"backend": backend} | ({"options": {"fallback_random": True}} if backend == INDUCTOR else {})


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
    import torch._inductor.config

    try:
        # What an earlier run left in torch's cache does not show that the compiler is still there.
        with torch._inductor.config.patch(fx_graph_cache=False):
            own_code(a_line, **arguments_of(INDUCTOR))(torch.ones(64, device=device))
    except Exception as error:  # whatever it is, the run could not go on
        wanted = "C++ compiler" if device.type == "cpu" else "C++ compiler and Triton"
        raise MemtokError(
            f"expected a working {wanted} for compile, found {reason(error)}; install one (g++, for example), or leave "
            f"{Argument('compile')} out"
        ) from error


def a_line(x: Tensor) -> Tensor:
    """Something to compile."""
    return torch.sin(x) + 1


@contextmanager
def compiling(compiler: Compiler | None) -> Iterator[None]:
    """What torch fails to compile in the block becomes a MemtokError of one line; other errors stay as they are."""
    try:
        yield
    except Exception as error:
        if compiler is None or not any(is_compilers(one) for one in chain(error)):
            raise
        raise MemtokError(
            f"expected a training step that torch.compile ({compiler.backend}) can compile, found {reason(error)}; "
            f"leave {Argument('compile')} out"
        ) from error


def is_compilers(error: BaseException) -> bool:
    """Whether an error is one of torch's compiler."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch._functorch"))


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
