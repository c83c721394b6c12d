"""The memory of a pass: the estimate against what autograd really keeps, and passes that fit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import memtok
from memtok.backbone import Backbone
from memtok.errors import MemtokError
from memtok.sweeps.memory import ESTIMATE_WITHIN, Budget, Step, find_limit, free_memory
from memtok.sweeps.space import Configuration
from tests.tiny import tiny_backbone, tiny_images

IMAGES, CLASSES = 8, 10


def configurations(shape: tuple[str, int, int, int], count: int) -> list[Configuration]:
    """`count` configurations of one shape."""
    regime, queries, memory, rank = shape
    return [
        Configuration.of(
            {
                "regime": regime,
                "memory": memory,
                "queries": queries,
                "adapter_rank": rank,
                "learning_rate": 0.1,
                "weight_decay": 0.0,
                "seed": seed,
            }
        )
        for seed in range(count)
    ]


def step(backbone: Backbone) -> Step:
    return Step.of(backbone, images=IMAGES, classes=CLASSES, optimizer="adamw", precision="float32")


def kept_bytes(backbone: Backbone, chosen: Sequence[Configuration]) -> int:
    """What a forward pass of these keeps for the gradient, beside the parameters of trunk and tasks."""
    tasks = [
        memtok.Task.create(
            backbone,
            name=each.name,
            classes=[str(number) for number in range(CLASSES)],
            regime=each.regime,
            memory=None if each.regime == "head" else each.memory,
            queries=each.queries,
            adapter_rank=each.adapter_rank,
            seed=each.seed,
        )
        for each in chosen
    ]
    model = memtok.MemoryViT(backbone, tasks)
    trace = model.trace(tiny_images(IMAGES, size=backbone.preprocessing.image_size[0]), base=False)
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, tuple[Tensor, int]] = {}  # holds the tensors, or their places would be used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.answer(trace, base=False)
        labels = torch.zeros(IMAGES, dtype=torch.long)
        torch.stack([F.cross_entropy(out[task.name], labels) for task in tasks]).sum()
    return sum(count for _, count in found.values())


@pytest.fixture(scope="module")
def larger() -> Backbone:
    """With as many tokens and as wide an MLP, for its width, as a real one."""
    return tiny_backbone(img_size=48, patch_size=8, embed_dim=64, depth=3, num_heads=4)


@pytest.mark.parametrize(
    "shape",
    [
        ("memory", 1, 0, 0),
        ("memory", 1, 5, 0),
        ("memory", 1, 20, 0),
        ("memory", 4, 5, 0),
        ("memory", 1, 5, 8),
        ("memory", 2, 0, 4),
    ],
)
def test_the_estimate_is_near_what_is_kept(larger: Backbone, shape: tuple[str, int, int, int]) -> None:
    few, many = (kept_bytes(larger, configurations(shape, count)) for count in (2, 6))
    real = (many - few) / 4
    assert real / ESTIMATE_WITHIN < step(larger).kept(configurations(shape, 1)[0]) < real * ESTIMATE_WITHIN


def test_the_estimate_of_a_mixed_pass(larger: Backbone) -> None:
    chosen = [configurations(("memory", 1, cells, 0), 1)[0] for cells in (1, 5, 10, 20)]
    chosen += configurations(("head", 1, 0, 0), 1)
    made = step(larger)
    kept = sum(made.kept(each) for each in chosen)
    trace = 2 * larger.depth * larger.tokens * larger.dim * IMAGES * made.width  # keys and values
    real = kept_bytes(larger, chosen)
    assert real / ESTIMATE_WITHIN < kept + trace < real * ESTIMATE_WITHIN
    assert made.shared() > trace  # and images, and the layer that the trunk is at work on, which is gone by the end
    assert real < kept + made.shared()


def test_passes_fit_and_hold_all(backbone: Backbone) -> None:
    chosen = [*configurations(("memory", 1, 20, 0), 5), *configurations(("memory", 1, 1, 0), 9)]
    chosen += configurations(("head", 1, 0, 0), 3)
    made = step(backbone)
    limit = Budget(made, 0).need(chosen[:2]) + 1000
    budget = Budget(made, limit)
    passes = budget.passes(chosen)
    assert len(passes) > 2
    assert all(budget.need(one) <= limit for one in passes)
    assert sorted(each.name for one in passes for each in one) == sorted(each.name for each in chosen)
    for one in passes:  # in the order of the space
        assert [chosen.index(each) for each in one] == sorted(chosen.index(each) for each in one)
    alike = [one for one in passes if {each.memory for each in one} == {20}]
    assert len(alike) >= 2
    assert len(Budget(made, 10**12).passes(chosen)) == 1
    assert [len(one) for one in Budget(made, 10**12, together=7).passes(chosen)] == [7, 7, 3]
    assert Budget(made, 10**12).passes([]) == []


def test_one_that_does_not_fit_is_named(backbone: Backbone) -> None:
    budget = Budget(step(backbone), 1000)
    with pytest.raises(MemtokError, match=r"expected .* of memory for memory-5-rate-0.1.*limit of 1 kB; raise"):
        budget.passes(configurations(("memory", 1, 5, 0), 1))


def test_the_limit_is_given_or_a_share_of_what_is_free() -> None:
    cpu = torch.device("cpu")
    assert find_limit(cpu, 2.5) == 2_500_000_000
    assert find_limit(cpu, 1e300) == find_limit(cpu, 10**400) == 10**18  # no float in bytes
    assert 0 < find_limit(cpu, None) < free_memory(cpu) * 0.9
    for wrong in (0, -1.0, float("nan"), True):
        with pytest.raises(MemtokError, match="memory_limit in GB"):
            find_limit(cpu, wrong)


@pytest.mark.gpu
def test_free_memory_of_a_gpu() -> None:
    assert free_memory(torch.device("cuda")) > 0
