"""Memory is folded once while nothing changes, and never goes stale."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import memtok
from memtok.streams import TaskStreams
from tests.tiny import tiny_backbone, tiny_images, tiny_task


class Counter:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        original = TaskStreams.values

        def counted(streams: TaskStreams, *arguments: Any) -> Any:
            self.count += 1
            return original(streams, *arguments)

        monkeypatch.setattr(TaskStreams, "values", counted)


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


def model_of(adapter_rank: int = 0) -> memtok.MemoryViT:
    backbone = tiny_backbone()
    tasks = [tiny_task(backbone, name=name, memory=2, adapter_rank=adapter_rank, seed=1) for name in "ab"]
    return memtok.MemoryViT(backbone, tasks)


@torch.no_grad()
def answers(model: memtok.MemoryViT) -> list[torch.Tensor]:
    out = model(tiny_images(2))
    return [out[name] for name in model.names]


@torch.no_grad()
def check(model: memtok.MemoryViT) -> None:
    expected = memtok.reference_outputs(model.backbone, model.tasks, tiny_images(2))
    for name, found in zip(model.names, answers(model), strict=True):
        torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=0)


def test_memory_is_folded_once_for_many_batches(folded: Counter) -> None:
    model = model_of()
    for _ in range(3):
        answers(model)
    with torch.inference_mode():
        model(tiny_images(2))
    assert folded.count == 1


def test_a_step_that_trains_gathers_anew(folded: Counter) -> None:
    model = model_of()
    for _ in range(2):
        model(tiny_images(2), base=False)["a"].sum().backward()
    assert folded.count == 2


def test_frozen_tasks_are_folded_with_gradients_on_as_well(folded: Counter) -> None:
    model = model_of()
    model.requires_grad_(False)
    model(tiny_images(2))
    model(tiny_images(2))
    assert folded.count == 1


def optimizer_step(model: memtok.MemoryViT) -> None:
    optimizer = torch.optim.SGD(model.tasks[0].parameters(), lr=0.05)
    model(tiny_images(2), base=False)["a"].sum().backward()
    optimizer.step()


def in_place(model: memtok.MemoryViT) -> None:
    with torch.no_grad():
        model.tasks[1].memory.mul_(2.0)


def loaded_state(model: memtok.MemoryViT) -> None:
    other = tiny_task(model.backbone, name="a", memory=2, adapter_rank=1, seed=9)
    model.tasks[0].load_state_dict(other.state_dict())


def new_parameter(model: memtok.MemoryViT) -> None:
    task = model.tasks[0]
    task.memory = torch.nn.Parameter(task.memory.detach() + 1)


def new_data(model: memtok.MemoryViT) -> None:
    task = model.tasks[0]
    for factor in (2.0, 3.0):  # the second may come to lie where the first was
        task.memory.data = task.memory.detach() * factor


def placement(model: memtok.MemoryViT) -> None:
    model.tasks[0].placement = "after-norm"


def fused_optimizer(model: memtok.MemoryViT) -> None:
    optimizer = torch.optim.AdamW(model.tasks[0].parameters(), lr=0.05, fused=True)
    memtok.MemoryViT(model.backbone, model.tasks)(tiny_images(2), base=False)["a"].sum().backward()
    optimizer.step()  # torch does not count what it writes


def adapters(model: memtok.MemoryViT) -> None:
    with torch.no_grad():
        model.tasks[0].adapters["qkv_up"].add_(0.5)


CHANGES = [
    optimizer_step,
    fused_optimizer,
    in_place,
    loaded_state,
    new_parameter,
    new_data,
    placement,
    adapters,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: Callable[[memtok.MemoryViT], None]) -> None:
    model = model_of(adapter_rank=1)
    before = answers(model)
    change(model)
    after = answers(model)
    assert not all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    check(model)


def test_another_precision_is_noticed() -> None:
    model = model_of()
    answers(model)
    model.backbone.double()
    expected = memtok.reference_outputs(model.backbone, model.tasks, tiny_images(2).double())
    with torch.no_grad():
        torch.testing.assert_close(model(tiny_images(2).double())["a"], expected["a"].detach(), atol=1e-6, rtol=0)


def test_autocast_does_not_leave_its_values_behind() -> None:
    model = model_of()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(tiny_images(2))
    check(model)


def test_values_folded_in_inference_mode_serve_outside() -> None:
    model = model_of()
    with torch.inference_mode():
        model(tiny_images(2))
    model.requires_grad_(False)
    check(model)
    model.requires_grad_(True)
    model(tiny_images(2), base=False)["a"].sum().backward()


def test_tasks_made_in_inference_mode_are_answered(folded: Counter) -> None:
    with torch.inference_mode():
        model = model_of()
        answers(model)
        model.tasks[0].memory.mul_(2.0)  # torch does not count the versions of such tensors
        answers(model)
    assert folded.count == 2
    check(model)


def test_copies_and_pickles_leave_the_folded_values_behind(folded: Counter) -> None:
    model = model_of()
    answers(model)
    copied = copy.deepcopy(model)
    assert copied.streams is not None
    assert copied.streams.folding.kept is None
    assert pickle.loads(pickle.dumps(model.streams)).folding.kept is None
    check(copied)


def test_several_threads_answer_with_one_model_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In two precisions, so that each finds the other's values."""
    model = model_of()
    expected = answers(model)
    meet = threading.Barrier(2, timeout=20)
    compute = TaskStreams.values

    def slow(streams: TaskStreams, *arguments: Any) -> Any:
        meet.wait()  # both are at it
        values = compute(streams, *arguments)
        meet.wait()
        return values

    monkeypatch.setattr(TaskStreams, "values", slow)
    found: dict[str, Any] = {}

    def work(precision: str) -> None:
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                found[precision] = answers(model)
        except Exception as error:  # shown by the assertion
            meet.abort()
            found[precision] = error

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            model.streams.folding.forget()  # type: ignore[union-attr]
            threads = [threading.Thread(target=work, args=(precision,)) for precision in ("float32", "bf16")]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not [one for one in found.values() if isinstance(one, Exception)]
            for one, other in zip(found["float32"], expected, strict=True):
                assert torch.equal(one, other)
    finally:
        sys.setswitchinterval(interval)


def test_a_backbone_loaded_in_inference_mode_serves() -> None:
    with torch.inference_mode():
        backbone = tiny_backbone()
    model = memtok.MemoryViT(backbone, [tiny_task(backbone, memory=2)])
    answers(model)
    check(model)


def test_a_moved_model_holds_no_folded_values() -> None:
    model = model_of()
    answers(model)
    model.to(torch.float64)
    assert model.streams is not None
    assert model.streams.folding.kept is None
