"""`torch.export` and `torch.onnx.export` of models with every kind of task, for batches of any size."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import memtok
from tests.tiny import VARIANTS, tiny_backbone, tiny_images, tiny_task


def mixed(backbone: memtok.Backbone) -> list[memtok.Task]:
    """Families of several shapes, memory placed in both ways, adapters of some."""
    first = tiny_task(backbone, "a", memory=3, seed=1)
    return [
        first,
        tiny_task(backbone, "b", memory=2, queries=2, placement="after-norm", extends=[first], seed=2),
        tiny_task(backbone, "c", memory=3, adapter_rank=1, seed=3),
        tiny_task(backbone, "d", memory=3, seed=4),
        tiny_task(backbone, "e", regime="head", seed=5),
        tiny_task(backbone, "f", memory=0, queries=2, seed=6),
    ]


def extension(backbone: memtok.Backbone) -> list[memtok.Task]:
    first = tiny_task(backbone, "a", memory=3, seed=1)
    return [first, tiny_task(backbone, "b", memory=2, extends=[first], seed=2)]


KINDS: dict[str, Callable[[memtok.Backbone], list[memtok.Task]]] = {
    "no task": lambda backbone: [],
    "memory": lambda backbone: [tiny_task(backbone, memory=3)],
    "no memory": lambda backbone: [tiny_task(backbone, memory=0)],
    "several queries": lambda backbone: [tiny_task(backbone, memory=2, queries=3)],
    "adapters": lambda backbone: [tiny_task(backbone, memory=2, adapter_rank=2)],
    "adapters of two": lambda backbone: [
        tiny_task(backbone, name, memory=2, adapter_rank=2, seed=seed) for seed, name in enumerate("ab")
    ],
    "head": lambda backbone: [tiny_task(backbone, regime="head")],
    "readout": lambda backbone: [tiny_task(backbone, memory=2, readout=2), tiny_task(backbone, "r", readout=1)],
    "side": lambda backbone: [
        tiny_task(backbone, "a", regime="head", side=3, seed=1),
        tiny_task(backbone, "b", memory=2, side=3, seed=2),
    ],
    "extension": extension,
    "mixed": mixed,
} | {
    regime: lambda backbone, regime=regime: [tiny_task(backbone, regime=regime)]  # type: ignore[misc]
    for regime in VARIANTS
}


def model_of(kind: str) -> memtok.MemoryViT:
    backbone = tiny_backbone(reg_tokens=1)
    return memtok.MemoryViT(backbone, KINDS[kind](backbone))


@functools.cache
def program_of(kind: str) -> torch.export.ExportedProgram:
    """The model as a program, made with three images, for batches of up to 64."""
    shapes = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    with torch.no_grad():
        return torch.export.export(model_of(kind), (tiny_images(3),), dynamic_shapes=shapes)


def tensors(out: memtok.Outputs) -> list[Tensor]:
    """All tensors of outputs without attention, in the order of the fields."""
    assert out.features is not None
    assert out.base is not None
    return [out.features, out.base, *out.logits.values(), *out.embeddings.values()]


def assert_answers_alike(model: memtok.MemoryViT, exported: Callable[[Tensor], list[Tensor]]) -> None:
    """For batches of other sizes than the example's three images."""
    for count in (1, 2, 5):
        images = tiny_images(count, seed=count)
        with torch.no_grad():
            expected = tensors(model(images))
        for one, other in zip(exported(images), expected, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


# Between them these take every way through the code that a task's kind decides.
QUICK = ("adapters", "head+class", "memory-propagated", "mixed")


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in sorted(KINDS)]
)
def test_a_program_for_batches_of_any_size(kind: str) -> None:
    model, program = model_of(kind), program_of(kind).module()
    found: Any = program(tiny_images(2))
    assert isinstance(found, memtok.Outputs)
    assert found.names == model.names
    assert_answers_alike(model, lambda images: tensors(program(images)))


@pytest.mark.slow
def test_a_program_is_saved_and_read_back(tmp_path: Path) -> None:
    model = model_of("mixed").requires_grad_(False)
    with model.folded(), torch.no_grad():  # torch cannot save a program that switches gradients off by itself
        program = torch.export.export(model, (tiny_images(3),), {"attention": True})
    torch.export.save(program, tmp_path / "model.pt2")
    found: Any = torch.export.load(tmp_path / "model.pt2").module()(tiny_images(3, seed=4), attention=True)
    expected = model(tiny_images(3, seed=4), attention=True)
    assert isinstance(found, memtok.Outputs)
    for name in model.names:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)
    assert found.attention.keys() == expected.attention.keys() == {"a", "b", "c", "d", "f"}
    assert isinstance(found.attention["b"], memtok.TaskAttention)
    torch.testing.assert_close(found.attention["b"].extended["a"], expected.attention["b"].extended["a"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.filterwarnings("ignore")  # those of the exporter about itself
def test_onnx_for_batches_of_any_size(kind: str) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    program = torch.onnx.export(program_of(kind), dynamo=True, input_names=["images"], verbose=False)
    assert program is not None
    content = io.BytesIO()
    program.save(content)
    session = runtime.InferenceSession(content.getvalue())

    def answer(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {"images": images.numpy()})]

    assert_answers_alike(model_of(kind), answer)
