"""The counted operations are those that torch counts when the model runs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from memtok.model import MemoryViT
from memtok.parts import cost
from memtok_benchmarks import floor
from memtok_benchmarks.dense import DenseMasked
from memtok_benchmarks.floor import Geometry
from memtok_benchmarks.scene import make_vit
from memtok_benchmarks.sizes import Sizes
from tests.tiny import tiny_backbone, tiny_images, tiny_task

BASE32 = Geometry(depth=12, dim=768, heads=12, hidden=3072, tokens=50, patches=49, patch_inputs=3072, base_classes=1000)


def multiply_adds(run: object) -> int:
    """What torch counts for a call, in multiply-adds."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()  # type: ignore[operator]
    return counter.get_total_flops() // 2


def unfused(backbone: object) -> None:
    """Attention as plain products, which torch counts on every device."""
    for block in backbone.vit.blocks:  # type: ignore[attr-defined]
        block.attn.fused_attn = False


@pytest.mark.parametrize(
    "changes", [{}, {"depth": 3, "embed_dim": 48, "num_heads": 3}, {"img_size": 48}, {"reg_tokens": 4}]
)
def test_trunk_is_what_torch_counts(changes: dict[str, int]) -> None:
    backbone = tiny_backbone(**changes)
    unfused(backbone)
    images = tiny_images(2, size=changes.get("img_size", 32))
    assert multiply_adds(lambda: backbone.vit(images)) == 2 * floor.trunk(Geometry.of(backbone.vit))


def test_trunk_without_its_outputs_is_what_torch_counts() -> None:
    backbone = tiny_backbone()
    unfused(backbone)
    geometry = Geometry.of(backbone.vit)
    counted = multiply_adds(lambda: backbone.trace(tiny_images(1), outputs=False))
    assert counted == floor.trunk(geometry) - floor.skipped(geometry)


@pytest.mark.parametrize(("tasks", "cells"), [(1, 2), (3, 1), (4, 0)])
def test_dense_form_is_what_torch_counts(tasks: int, cells: int) -> None:
    backbone = tiny_backbone()
    geometry = Geometry.of(backbone.vit)
    model = DenseMasked(
        backbone, [tiny_task(backbone, f"t{index}", memory=cells) for index in range(tasks)], trainable=False
    )
    counted = multiply_adds(lambda: model(tiny_images(1))) + geometry.dim * geometry.base_classes
    assert counted == pytest.approx(floor.dense_inference(geometry, tasks, cells, 3) * floor.trunk(geometry), rel=1e-9)


@pytest.mark.parametrize(("tasks", "cells"), [(1, 2), (5, 3)])
def test_streams_reach_the_floor_but_do_not_go_below(tasks: int, cells: int) -> None:
    """Memory's keys and values, counted apart, are all that a pass may add."""
    backbone = tiny_backbone()
    unfused(backbone)
    geometry = Geometry.of(backbone.vit)
    model = MemoryViT(backbone, [tiny_task(backbone, f"t{index}", memory=cells) for index in range(tasks)])
    images = 8
    counted = multiply_adds(lambda: model(tiny_images(images))) / images
    least = floor.serving(geometry, tasks, cells, 3) * floor.trunk(geometry)
    once = floor.memory_once(geometry, tasks, cells) / images
    # The products of attention over the task's own columns may be counted by torch or fused away.
    own = geometry.depth * 2 * tasks * (1 + cells) * geometry.dim
    assert least - own - 1 <= counted <= least + once + 1


@pytest.mark.parametrize("cells", [0, 3])
def test_the_floor_counts_what_layers_and_parts_say_that_they_cost(cells: int) -> None:
    backbone = tiny_backbone()
    geometry = Geometry.of(backbone.vit)
    parts = floor.trunk_parts(geometry)
    layers = sum(layer.cost(backbone.tokens) for layer in backbone.layers)
    assert layers == floor.trunk(geometry) - parts["patch embedding"] - parts["head"]
    task = tiny_task(backbone, memory=cells, classes=3)
    assert cost(backbone, task.sizes) == floor.stream(geometry, 1, cells, 3)


def test_vit_b_32_as_the_plan_states_it() -> None:
    with torch.device("meta"):
        assert Geometry.of(make_vit(Sizes())) == BASE32
    assert floor.token_ratio(BASE32, 10) == 1.2
    assert floor.token_ratio(BASE32, 1000) == 21.0
    assert floor.break_even(BASE32) == 29
    assert floor.trunk(BASE32) == pytest.approx(4.4e9, rel=0.02)  # timm's own figure for this model
    table = floor.table(BASE32, cells=5, training_cells=10, classes=100, batch=32)
    assert 0.9 < table["training step, 1 task"] < 1.05
    assert 1 / 40 < table["sweep of 24 over 24 dense runs"] < 1 / 28
    assert table["step on kept traces over a live step, 1 task"] < 1 / 12


def test_absorbed_projections_break_even_where_both_cost_the_same() -> None:
    n, d, h = BASE32.tokens, BASE32.dim, BASE32.heads

    def applied(queries: int) -> int:
        return 2 * n * d * d + 2 * queries * n * d

    def absorbed(queries: int) -> int:
        return 2 * queries * d * d + 2 * queries * h * n * d

    assert absorbed(floor.break_even(BASE32)) <= applied(floor.break_even(BASE32))
    assert absorbed(floor.break_even(BASE32) + 1) > applied(floor.break_even(BASE32) + 1)


@pytest.mark.parametrize("changes", [{}, {"num_heads": 4}, {"img_size": 64}])
def test_the_streams_break_even_where_the_floor_says(changes: dict[str, int]) -> None:
    backbone = tiny_backbone(**changes)
    geometry = Geometry.of(backbone.vit)
    assert math.floor(backbone.layers[0].break_even(geometry.tokens)) == floor.break_even(geometry)
