"""Classes of unequal size: what each way to balance them does to the loss, to the order, and to a closed form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import memtok
from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.training.recipes import RECIPES
from memtok.training.state import RunFolder, read_run, write_run
from tests.tiny import bytes_of
from tests.training.helpers import Recorder, new_task, quick

WAYS = ("none", "weights", "sampling", "logits")


@pytest.fixture(scope="module")
def unequal(data: DataSource) -> DataSource:
    """All zeros and 12 ones to train on."""
    zeros, ones = (np.flatnonzero(data.train.labels == label) for label in (0, 1))
    return replace(data, train=data.train.select(np.concatenate([zeros, ones[:12]])))


def features_of(backbone: Backbone, data: DataSource) -> tuple[Tensor, Tensor]:
    transform = memtok.evaluation_transform(backbone.preprocessing)
    with torch.no_grad():
        features, _ = backbone(torch.stack([transform(data.train[index][0]) for index in range(len(data.train))]))
    return features, torch.from_numpy(data.train.labels)


def check_moved(task: memtok.Task, start: memtok.Task) -> None:
    """That a step of 0.1 times the gradient leads from `start` to `task`."""
    for found, before in ((task.head.weight, start.head.weight), (task.head.bias, start.head.bias)):
        assert before.grad is not None
        torch.testing.assert_close(found.detach(), (before - 0.1 * before.grad).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 5])
@pytest.mark.parametrize("balance", ["none", "weights", "logits"])
def test_a_step_is_that_of_the_literal_loss(
    backbone: Backbone, unequal: DataSource, balance: str, accumulate: int
) -> None:
    """One step of SGD over all images moves a head by the gradient, of weights with mean 1, or of shifted logits."""
    features, labels = features_of(backbone, unequal)
    n, ones = len(labels), 12
    task, expected = (new_task(backbone, unequal, "head") for _ in range(2))
    recipe = replace(RECIPES["paper"], momentum=0.0, clip_norm=1e9, warmup_steps=0)
    settings: dict[str, Any] = {"recipe": recipe, "learning_rate": 0.1, "steps": 1, "batch_size": n}
    result = quick(task, unequal, **settings, accumulate=accumulate, balance=balance)
    logits = F.linear(features, expected.head.weight, expected.head.bias)
    shares = torch.tensor([(n - ones) / n, ones / n])
    losses = F.cross_entropy(logits + shares.log() if balance == "logits" else logits, labels, reduction="none")
    loss = (losses / (2 * shares[labels])).mean() if balance == "weights" else losses.mean()
    loss.backward()
    check_moved(task, expected)
    assert result.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert result.record["hyperparameters"]["balance"] == balance


def test_sampling_shows_each_class_equally_often(backbone: Backbone, unequal: DataSource) -> None:
    """A step of SGD over one epoch: half of its images are ones, each of the 12 as often as the others, up to one."""
    features, labels = features_of(backbone, unequal)
    n = len(labels)
    task, expected = (new_task(backbone, unequal, "head") for _ in range(2))
    recipe = replace(RECIPES["paper"], momentum=0.0, clip_norm=1e9, warmup_steps=0)
    quick(task, unequal, recipe=recipe, learning_rate=0.1, steps=1, batch_size=n, balance="sampling")
    transform = memtok.evaluation_transform(backbone.preprocessing)
    ((_, _, indices),) = memtok.data.batches(unequal.train, transform, batch_size=n, shuffle=True, balanced=True)
    logits = F.linear(features[indices], expected.head.weight, expected.head.bias)
    F.cross_entropy(logits, labels[indices]).backward()
    check_moved(task, expected)


def test_validation_counts_as_it_is(backbone: Backbone, unequal: DataSource) -> None:
    """Of the same state: at a rate of nearly 0 every way validates as the others."""
    still: dict[str, Any] = {"steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0}
    rows = [quick(new_task(backbone, unequal), unequal, **still, balance=way).history[-1] for way in WAYS]
    assert len({round(row["validation_loss"], 6) for row in rows}) == 1


def test_where_classes_are_equal_nothing_changes(backbone: Backbone, data: DataSource) -> None:
    zeros, ones = (np.flatnonzero(data.train.labels == label)[:64] for label in (0, 1))
    equal = replace(data, train=data.train.select(np.concatenate([zeros, ones])))
    trained = {way: new_task(backbone, equal) for way in WAYS}
    for way, task in trained.items():
        quick(task, equal, balance=way)
    assert bytes_of(trained["weights"]) == bytes_of(trained["none"])
    assert bytes_of(trained["logits"]) == bytes_of(trained["none"])


@pytest.mark.twice
@pytest.mark.parametrize("more", [{}, {"keep_traces": "ram"}], ids=["live", "kept"])
@pytest.mark.parametrize("balance", ["weights", "sampling", "logits"])
def test_it_resumes_bitwise(
    backbone: Backbone, unequal: DataSource, out: Path, balance: str, more: dict[str, Any]
) -> None:
    settings = more | {"balance": balance, "augment": "crop"}
    whole, stopped, resumed, plain = (new_task(backbone, unequal, "head") for _ in range(4))
    quick(whole, unequal, **settings)
    with pytest.raises(KeyboardInterrupt):
        quick(stopped, unequal, out=out, save_every=1, progress=Recorder(stop=6), **settings)
    with pytest.raises(memtok.MemtokError, match='balance "none"'):
        quick(plain, unequal, out=out, resume=True, **(settings | {"balance": "none"}))
    quick(resumed, unequal, out=out, resume=True, **settings, workers=2)
    assert bytes_of(resumed) == bytes_of(whole)


def test_sampled_traces_train_as_sampled_images_do(backbone: Backbone, unequal: DataSource) -> None:
    """Two epochs, in which each of the ones is shown some nine times, in other views."""
    found = []
    for more in ({}, {"keep_traces": "ram", "views": 50}):
        found.append(new_task(backbone, unequal, "head"))
        quick(found[-1], unequal, balance="sampling", augment="crop", steps=18, **more)
    for live, kept in zip(*(task.parameters() for task in found), strict=True):
        torch.testing.assert_close(live, kept, rtol=0, atol=2e-2)


@pytest.mark.parametrize(("recipe", "way"), [("default", "logits"), ("paper", "none"), ("reproduction", "none")])
def test_what_recipes_do(backbone: Backbone, unequal: DataSource, recipe: str, way: str) -> None:
    by_default, named = (new_task(backbone, unequal, "head") for _ in range(2))
    quick(by_default, unequal, recipe=recipe)
    quick(named, unequal, recipe=recipe, balance=way)
    assert bytes_of(by_default) == bytes_of(named)


def test_a_run_from_before_there_was_a_balance_goes_on_without(
    backbone: Backbone, unequal: DataSource, out: Path
) -> None:
    whole, stopped, resumed = (new_task(backbone, unequal, "head") for _ in range(3))
    quick(whole, unequal, balance="none")
    with pytest.raises(KeyboardInterrupt):
        quick(stopped, unequal, out=out, save_every=1, balance="none", progress=Recorder(stop=6))
    state = RunFolder(out).state
    run = read_run(state)
    assert run
    del run.tasks[0].config["balance"]
    write_run(state, run)
    quick(resumed, unequal, out=out, resume=True)
    assert bytes_of(resumed) == bytes_of(whole)


def test_the_closed_form_balances_too(backbone: Backbone, unequal: DataSource) -> None:
    """With the logarithm of the shares taken off its bias, and with weights, which sampling stands for."""
    still: dict[str, Any] = {"steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0, "start": "ridge"}
    tasks = {way: new_task(backbone, unequal, "head", readout=3, statistics="class+mean") for way in WAYS}
    for way, task in tasks.items():
        quick(task, unequal, **still, balance=way, keep_traces="ram")
    n = len(unequal.train)
    shares = torch.tensor([(n - 12) / n, 12 / n])
    bias = tasks["none"].head.bias - (shares / shares.max()).log()
    torch.testing.assert_close(tasks["logits"].head.bias, bias, rtol=1e-4, atol=1e-4)
    weight = {way: task.readout.weight.detach() for way, task in tasks.items()}
    assert torch.equal(weight["logits"], weight["none"])
    assert not torch.allclose(weight["weights"], weight["none"], rtol=1e-2)
