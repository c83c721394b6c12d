"""examples/mnist_from_scratch.py: runs, trains on the training split only, and notices when an old answer changes."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import memtok
from memtok.data import DataSource, ImageSet


@pytest.fixture
def script(root: Path) -> ModuleType:
    """The example as a module of its own."""
    spec = importlib.util.spec_from_file_location("mnist_from_scratch", root / "examples" / "mnist_from_scratch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def digits() -> DataSource:
    """Fifty images to train on, twenty each to validate and to test on; all ten digits among them."""
    data = memtok.open_data("digits")
    parts = {"train": data.train.take(50), "validation": data.validation.take(20), "test": data.test.take(20)}
    return DataSource(spec="digits", name="digits", classes=data.classes, split_kind="given", flip=False, **parts)


@pytest.mark.slow
def test_runs(root: Path) -> None:
    command = [sys.executable, "-W", "error", str(root / "examples" / "mnist_from_scratch.py")]
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    result = subprocess.run(
        [*command, "--data", "digits", "--steps", "2"], env=environment, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    rows = [
        dict(re.findall(r"(\S+) ([\d.]+) %", line)) for line in result.stdout.splitlines() if "test accuracy" in line
    ]
    assert [list(row) for row in rows] == [
        ["0-4"],
        ["0-4", "5-9"],
        ["0-4", "half"],
        ["0-4", "parity"],
        ["0-4", "5-9", "half", "parity"],
        ["0-4", "5-9", "half", "parity", "0-9"],
    ]
    for row in rows:
        assert row.items() <= rows[-1].items()
    assert "Unchanged: every accuracy to the last digit" in result.stdout


def untrained(monkeypatch: pytest.MonkeyPatch, script: ModuleType, digits: DataSource) -> None:
    """Makes `main` quick: tasks are made and not trained, on few images."""

    def train_task(
        backbone: memtok.Backbone, name: str, data: DataSource, steps: int, extends: Any = ()
    ) -> memtok.Task:
        return memtok.Task.create(backbone, name=name, classes=data.classes, extends=extends, seed=0)

    monkeypatch.setattr(script, "train_task", train_task)
    monkeypatch.setattr(script.memtok, "open_data", lambda *args, **more: digits)


def test_notices_a_change(script: ModuleType, digits: DataSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old accuracy that is different later on fails, by however little."""
    untrained(monkeypatch, script, digits)
    measure, calls = script.measure, []

    def drifting(model: memtok.MemoryViT, sources: dict[str, DataSource]) -> dict[str, float]:
        calls.append(model)
        found = dict(measure(model, sources))
        if len(calls) == 6:
            found["5-9"] += 1e-12
        return found

    script.main("digits", 1, None)
    monkeypatch.setattr(script, "measure", drifting)
    with pytest.raises(AssertionError, match="5-9 changed"):
        script.main("digits", 1, None)
    assert len(calls) == 6


def test_notices_a_changed_backbone(script: ModuleType, digits: DataSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone's own answer has to stay, bit by bit, even where no accuracy shows it."""
    untrained(monkeypatch, script, digits)
    train_vit = script.train_vit

    def other_afterwards(data: DataSource, steps: int) -> Any:
        vit = train_vit(data, steps)
        load_backbone = memtok.load_backbone

        def load(source: Any) -> memtok.Backbone:
            backbone = load_backbone(source)
            with torch.no_grad():
                vit.head.bias += 1e-6  # what verify compares with is no longer what was loaded
            return backbone

        monkeypatch.setattr(script.memtok, "load_backbone", load)
        return vit

    monkeypatch.setattr(script, "train_vit", other_afterwards)
    with pytest.raises((AssertionError, memtok.MemtokError), match="differ"):
        script.main("digits", 1, None)


def test_trains_on_the_training_split(script: ModuleType, digits: DataSource, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[ImageSet] = []
    tested: list[ImageSet] = []
    batches, train, evaluate = script.batches, memtok.train, memtok.evaluate

    def noted(images: ImageSet, *args: Any, **more: Any) -> Any:
        (trained if more.get("shuffle") else tested).append(images)
        return batches(images, *args, **more)

    def noted_train(task: memtok.Task, data: DataSource, **more: Any) -> Any:
        trained.extend([data.train, data.validation])
        return train(task, data, **more)

    def noted_evaluate(model: memtok.MemoryViT, data: Any, **more: Any) -> Any:
        assert more.get("part", "test") == "test"
        tested.extend(source.test for source in [*data.values(), more["base"]])
        return evaluate(model, data, **more)

    monkeypatch.setattr(script.memtok, "open_data", lambda *args, **more: digits)
    monkeypatch.setattr(script, "batches", noted)
    monkeypatch.setattr(script.memtok, "train", noted_train)
    monkeypatch.setattr(script.memtok, "evaluate", noted_evaluate)
    script.main("digits", 1, None)
    assert len(trained) == 1 + 2 * 4
    seen = {name for images in trained for name in images.identities}
    measured = {name for images in tested for name in images.identities}
    assert measured == set(digits.test.identities)
    assert not seen & measured


def test_regroup(script: ModuleType, digits: DataSource) -> None:
    """The same images, other labels."""
    parity = script.regroup(digits, ("even", "odd"), np.arange(10) % 2)
    assert parity.classes == ("even", "odd")
    for part in ("train", "validation", "test"):
        before, after = getattr(digits, part), getattr(parity, part)
        assert before.identities == after.identities
        assert np.array_equal(before.labels % 2, after.labels)
