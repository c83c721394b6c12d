"""Compiled models: the same answers, and nothing is compiled when a task is swapped for another of its shape."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import memtok
from tests.tiny import tiny_backbone, tiny_images, tiny_task


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No code of other tests, and the usual behaviour afterwards."""
    torch.compiler.reset()
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def compiled_model(counter: CompileCounter) -> memtok.MemoryViT:
    backbone = tiny_backbone()
    tasks = [tiny_task(backbone, name=name, memory=3, seed=seed) for seed, name in enumerate("ab")]
    model = memtok.MemoryViT(backbone, tasks)
    model.compile(backend=counter)
    return model


@torch.no_grad()
def test_a_swapped_task_compiles_nothing() -> None:
    counter = CompileCounter()
    model = compiled_model(counter)
    images = tiny_images(2)
    model(images)
    compiled = counter.frame_count
    assert compiled > 0
    torch.compiler.set_stance("fail_on_recompile")
    other = tiny_task(model.backbone, name="another name", memory=3, classes=7, seed=9)
    swapped = model.remove("a").add(other)
    found = swapped(images)
    assert counter.frame_count == compiled
    expected = memtok.reference_outputs(model.backbone, swapped.tasks, images)
    for name in ("b", "another name"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.slow
def test_all_layers_and_all_sizes_of_batches_share_their_code() -> None:
    """One piece for the trunk and one for the streams, then one each for batches of any size from 2 on."""
    counter = CompileCounter()
    model = compiled_model(counter)
    found = []
    for count in (4, 3, 2):  # a last batch is smaller
        model(tiny_images(count))
        found.append(counter.frame_count)
    assert found == [2, 4, 4]


@torch.no_grad()
def test_the_base_is_compiled_without_the_tasks() -> None:
    counter = CompileCounter()
    model = compiled_model(counter)
    images = tiny_images(2)
    out = model(images)
    torch.compiler.set_stance("fail_on_recompile")
    bare = model.select([])(images)
    assert out.features is not None
    assert bare.features is not None
    assert torch.equal(out.features, bare.features)
    assert out.base is not None
    assert bare.base is not None
    assert torch.equal(out.base, bare.base)


# torch looks at the .grad of every tensor that it traces, and hides its own warning from all but strict filters.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
def test_gradients_of_a_compiled_model_are_those_of_the_model() -> None:
    plain = compiled_model(CompileCounter())
    plain._compiled = None
    compiled = copy.deepcopy(plain)
    compiled.compile(backend="aot_eager")
    images = tiny_images(2)
    for model in (plain, compiled):
        out = model(images, base=False)
        (out["a"].square().sum() + out["b"].square().sum()).backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, atol=1e-5, rtol=1e-4, msg=name)


@torch.no_grad()
def test_copies_of_a_compiled_model_answer_alike() -> None:
    model = compiled_model(CompileCounter())
    images = tiny_images(2)
    assert torch.equal(copy.deepcopy(model)(images)["a"], model(images)["a"])


@torch.no_grad()
def test_a_compiled_model_is_pickled_without_its_code() -> None:
    model = compiled_model(CompileCounter())
    images = tiny_images(2)
    expected = model(images)["a"]
    assert torch.equal(pickle.loads(pickle.dumps(model))(images)["a"], expected)
