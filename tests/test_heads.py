"""Heads and readouts of many tasks: read once and multiplied at once, and each as if the task were alone."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import memtok
from tests.operators import calls
from tests.tiny import tiny_images, tiny_task, tiny_vit

PRODUCTS, COPIES = ("addmm", "mm"), "cat"


@functools.cache
def backbone(dtype: torch.dtype = torch.float32) -> memtok.Backbone:
    return memtok.load_backbone(tiny_vit(), dtype=dtype)


def heads(count: int, **more: Any) -> list[memtok.Task]:
    """Tasks of 1, 2, 3, ... classes."""
    made = {"regime": "head", "readout": 2, **more}
    return [tiny_task(backbone(), f"t{index}", seed=index, classes=1 + index, **made) for index in range(count)]


def measured(task: memtok.Task, seed: int) -> memtok.Task:
    """The same task as it is while it trains, with a mean and a spread of what it reads."""
    generator = torch.Generator().manual_seed(seed)
    shape = task.readout["weight"].shape[1:]
    task.measured = {
        "readout.mean": torch.randn(shape, generator=generator),
        "readout.spread": torch.rand(shape, generator=generator) + 0.5,
    }
    return task


@st.composite
def tasks_of_many_kinds(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Some of which read the same and some not; a measured one has one of two means."""
    found = []
    for index in range(draw(st.integers(1, 7))):
        one: dict[str, Any] = {"name": f"task {index}", "classes": draw(st.sampled_from([1, 2, 3, 500]))}
        one["regime"] = draw(st.sampled_from(["head", "head", "head", "memory"]))
        one["readout"] = draw(st.sampled_from([0, 2, 2, 3]))
        if one["readout"]:
            one["statistics"] = draw(st.sampled_from([None, None, "class+mean"]))
            one["measured"] = draw(st.sampled_from([None, None, 1, 2]))
        found.append(one)
    return found


@settings(max_examples=12, deadline=None, print_blob=True)
@given(kinds=tasks_of_many_kinds(), seed=st.integers(0, 10_000))
def test_each_answers_and_learns_as_in_the_reference(kinds: list[dict[str, Any]], seed: int) -> None:
    """In double precision, where what is not rounding shows."""
    trunk = backbone(torch.float64)
    images = tiny_images(2, seed).double()
    tasks = []
    for index, kind in enumerate(kinds):
        given = {name: value for name, value in kind.items() if name != "measured"}
        task = tiny_task(trunk, seed=seed + index, **given).double()
        tasks.append(task if kind.get("measured") is None else measured(task, kind["measured"]))

    def learn(out: memtok.Outputs) -> list[Tensor]:
        for task in tasks:
            task.zero_grad()
        torch.stack([out[task.name].square().mean() for task in tasks]).sum().backward()
        parameters = [parameter for task in tasks for parameter in task.parameters()]
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        return [out[task.name].detach() for task in tasks] + gradients

    model = memtok.MemoryViT(trunk, tasks)
    expected = learn(memtok.reference_outputs(trunk, tasks, images))
    found = learn(model(images))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
    with model.folded(), torch.no_grad():
        for _ in range(2):
            out = model(images)
            for task, answer in zip(tasks, expected, strict=False):
                assert out[task.name].is_contiguous()
                torch.testing.assert_close(out[task.name], answer, atol=1e-9, rtol=1e-9)


def test_what_is_read_in_common_is_multiplied_at_once_and_copied_once_in_a_block() -> None:
    images = tiny_images(2)
    few, many = (memtok.MemoryViT(backbone(), heads(count)) for count in (2, 20))
    with torch.no_grad():
        bare = calls(lambda: memtok.MemoryViT(backbone())(images))
        passes = {count: calls(lambda m=model: m(images)) for count, model in ((2, few), (20, many))}  # type: ignore[misc]
        with many.folded():
            first, second = (calls(lambda: many(images)) for _ in range(2))
    for found in (*passes.values(), first, second):
        assert sum(found[name] - bare[name] for name in PRODUCTS) == 2  # head and readout, of all tasks
    assert passes[2][COPIES] == passes[20][COPIES] == first[COPIES]
    assert first[COPIES] - second[COPIES] == 3  # weight and bias of the heads, weight of the readouts


@pytest.mark.parametrize("classes", [401, 500, 1001])
def test_many_classes_on_a_cpu_are_multiplied_in_blocks_and_answered_alike(classes: int) -> None:
    """Of two tasks: blocks that share all rows evenly, and some that leave one over."""
    trunk = backbone(torch.float64)
    tasks = [tiny_task(trunk, f"t{index}", seed=index, classes=classes, regime="head").double() for index in range(2)]
    images = tiny_images(2).double()
    with torch.no_grad():
        bare = calls(lambda: memtok.MemoryViT(trunk)(images))
        model = memtok.MemoryViT(trunk, tasks)
        found = calls(lambda: model(images))
        out, expected = model(images), memtok.reference_outputs(trunk, tasks, images)
    assert found["bmm"] - bare["bmm"] == 1
    for task in tasks:
        torch.testing.assert_close(out[task.name], expected[task.name], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("second", "products"), [(1, 3), (2, 4)])
def test_what_is_standardised_alike_is_read_once(second: int, products: int) -> None:
    """Three heads are one product; so are readouts of one mean and spread, but not those of another."""
    tasks = [measured(task, seed) for task, seed in zip(heads(3), (1, 1, second), strict=True)]
    plain = tiny_task(backbone(), "plain", regime="head", readout=2)
    images = tiny_images(2)
    with torch.no_grad():
        bare = calls(lambda: memtok.MemoryViT(backbone())(images))
        found = calls(lambda: memtok.MemoryViT(backbone(), [*tasks, plain])(images))
    assert sum(found[name] - bare[name] for name in PRODUCTS) == products


def test_numbers_that_are_not_finite_stay_in_their_task() -> None:
    tasks = heads(4)
    images = tiny_images(2)
    model = memtok.MemoryViT(backbone(), tasks)
    with torch.no_grad():
        expected = copy.deepcopy(model)(images)
        tasks[1].head.weight.fill_(float("nan"))
        tasks[1].readout["weight"].fill_(float("inf"))
    out = model(images)
    for name in ("t0", "t2", "t3"):
        assert torch.equal(out[name], expected[name])
    torch.stack([out[name].sum() for name in model.names]).sum().backward()
    assert all(
        bool(p.grad.isfinite().all()) for t in (tasks[0], *tasks[2:]) for p in t.parameters() if p.grad is not None
    )


def test_a_task_in_another_precision_keeps_it() -> None:
    tasks = heads(3)
    tasks[1].double()
    with torch.no_grad():
        out = memtok.MemoryViT(backbone(), tasks)(tiny_images(2))
    assert [out[task.name].dtype for task in tasks] == [torch.float32, torch.float64, torch.float32]


def test_an_answer_may_be_changed_in_place() -> None:
    model = memtok.MemoryViT(backbone(), heads(3, readout=0))
    out = model(tiny_images(2))
    kept = out["t1"].detach().clone()
    out["t0"].mul_(0.0)
    assert torch.equal(out["t1"], kept)
    out["t0"].sum().backward()


def test_an_exported_model_of_several_heads_answers_alike() -> None:
    model = memtok.MemoryViT(backbone(), heads(3)).requires_grad_(False)
    images = tiny_images(2)
    program = torch.export.export(model, (images,)).module()
    for name, logits in model(images).logits.items():
        torch.testing.assert_close(program(images)[name], logits, atol=1e-5, rtol=1e-5)
