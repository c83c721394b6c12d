"""Training draws from generators of its own: runs in several threads, and the caller, never disturb each other."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memtok.backbone import Backbone
from memtok.data import DataSource, from_dataset
from memtok.training import Progress, train_together
from tests.tiny import bytes_of, tiny_backbone
from tests.training.helpers import new_task, quick


def draw() -> tuple[float, float, float]:
    """One number of each global generator."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


class Drawing(Progress):
    """Draws from the global generators whenever it is called, as another thread of the caller's may at that moment."""

    def __init__(self) -> None:
        self.drawn: list[tuple[float, float, float]] = []

    def start(self, info: Any) -> None:
        self.drawn.append(draw())

    def step(self, step: int) -> None:
        self.drawn.append(draw())

    def log(self, row: Any) -> None:
        self.drawn.append(draw())

    def validation(self, row: Any, best: bool) -> None:
        self.drawn.append(draw())


class Noise:
    """A torch Dataset whose items come from the global generators."""

    classes = ("0", "1")

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(3, 36, 36) * random.random() * float(np.random.rand()), index % 2


RUNS: dict[str, dict[str, Any]] = {
    "images": {"augment": "inception", "flip": True},
    "kept traces": {"augment": "crop", "keep_traces": "ram"},
    "workers": {"augment": "inception", "workers": 2},
    "whole model": {"regime": "full", "augment": "crop"},
    "dropout": {"regime": "full", "backbone": "dropout"},
    "data set": {"data": "noise", "augment": "inception"},
}


@pytest.fixture(scope="module")
def backbones(backbone: Backbone) -> dict[str, Backbone]:
    return {"plain": backbone, "dropout": tiny_backbone(proj_drop_rate=0.5)}


@pytest.fixture(scope="module")
def sources(data: DataSource) -> dict[str, DataSource]:
    return {"digits": data, "noise": from_dataset(Noise())}


def end_of(
    backbones: dict[str, Backbone],
    sources: dict[str, DataSource],
    *,
    regime: str = "memory",
    backbone: str = "plain",
    data: str = "digits",
    **arguments: Any,
) -> dict[str, bytes]:
    """The tensors of a run."""
    model = new_task(backbones[backbone], sources[data], regime)
    quick(model, sources[data], steps=4, validate_every=2, **arguments)
    return bytes_of(model)


@pytest.mark.twice
@pytest.mark.parametrize("name", RUNS)
def test_the_callers_numbers_are_what_they_are_without_training(
    backbones: dict[str, Backbone], sources: dict[str, DataSource], name: str
) -> None:
    alone = end_of(backbones, sources, **RUNS[name])
    listener = Drawing()
    seed(7)
    first = draw()
    ended = end_of(backbones, sources, progress=listener, **RUNS[name])
    found = [first, *listener.drawn, draw()]
    seed(7)
    assert found == [draw() for _ in found]
    assert len(found) > 6
    assert ended == alone


@pytest.mark.twice
def test_tasks_that_train_together_leave_them_alone_too(backbone: Backbone, data: DataSource) -> None:
    listener = Drawing()
    tasks = [new_task(backbone, data, name=name) for name in ("one", "two")]
    seed(7)
    train_together(tasks, data, steps=3, batch_size=16, augment="inception", device="cpu", progress=listener)
    found = [*listener.drawn, draw()]
    seed(7)
    assert found == [draw() for _ in found]


@pytest.mark.twice
def test_runs_in_two_threads_end_as_each_does_alone(
    backbones: dict[str, Backbone], sources: dict[str, DataSource]
) -> None:
    # Not "workers": the fork of a process with threads may hang.
    runs = [RUNS[name] for name in ("images", "dropout", "data set", "kept traces")]
    runs += [{"augment": "crop", "precision": "bf16"}, RUNS["data set"] | {"seed": 1}]
    alone = [end_of(backbones, sources, **run) for run in runs]
    assert len({repr(end) for end in alone}) == len(runs)
    seed(7)
    before = draw()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda run: end_of(backbones, sources, **run), runs))
    assert found == alone
    after = draw()
    seed(7)
    assert [before, after] == [draw(), draw()]
