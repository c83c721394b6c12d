"""Verification: it passes where all is well, and fails where a single thing is not."""

from __future__ import annotations

import copy
import functools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import memtok
from memtok.errors import MemtokError
from memtok.layout import Layout
from memtok.verification import VerifyReport, own_forward
from tests.tiny import VARIANTS, bytes_of, randomize_, tiny_backbone, tiny_images, tiny_task, tiny_vit

VIT = tiny_vit()


@pytest.fixture
def backbone() -> memtok.Backbone:
    return memtok.load_backbone(VIT)


@pytest.fixture
def tasks(backbone: memtok.Backbone) -> list[memtok.Task]:
    pets = tiny_task(backbone, "pets", seed=1)
    more = tiny_task(backbone, "more", seed=2, extends=[pets], queries=2)
    return [more, pets, tiny_task(backbone, "head", seed=3, regime="head")]


def verify(backbone: memtok.Backbone, tasks: Any, data: Any = None, **more: Any) -> VerifyReport:
    return memtok.verify(backbone, tasks, data, **({"source": VIT, "images": 6, "batch_size": 4} | more))


def test_all_is_well(backbone: memtok.Backbone, tasks: list[memtok.Task]) -> None:
    before = bytes_of(backbone)
    seen: list[tuple[int, int]] = []
    report = verify(backbone, tasks, progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert report.failures == ()
    assert (report.base_bitwise, report.features_bitwise, report.base_difference) == (True, True, 0.0)
    assert list(report.tasks) == ["more", "pets", "head"]
    assert 0 < report.largest_difference <= 1e-5
    assert report.largest_difference <= report.tolerance <= 1e-4
    assert (report.images, report.unchanged) == (6, True)
    assert seen == [(4, 6), (6, 6)]
    assert bytes_of(backbone) == before
    assert all(task.class_tokens.dtype == torch.float32 for task in tasks)


def test_what_is_reported_of_a_task(backbone: memtok.Backbone, tasks: list[memtok.Task]) -> None:
    """The largest differences of a logit from the reference in float64, over the largest logit."""
    images = tiny_images(5)
    report = verify(backbone, tasks, images, batch_size=5)
    wide = copy.deepcopy(memtok.MemoryViT(backbone, tasks)).double()
    with torch.no_grad():
        for task, exact_task in zip(tasks, wide.tasks, strict=True):
            exact = memtok.reference_outputs(wide.backbone, [exact_task], images.double())[task.name]
            answers = {
                "composed": memtok.MemoryViT(backbone, tasks)(images)[task.name],
                "alone": memtok.MemoryViT(backbone, [*task.ancestors(), task])(images)[task.name],
                "double": wide(images.double())[task.name],
            }
            found = report.differences[task.name]
            for kind, answer in answers.items():
                expected = float((answer.double() - exact).abs().max() / exact.abs().max())
                assert getattr(found, kind) == pytest.approx(expected, rel=1e-3, abs=1e-15), kind
            # The same images with noise of the size of rounding are looked at too, for five are few.
            reference = memtok.reference_outputs(backbone, [task], images)[task.name]
            assert found.reference >= float((reference.double() - exact).abs().max() / exact.abs().max()) * 0.999
            assert found.double < 1e-13 < 1e-8 < found.reference < 1e-5
            assert found.tolerance_double < 1e-12
    result = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert result["ok"] is True
    assert result["tolerance"] == report.tolerance == max(one.tolerance for one in report.differences.values())
    assert result["tasks"]["pets"] == {
        "ok": True,
        "difference": report.tasks["pets"],
        "alone": report.differences["pets"].alone,
        "reference": report.differences["pets"].reference,
        "tolerance": report.differences["pets"].tolerance,
        "double": report.differences["pets"].double,
        "tolerance_double": report.differences["pets"].tolerance_double,
    }


def test_without_tasks_and_without_classifier() -> None:
    vit = tiny_vit(num_classes=0)
    report = memtok.verify(memtok.load_backbone(vit), [], source=vit, images=2)
    assert report.ok
    assert report.base_bitwise is None
    assert report.tasks == {}
    assert (report.largest_difference, report.tolerance) == (0.0, 0.0)


def test_tasks_that_do_not_compose_are_checked_one_by_one(backbone: memtok.Backbone) -> None:
    regimes = VARIANTS
    tasks = [tiny_task(backbone, regime, seed=number, regime=regime) for number, regime in enumerate(regimes)]
    report = verify(backbone, [tiny_task(backbone, "pets"), *tasks])
    assert report.ok
    assert list(report.tasks) == ["pets", *regimes]
    assert all(1e-8 < found.reference < 1e-5 for found in report.differences.values())


def test_a_model_is_checked_as_it_is(backbone: memtok.Backbone, tasks: list[memtok.Task]) -> None:
    """That very object: one that answers from other numbers than its tasks hold fails."""
    model = memtok.MemoryViT(backbone, tasks)
    report = verify(backbone, model.select(["head", "more"]))
    assert report.ok
    assert list(report.tasks) == ["head", "more"]
    with model.folded():
        assert verify(backbone, model).ok
    forward = type(model).forward

    class Stale(memtok.MemoryViT):
        """Its answers are those of the tasks before the last change."""

        before = copy.deepcopy(model)

        def forward(self, images: torch.Tensor, *, base: bool = True, attention: bool = False) -> memtok.Outputs:
            return forward(self.before, images, base=base, attention=attention)

    stale = Stale(backbone, tasks)
    assert verify(backbone, stale).ok
    with torch.no_grad():
        tasks[1].memory[0, 0, 0] += 1e-2  # pets
    report = verify(backbone, stale)
    assert not report.ok
    assert [name for name, found in report.differences.items() if not found.ok] == ["more", "pets"]  # more extends it
    assert report.differences["pets"].alone < report.differences["pets"].tolerance < report.tasks["pets"]
    with pytest.raises(MemtokError, match="expected a model of this backbone"):
        verify(memtok.load_backbone(VIT), model)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_own_forward_is_timms(pool: str) -> None:
    vit = tiny_vit(global_pool=pool, class_token=True)
    with torch.no_grad():
        features, base = own_forward(vit, tiny_images())
        assert base is not None
        assert torch.equal(base, vit(tiny_images()))
        if pool == "token":
            assert torch.equal(vit.head(features), base)


def test_a_changed_backbone_fails(backbone: memtok.Backbone, tasks: list[memtok.Task]) -> None:
    """By so little that a comparison up to 1e-5 would not see it."""
    with torch.no_grad():
        backbone.vit.blocks[1].mlp.fc2.bias[::2] += 1e-6
    report = verify(backbone, tasks)
    assert not report.ok
    assert not report.features_bitwise
    assert 0 < report.base_difference < 1e-5
    assert "differ from the source model's own" in report.failures[0]


# Sound tasks of all kinds

BACKBONES: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
    "layer scale": {"init_values": 0.7},
    "query and key norm": {"qk_norm": True},
    "norm before": {"pre_norm": True},
    "norm after pooling": {"global_pool": "avg", "fc_norm": True},
    "no bias": {"qkv_bias": False},
    "deep": {"depth": 6, "num_classes": 0},
    "wide": {"embed_dim": 96, "num_heads": 3, "depth": 4},
}
# Standard deviations of the numbers of a task: untrained, small, and so large that attention is saturated and float32
# hardly tells the logits apart. The last makes adapters as large as what they are added to.
SIZES = {"new": 0.0, "small": 0.1, "plain": 0.5, "large": 2.0, "huge": 20.0, "adapters": 0.5}


@functools.cache
def vit_of(kind: str, std: float) -> tuple[Any, memtok.Backbone]:
    """A timm model and the backbone made from it, which never changes."""
    vit = tiny_vit(**BACKBONES[kind])
    randomize_(vit, 1, std=std)
    return vit, memtok.load_backbone(vit)


def random_tasks(draw: random.Random, backbone: memtok.Backbone) -> list[memtok.Task]:
    """Up to six tasks that may extend each other."""
    tasks: list[memtok.Task] = []
    for index in range(draw.randint(1, 6)):
        regime, more = draw.choice(["memory"] * 5 + ["head"]), {}
        if regime == "memory":
            others = [task for task in tasks if task.regime == "memory"]
            more = {
                "memory": draw.choice([0, 1, 2, 5, 10, 20]),
                "queries": draw.choice([1, 1, 2, 4, 8]),
                "adapter_rank": draw.choice([0, 0, 1, 4, 8]),
                "placement": draw.choice(["before-norm", "before-norm", "after-norm"]),
                "extends": draw.sample(others, draw.randint(0, min(2, len(others)))),
            }
        task = memtok.Task.create(
            backbone,
            name=f"task {index}",
            classes=[f"class {number}" for number in range(draw.choice([1, 2, 3, 10]))],
            seed=draw.randrange(1000),
            regime=regime,
            **more,
        )
        randomize(draw, task, draw.choice(sorted(SIZES)))
        tasks.append(task)
    return tasks


def randomize(draw: random.Random, task: memtok.Task, size: str) -> None:
    before = {key: value.clone() for key, value in task.adapters.items()}
    randomize_(task, draw.randrange(1000), std=SIZES[size])
    with torch.no_grad():
        task.head.weight *= 10 ** draw.choice([-4, 0, 0, 0, 4])
        for key, value in task.adapters.items():
            if key.endswith("_up") and size != "adapters":
                value.copy_(before[key] + 0.2 * (value - before[key]))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_thousands_of_sound_tasks_pass(part: int, print_seed: Callable[[int | None], int]) -> None:
    draw = random.Random(print_seed(None) + part)
    ratios = []
    for number in range(50):
        vit, backbone = vit_of(draw.choice(sorted(BACKBONES)), draw.choice([0.0, 0.2, 0.4]))
        tasks = random_tasks(draw, backbone)
        images = tiny_images(draw.choice([1, 1, 2, 5, 20]), draw.randrange(1000)) * draw.choice([0.1, 1, 1, 10])
        report = verify(backbone, tasks, images, source=vit, batch_size=16)
        assert report.ok, (number, report)
        for found in report.differences.values():
            ratios += [found.composed / found.tolerance, found.double / found.tolerance_double]
    print(f"{len(ratios)} differences, the largest {max(ratios):.3f} of what is allowed")
    assert len(ratios) > 200


@pytest.mark.parametrize("size", sorted(SIZES))
def test_sound_tasks_pass(backbone: memtok.Backbone, size: str) -> None:
    draw = random.Random(0)
    tasks = [tiny_task(backbone, str(rank), seed=rank, queries=4, adapter_rank=rank) for rank in (0, 4, 8)]
    for task in tasks:
        randomize(draw, task, size)
    report = verify(backbone, tasks)
    assert report.ok, report
    one = verify(backbone, tasks, tiny_images(1))
    assert one.ok, one


def test_more_than_a_hundred_thousandth_is_no_fault() -> None:
    """Where attention is all but saturated, rounding alone moves answers by more; the reference moves as much."""
    vit = tiny_vit(depth=6)
    backbone = memtok.load_backbone(vit)
    task = tiny_task(backbone, queries=4, adapter_rank=8, seed=4)
    randomize_(task, 4, std=2.0)
    report = memtok.verify(backbone, [task], tiny_images(6), source=vit)
    assert report.largest_difference > 1e-5
    assert report.differences["pets"].reference > 1e-5
    assert report.differences["pets"].double < 1e-12
    assert report.ok, report


# Faults

Alter = Callable[[dict[str, memtok.Task]], None]


def answering_with(monkeypatch: pytest.MonkeyPatch, alter: Alter) -> None:
    """Every model answers as if its tasks held other numbers, as streams would that read the wrong ones."""
    forward = memtok.MemoryViT.forward

    def wrong(self: memtok.MemoryViT, images: torch.Tensor, **more: Any) -> memtok.Outputs:
        other = copy.deepcopy(self)
        with torch.no_grad():
            alter({task.name: task for task in other.tasks})
        return forward(other, images, **more)

    monkeypatch.setattr(memtok.MemoryViT, "forward", wrong)


def swap_memory_of_two_layers(tasks: dict[str, memtok.Task]) -> None:
    tasks["pets"].memory.copy_(tasks["pets"].memory.flip(0))


def one_memory_tensor_of_another_layer(tasks: dict[str, memtok.Task]) -> None:
    tasks["pets"].memory[1].copy_(tasks["pets"].memory[0])


def read_one_cell_for_another(tasks: dict[str, memtok.Task]) -> None:
    tasks["pets"].memory[0, 1].copy_(tasks["pets"].memory[0, 0])


def swap_rows_of_class_tokens(tasks: dict[str, memtok.Task]) -> None:
    tasks["pets"].class_tokens.copy_(tasks["pets"].class_tokens.flip(0))


def class_token_of_a_neighbour(tasks: dict[str, memtok.Task]) -> None:
    tasks["pets"].class_tokens[0].copy_(tasks["other"].class_tokens[0])


def adapter_of_a_neighbour(tasks: dict[str, memtok.Task]) -> None:
    tasks["pets"].adapters["proj_down"].copy_(tasks["other"].adapters["proj_down"])


def no_adapter(tasks: dict[str, memtok.Task]) -> None:
    tasks["pets"].adapters["mlp_up"].zero_()


def no_bias(tasks: dict[str, memtok.Task]) -> None:
    tasks["pets"].head.bias.zero_()


FAULTS: list[Alter] = [
    swap_memory_of_two_layers,
    one_memory_tensor_of_another_layer,
    read_one_cell_for_another,
    swap_rows_of_class_tokens,
    class_token_of_a_neighbour,
    adapter_of_a_neighbour,
    no_adapter,
    no_bias,
]


def two_tasks(backbone: memtok.Backbone, size: str) -> list[memtok.Task]:
    """pets, whose answers go wrong, and a neighbour of the same shape."""
    draw = random.Random(1)
    tasks = [
        tiny_task(backbone, name, seed=seed, memory=10, queries=2, adapter_rank=8)
        for seed, name in enumerate(("pets", "other"))
    ]
    for task in tasks:
        randomize(draw, task, size)
    return tasks


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("size", ["new", "plain", "large"])
def test_a_fault_fails(backbone: memtok.Backbone, monkeypatch: pytest.MonkeyPatch, fault: Alter, size: str) -> None:
    """However little it changes: in float64 it stands out by orders of magnitude."""
    answering_with(monkeypatch, fault)
    report = verify(backbone, two_tasks(backbone, size), images=3)
    found = report.differences["pets"]
    assert not found.ok
    assert not report.ok
    assert found.double > 1e4 * found.tolerance_double
    assert report.differences["other"].ok
    assert not report.to_json()["tasks"]["pets"]["ok"]


@pytest.mark.parametrize("size", ["new", "plain", "large"])
def test_the_same_tasks_pass_without_a_fault(
    backbone: memtok.Backbone, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    answering_with(monkeypatch, lambda tasks: None)
    tasks = two_tasks(backbone, size)
    tasks.append(tiny_task(backbone, "more", seed=5, extends=tasks[:1], memory=3))
    assert verify(backbone, tasks, images=3).ok


@pytest.mark.parametrize("change", [1e-2, 1e-3])
def test_a_stale_fold_fails(backbone: memtok.Backbone, monkeypatch: pytest.MonkeyPatch, change: float) -> None:
    """Answers in float32 come from the memory before a small step, while all else is of the task as it is now."""
    tasks = two_tasks(backbone, "plain")
    step = change * torch.randn(tasks[0].memory.shape, generator=torch.Generator().manual_seed(0))

    def before_the_step(named: dict[str, memtok.Task]) -> None:
        if named["pets"].memory.dtype == torch.float32:
            named["pets"].memory.sub_(step)

    answering_with(monkeypatch, before_the_step)
    found = verify(backbone, tasks).differences["pets"]
    assert not found.ok
    assert found.composed > 5 * found.tolerance
    assert found.double <= found.tolerance_double  # only what was folded is old


@pytest.mark.parametrize("size", ["new", "plain"])
@pytest.mark.parametrize(
    ("row", "column"),
    # Rows and then columns: 2 class tokens of pets, 1 of more, 10 cells of pets, 3 of more.
    [(0, 1), (1, 7), (0, 2), (1, 14), (2, 0), (2, 5), (2, 15)],
    ids=["own token", "own cell", "foreign token", "foreign cell", "extended token", "extended cell", "last cell"],
)
def test_one_wrong_entry_of_a_mask_fails(
    backbone: memtok.Backbone, monkeypatch: pytest.MonkeyPatch, size: str, row: int, column: int
) -> None:
    """One class token does not see one token or cell that it should see, or sees one that it should not."""
    tasks = two_tasks(backbone, size)
    tasks.append(tiny_task(backbone, "more", seed=5, extends=tasks[:1], memory=3))
    original = Layout.family_mask

    def wrong(self: Any, given: Any, family: Any) -> torch.Tensor:
        mask = original(self, given, family)
        if mask.shape == (3, 16):
            mask[row, column] = ~mask[row, column]
        return mask

    monkeypatch.setattr(Layout, "family_mask", wrong)
    report = verify(backbone, tasks, images=3)
    assert not report.ok
    assert report.differences["other"].ok
    found = report.differences["pets" if row < 2 else "more"]
    assert found.double > 1e4 * found.tolerance_double


def test_a_task_that_sees_another_fails(
    backbone: memtok.Backbone, tasks: list[memtok.Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams without their mask: `pets` sees the tokens of `more`, which extends it."""
    monkeypatch.setattr(
        Layout,
        "family_mask",
        lambda self, tasks, family: torch.ones(
            sum(tasks[index].queries for index in family),
            sum(tasks[index].queries + tasks[index].cells for index in family),
            dtype=torch.bool,
        ),
    )
    report = verify(backbone, tasks)
    assert report.features_bitwise
    assert report.tasks["pets"] > 1e-3
    assert report.tasks["head"] <= 1e-5
    assert f"task 'pets' differs from the reference by up to {report.tasks['pets']:.3g}" in "\n".join(report.failures)
    assert [name for name, found in report.differences.items() if not found.ok] == ["more", "pets"]
    assert report.differences["pets"].alone <= report.differences["pets"].tolerance


def test_an_answer_that_is_not_finite_fails(
    backbone: memtok.Backbone, tasks: list[memtok.Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = memtok.MemoryViT.forward

    def broken(self: memtok.MemoryViT, images: torch.Tensor, **more: Any) -> memtok.Outputs:
        out = original(self, images, **more)
        out.logits["head"][-1, 0] = value
        return out

    monkeypatch.setattr(memtok.MemoryViT, "forward", broken)
    for value in (math.nan, math.inf):
        report = verify(backbone, tasks)
        assert not report.ok
        assert not math.isfinite(report.tasks["head"])
        assert report.to_json()["tasks"]["head"]["difference"] == str(value)
        assert not math.isfinite(report.largest_difference)


def test_numbers_that_float32_cannot_hold_fail(backbone: memtok.Backbone) -> None:
    """The answers are finite in float64 only: nothing tells what they should be here."""
    task = tiny_task(backbone)
    with torch.no_grad():
        task.head.weight.fill_(3e38)
    report = verify(backbone, [task])
    assert not report.ok
    json.dumps(report.to_json(), allow_nan=False)


def test_weights_that_change_while_the_model_runs_fail(backbone: memtok.Backbone, tasks: list[memtok.Task]) -> None:
    def meddle(done: int, total: int) -> None:
        with torch.no_grad():
            tasks[0].head.bias[0] += 1e-7 + abs(float(tasks[0].head.bias[0])) * 1e-3

    report = verify(backbone, tasks, images=2, progress=meddle)
    assert not report.unchanged
    assert report.failures == ("the weights changed while the model ran",)


@pytest.mark.parametrize("factor", [1e4, 1e-4])
def test_logits_are_compared_by_their_size(backbone: memtok.Backbone, factor: float) -> None:
    task = tiny_task(backbone)
    plain = verify(backbone, [task]).tasks["pets"]
    with torch.no_grad():
        task.head.weight *= factor
        task.head.bias *= factor
    report = verify(backbone, [task])
    assert report.ok, report.tasks
    assert plain / 10 < report.tasks["pets"] < plain * 10


def test_images_as_tensor_and_as_data(backbone: memtok.Backbone, tasks: list[memtok.Task]) -> None:
    assert verify(backbone, tasks, tiny_images(5)).images == 5
    report = verify(backbone, tasks, "digits")
    assert report.ok
    assert report.images == 6


@pytest.mark.twice
def test_random_images_follow_from_the_seed(backbone: memtok.Backbone, tasks: list[memtok.Task]) -> None:
    state = torch.get_rng_state()
    first, again = verify(backbone, tasks), verify(backbone, tasks)
    assert first == again
    assert torch.equal(state, torch.get_rng_state())
    assert verify(backbone, tasks, seed=1).tasks != first.tasks


def test_another_source_is_refused(backbone: memtok.Backbone, tasks: list[memtok.Task]) -> None:
    with pytest.raises(MemtokError, match="expected the backbone sha256:"):
        memtok.verify(backbone, tasks, source=tiny_vit(seed=9))
    with pytest.raises(MemtokError, match="expected source= for a backbone made from an object"):
        memtok.verify(backbone, tasks)
    with pytest.raises(MemtokError, match="expected a backbone in float32"):
        memtok.verify(memtok.load_backbone(VIT, dtype=torch.bfloat16), [])


def test_the_backbone_is_read_anew_from_its_source(tmp_path: Path) -> None:
    from memtok.checkpoint import save_checkpoint

    path = tmp_path / "tiny.safetensors"
    save_checkpoint(VIT, tiny_backbone().preprocessing, path)
    backbone = memtok.load_backbone(path)
    assert memtok.verify(backbone, [tiny_task(backbone)], images=2).ok
    with torch.no_grad():
        backbone.vit.head.bias[0] += 1.0  # no part of the fingerprint
    report = memtok.verify(backbone, [], images=2)
    assert report.base_bitwise is False
    assert report.features_bitwise
    assert "the base output differ" in report.failures[0]
