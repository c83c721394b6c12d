"""Row `compile`: what is compiled again when a task is swapped for another of the same shape and another name.

Nothing is timed. A model of two tasks is compiled (`MemoryViT.compile`; the dense masked form with `torch.compile`)
and called without and with gradient; then each task in turn is swapped, and the model is called again. Counted are the
graphs that torch passes to its backend, which here runs them without compiling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from memtok.model import MemoryViT
from memtok_benchmarks.dense import DenseMasked
from memtok_benchmarks.lines import Entry, Line, RowResult
from memtok_benchmarks.scene import Scene

SWAPS = 2  # each of the two tasks once
BATCH = 2  # images; the count does not depend on it

Answer = Callable[[Tensor], Sequence[Tensor]]


class Counter:
    """A backend of `torch.compile` that counts graphs and leaves them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Sequence[object]) -> Any:
        self.graphs += 1
        return graph.forward


def recompilations(scene: Scene) -> RowResult:
    """Graphs compiled after the warm-up, over all swaps; the warm-up's own in the notes."""
    found = {"memtok": swaps(scene, memtok_models), "dense": swaps(scene, dense_models)}
    line = Line(
        what=f"graphs compiled by {SWAPS} swaps of a task for another of its shape",
        memtok=Entry(label="memtok", value=float(found["memtok"][1])),
        peers=(Entry(label="dense masked, frozen, torch.compile", value=float(found["dense"][1])),),
        must=0,
        digits=0,
    )
    note = (
        f"Compilation: the first answers compiled {found['memtok'][0]} graphs of memtok, {found['dense'][0]} of the "
        "dense masked form."
    )
    data = {name: {"first": first, "swaps": later} for name, (first, later) in found.items()}
    return RowResult(lines=(line,), notes=(note,), data=data)


def swaps(scene: Scene, models: Callable[[Scene, Counter], Iterator[Answer]]) -> tuple[int, int]:
    """How many graphs the first model compiled, and how many those after it."""
    images = scene.images[:BATCH].to(scene.dtype)
    counter, first = Counter(), 0
    with fresh_compiler():
        for number, answer in enumerate(models(scene, counter)):
            with torch.no_grad():
                answer(images)
            torch.stack([logits.float().sum() for logits in answer(images)]).sum().backward()  # type: ignore[no-untyped-call]
            if number == 0:
                first = counter.graphs
    return first, counter.graphs - first


def memtok_models(scene: Scene, counter: Counter) -> Iterator[Answer]:
    """A compiled model, and those that swapping its tasks one after the other makes of it."""
    tasks = scene.tasks(2 + SWAPS, scene.sizes.serving_cells)
    model = MemoryViT(scene.backbone, tasks[:2])
    model.compile(backend=counter)
    yield answer_of(model)
    for old, new in zip(tasks, tasks[2:], strict=False):
        model = model.remove(old.name).add(new)
        yield answer_of(model)


def answer_of(model: MemoryViT) -> Answer:
    """The logits of all tasks."""
    return lambda images: list(model(images, base=False).logits.values())


def dense_models(scene: Scene, counter: Counter) -> Iterator[Answer]:
    """The dense masked form of the same tasks: a new module for each swap, as its tasks are parts of it."""
    tasks = scene.tasks(2 + SWAPS, scene.sizes.serving_cells)
    for number in range(1 + SWAPS):
        pair = DenseMasked(scene.backbone, tasks[number : number + 2], trainable=False)  # after `number` swaps
        answer: Answer = torch.compile(pair, backend=counter)
        yield answer


@contextmanager
def fresh_compiler() -> Iterator[None]:
    """No compiled code from before, none left behind, and an error where torch would give up compiling.

    Beyond a number of graphs per function it would run the function uncompiled, and a count would stand still.
    """
    settings: Any = torch.compiler.config
    torch.compiler.reset()
    try:
        with settings.patch(fail_on_recompile_limit_hit=True):
            yield
    finally:
        torch.compiler.reset()
