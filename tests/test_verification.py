"""Verification: it passes where all is well, and fails where a single thing is not."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import memtok
from memtok import verification
from memtok.errors import MemtokError
from memtok.layout import Layout
from memtok.verification import VerifyReport, own_forward
from tests.tiny import bytes_of, tiny_backbone, tiny_images, tiny_task, tiny_vit

VIT = tiny_vit()


@pytest.fixture
def backbone() -> memtok.Backbone:
    return memtok.load_backbone(VIT)


@pytest.fixture
def tasks(backbone: memtok.Backbone) -> list[memtok.Task]:
    pets = tiny_task(backbone, "pets", seed=1)
    more = tiny_task(backbone, "more", seed=2, extends=[pets], queries=2)
    return [more, pets, tiny_task(backbone, "head", seed=3, regime="head")]


def verify(backbone: memtok.Backbone, tasks: list[memtok.Task], data: Any = None, **more: Any) -> VerifyReport:
    return memtok.verify(backbone, tasks, data, source=VIT, images=6, batch_size=4, **more)


def test_all_is_well(backbone: memtok.Backbone, tasks: list[memtok.Task]) -> None:
    before = bytes_of(backbone)
    seen: list[tuple[int, int]] = []
    report = verify(backbone, tasks, progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert report.failures == ()
    assert (report.base_bitwise, report.features_bitwise, report.base_difference) == (True, True, 0.0)
    assert list(report.tasks) == ["more", "pets", "head"]
    assert 0 < report.largest_difference <= 1e-5
    assert (report.images, report.unchanged) == (6, True)
    assert seen == [(4, 6), (6, 6)]
    assert bytes_of(backbone) == before
    assert json.loads(json.dumps(report.to_json()))["ok"] is True


def test_without_tasks_and_without_classifier() -> None:
    vit = tiny_vit(num_classes=0)
    report = memtok.verify(memtok.load_backbone(vit), [], source=vit, images=2)
    assert report.ok
    assert report.base_bitwise is None
    assert report.tasks == {}


def test_tasks_that_do_not_compose_are_checked_one_by_one(backbone: memtok.Backbone) -> None:
    regimes = ("head+class", "memory-shared", "memory-propagated", "memory-additive")
    tasks = [tiny_task(backbone, regime, seed=number, regime=regime) for number, regime in enumerate(regimes)]
    report = verify(backbone, [tiny_task(backbone, "pets"), *tasks])
    assert report.ok
    assert list(report.tasks) == ["pets", *regimes]


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
    assert f"task 'pets' differs from the reference by up to {report.tasks['pets']:.3g}" in report.failures


def test_an_answer_that_is_not_finite_fails(
    backbone: memtok.Backbone, tasks: list[memtok.Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = memtok.MemoryViT.forward

    def broken(self: memtok.MemoryViT, images: torch.Tensor, **more: Any) -> memtok.Outputs:
        out = original(self, images, **more)
        out.logits["head"][-1, 0] = math.nan
        return out

    monkeypatch.setattr(memtok.MemoryViT, "forward", broken)
    report = verify(backbone, tasks)
    assert not report.ok
    assert math.isnan(report.tasks["head"])
    assert report.to_json()["tasks"]["head"]["difference"] == "nan"


def test_weights_that_change_while_the_model_runs_fail(
    backbone: memtok.Backbone, tasks: list[memtok.Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = verification.compare

    def meddling(models: Any, vit: Any, images: Any, seen: Any) -> None:
        original(models, vit, images, seen)
        with torch.no_grad():
            tasks[0].head.bias[0] += 1e-7 + abs(float(tasks[0].head.bias[0])) * 1e-3

    monkeypatch.setattr(verification, "compare", meddling)
    report = memtok.verify(backbone, tasks, source=VIT, images=2)
    assert not report.unchanged
    assert report.failures[-1] == "the weights changed while the model ran"


def test_large_logits_are_compared_by_their_size(backbone: memtok.Backbone) -> None:
    task = tiny_task(backbone)
    with torch.no_grad():
        task.head.weight *= 1e4
    report = verify(backbone, [task])
    assert report.ok, report.tasks


def test_images_as_tensor_and_as_data(backbone: memtok.Backbone, tasks: list[memtok.Task]) -> None:
    assert verify(backbone, tasks, tiny_images(5)).images == 5
    report = verify(backbone, tasks, "digits")
    assert report.ok
    assert report.images == 6


def test_random_images_follow_from_the_seed(backbone: memtok.Backbone, tasks: list[memtok.Task]) -> None:
    state = torch.get_rng_state()
    first, again = verify(backbone, tasks), verify(backbone, tasks)
    assert first == again
    assert torch.equal(state, torch.get_rng_state())
    assert dataclasses.asdict(verify(backbone, tasks, seed=1))["tasks"] != first.tasks


def test_another_source_is_refused(backbone: memtok.Backbone, tasks: list[memtok.Task], tmp_path: Path) -> None:
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
