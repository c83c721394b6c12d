"""Products with packed weights are those of the plain ones, and are used where a run from kept traces trains."""

from __future__ import annotations

from typing import Any

import psutil
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import memtok
from memtok.traces import KeptBatch
from memtok.training import packing
from memtok.training.packing import MOST_ROWS, PackedWeights, can_pack, matrices
from memtok.training.regimes import forward_of
from tests.tiny import tiny_backbone, tiny_images, tiny_task

KINDS: list[dict[str, Any]] = [{}, {"qkv_bias": False}, {"init_values": 0.7}, {"qk_norm": True}]
KEPT = {
    "memory": {"memory": 3},
    "queries": {"memory": 2, "queries": 2},
    "adapters": {"memory": 1, "adapter_rank": 2},
    "class token": {"memory": 0},
}

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch was built without MKL")


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every product with packed weights."""
    rows: list[int] = []
    original = packing.product

    def product(*arguments: Any) -> Tensor:
        rows.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(packing, "product", product)
    return rows


def kept_batch(backbone: memtok.Backbone, images: Tensor) -> KeptBatch:
    trace = backbone.trace(images, keep="inputs")
    assert trace.features is not None
    return KeptBatch(torch.stack(trace.inputs), trace.features)


def rows_of(width: int) -> Tensor:
    return torch.randn(5, width, generator=torch.Generator().manual_seed(0)).requires_grad_()


def gradients(task: memtok.Task, logits: Tensor) -> dict[str, Tensor]:
    task.zero_grad()
    logits.square().mean().backward()
    return {name: value.grad.clone() for name, value in task.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("settings", KEPT.values(), ids=KEPT)
def test_answers_and_gradients_are_those_of_plain_products(
    kind: dict[str, Any], settings: dict[str, Any], products: list[int]
) -> None:
    backbone = tiny_backbone(**kind)
    task = tiny_task(backbone, **settings)
    batch = kept_batch(backbone, tiny_images(4))
    logits = forward_of(task, packed=4)(batch)
    found = gradients(task, logits)
    # Forward and backward: qkv, proj and both of the MLP for class tokens, keys and values for more than one cell.
    parts = [4 * task.queries] * 4 + [task.cells] * (task.cells > 1)
    assert sorted(products) == sorted(parts * 2 * backbone.depth)
    images = batch.trace(torch.float32)
    plain = memtok.MemoryViT(backbone, [task]).answer(images, base=False)[task.name]
    expected = gradients(task, plain)
    torch.testing.assert_close(logits, plain, rtol=1e-5, atol=1e-5)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)


def test_what_is_not_trained_from_as_many_traces_is_computed_as_ever(products: list[int]) -> None:
    backbone = tiny_backbone()
    task = tiny_task(backbone, memory=2)
    live, kept = tiny_images(4), kept_batch(backbone, tiny_images(4))
    last = KeptBatch(kept.inputs[:, :3], kept.features[:3])  # that of an epoch, from which a run may be resumed
    forward = forward_of(task, packed=4)
    forward(live)
    forward(last)
    with torch.no_grad():
        forward(kept)  # a validation
    with torch.autocast("cpu", torch.bfloat16):
        forward(kept)
    forward_of(task)(kept)
    assert products == []
    forward(kept)
    assert set(products) == {4, 2}  # images, and cells
    products.clear()
    many = KeptBatch(kept.inputs.repeat(1, 25, 1, 1), kept.features.repeat(25, 1))
    assert len(many) > MOST_ROWS
    forward_of(task, packed=len(many))(many)
    assert set(products) == {2}  # the cells are few all the same


def test_a_changed_weight_is_packed_again() -> None:
    backbone = tiny_backbone()
    weight, inputs = matrices(backbone)[0], rows_of(32)
    with PackedWeights(backbone) as mode:
        F.linear(inputs, weight)
        (first,) = mode.packed.values()
        F.linear(inputs, weight)
        assert list(mode.packed.values()) == [first]
        with torch.no_grad():
            weight.mul_(2)
        found = F.linear(inputs, weight)
        assert list(mode.packed.values()) != [first]
    torch.testing.assert_close(found, inputs @ weight.t(), rtol=1e-5, atol=1e-5)


def test_other_weights_are_left_alone(products: list[int]) -> None:
    backbone = tiny_backbone()
    inputs = rows_of(32)
    with PackedWeights(backbone) as mode:
        F.linear(inputs, rows_of(32).detach())
        F.linear(inputs[:1], backbone.vit.blocks[0].attn.qkv.weight)  # a single row is no matrix product
        F.linear(rows_of(96), backbone.vit.blocks[0].attn.qkv.weight.t())
        assert not products
        assert not mode.packed
        F.linear(inputs, backbone.vit.blocks[0].attn.qkv.weight[32:])
    assert products == [5]


def test_where_packing_is_not_possible_a_run_goes_as_ever(products: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    assert can_pack(backbone)
    assert not can_pack(memtok.load_backbone(backbone.vit, dtype=torch.bfloat16))
    room = 2 * 4 * sum(weight.numel() for weight in matrices(backbone))

    class Memory:
        total = 8 * room - 1

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    assert not can_pack(backbone)
    Memory.total += 1
    assert can_pack(backbone)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not can_pack(backbone)
    forward_of(tiny_task(backbone), packed=2)(kept_batch(backbone, tiny_images(2)))
    assert not products
