"""Which state of a run is the best, what is said of it, and what classes of different size may not hide."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import memtok
from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.errors import MemtokError
from memtok.training import RichProgress
from memtok.training.state import RunFolder, Validation
from memtok.training.trainer import Trainer
from tests.tiny import bytes_of
from tests.training.helpers import Recorder, new_task, quick

COUNTS = {"apple": 700, "pear": 40, "quince": 12}
KEYS_OF_0_1 = ("format", "config", "step", "seconds", "training_seconds", "best", "last", "history")


def test_rule_for_the_best() -> None:
    def at(top1: float, balanced: float, loss: float) -> Validation:
        return Validation(step=1, top1=top1, top5=1.0, loss=loss, balanced=balanced)

    one, other = at(0.9, 0.3, 0.5), at(0.6, 0.6, 0.7)
    for select, better, worse in (("top1", one, other), ("balanced", other, one), ("loss", one, other)):
        assert better.beats(None, select)
        assert better.beats(worse, select)
        assert not worse.beats(better, select)
        assert not better.beats(better, select)  # of equal ones the earlier one stays
    for select in ("top1", "balanced", "loss"):
        assert at(0.5, 0.5, 0.1).beats(at(0.5, 0.5, 0.2), select)  # then the lower loss


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 700, 40 and 12 pictures."""
    folder = tmp_path_factory.mktemp("unequal") / "fruit"
    generator = np.random.default_rng(0)
    for name, count in COUNTS.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def test_a_model_that_answers_one_class_is_no_good_one(backbone: Backbone, unequal: Path, tmp_path: Path) -> None:
    data = memtok.open_data(f"folder:{unequal}", data_dir=tmp_path)
    task = memtok.Task.create(backbone, name="fruit", classes=data.classes, memory=1, seed=0)
    with torch.no_grad():
        task.head.bias[0] = 50.0
    stream, out = io.StringIO(), tmp_path / "fruit.safetensors"
    listener = RichProgress(Console(file=stream, width=200))
    settings: dict[str, Any] = {"learning_rate": 1e-6, "validate_every": 1, "steps": 3, "out": out}
    result = quick(task, data, progress=listener, **settings)
    assert (result.best_accuracy, result.best_balanced) == (140 / 150, pytest.approx(1 / 3))
    assert result.score is not None
    assert result.score.recall == {"apple": 1.0, "pear": 0.0, "quince": 0.0}
    assert result.score.confusion().tolist() == [[140, 0, 0], [8, 0, 0], [2, 0, 0]]
    assert len(result.warnings) == 2
    assert stream.getvalue().count("warning: ") == 2
    assert "best so far" not in stream.getvalue()
    assert "balanced 33.3 %" in stream.getvalue()

    folder = out.with_suffix(".run")
    looks = [
        row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "validation_top1" in row
    ]
    assert [row["validation_balanced"] for row in looks] == [pytest.approx(1 / 3)] * 3
    assert result.record["metrics"]["validation_balanced"] == result.best_balanced
    matrix = json.loads((folder / "confusion.json").read_text())
    assert (matrix["confusion"], matrix["balanced"]) == (result.score.confusion().tolist(), result.best_balanced)
    with (folder / "confusion.csv").open(newline="") as lines:
        assert [row["recall"] for row in csv.DictReader(lines)] == ["1.000000", "0.000000", "0.000000"]
    with Image.open(folder / "confusion.png") as picture:
        assert picture.format == "PNG"
    again = quick(task, data, resume=True, **settings)  # a finished run knows it all from its state
    assert again.score == result.score

    measured = memtok.evaluate(memtok.MemoryViT(backbone, [result.task]), data, part="validation")
    assert measured.tasks["fruit"] == result.score
    assert measured.to_json()["tasks"]["fruit"]["recall"] == {"apple": 1.0, "pear": 0.0, "quince": 0.0}


@pytest.mark.parametrize(
    ("select", "best", "better"), [(None, 8, {4, 8}), ("balanced", 8, {4, 8}), ("top1", 6, {6}), ("loss", 10, {6, 10})]
)
def test_select(
    backbone: Backbone,
    data: DataSource,
    monkeypatch: pytest.MonkeyPatch,
    select: str | None,
    best: int,
    better: set[int],
) -> None:
    """top-1, balanced and loss are best at different steps, and only what got better is said to be the best so far."""
    told = {2: (0.8, 0.4, 0.5), 4: (0.8, 0.5, 0.6), 6: (0.9, 0.3, 0.4), 8: (0.7, 0.6, 0.6), 10: (0.7, 0.5, 0.3)}

    def pretend(self: Trainer, step: int, *_: Any) -> list[tuple[Validation, torch.Tensor]]:
        top1, balanced, loss = told[step]
        return [(Validation(step=step, top1=top1, top5=1.0, loss=loss, balanced=balanced), torch.zeros(3, 1))]

    monkeypatch.setattr(Trainer, "validate", pretend)
    listener = Recorder()
    result = quick(
        new_task(backbone, data), data, steps=10, validate_every=2, **({"select": select} if select else {}),
        progress=listener,
    )  # fmt: skip
    assert result.best_step == best
    assert (result.best_accuracy, result.best_balanced) == told[best][:2]
    assert (result.final_accuracy, result.final_balanced) == told[10][:2]
    assert {row["step"] for row, praised in listener.said("validation") if praised} == better
    assert result.record["hyperparameters"]["select"] == (select or "balanced")


def test_a_lower_loss_alone_is_no_better_number(
    backbone: Backbone, data: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretend(self: Trainer, step: int, *_: Any) -> list[tuple[Validation, torch.Tensor]]:
        return [(Validation(step=step, top1=0.5, top5=1.0, loss=1 / step, balanced=0.5), torch.zeros(3, 1))]

    monkeypatch.setattr(Trainer, "validate", pretend)
    listener = Recorder()
    result = quick(new_task(backbone, data), data, progress=listener)
    assert result.best_step == 8  # it is the state that is kept
    assert [praised for _, praised in listener.said("validation")] == [False, False]


def as_written_by_0_1(state: Path) -> None:
    """Takes out of a saved state what version 0.1 did not write."""
    with safe_open(state, framework="pt") as stream:
        header = json.loads(stream.metadata()["memtok-run"])
    (task,) = header["tasks"]
    header = {key: (task | header)[key] for key in KEYS_OF_0_1} | {"format": 1}
    del header["config"]["select"]
    for row in (header["best"], header["last"]):
        del row["balanced"]
    for row in header["history"]:
        row.pop("validation_balanced", None)
    tensors = {name.removeprefix("0."): value for name, value in load_file(state).items()}
    del tensors["answers"]
    if "pending" in tensors:
        tensors["pending"] = tensors["pending"].squeeze(1)
    save_file(tensors, state, metadata={"memtok-run": json.dumps(header)})


@pytest.mark.twice
def test_a_state_of_version_0_1_goes_on_as_it_was_begun(backbone: Backbone, data: DataSource, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 6, "validate_every": 2, "save_every": 1}
    expected = quick(new_task(backbone, data), data, select="top1", **settings)
    for stop in (3, 6):
        out = tmp_path / str(stop) / "digits.safetensors"
        with pytest.raises(KeyboardInterrupt):
            quick(new_task(backbone, data), data, out=out, progress=Recorder(stop), **settings)
        as_written_by_0_1(RunFolder(out).state)
        with pytest.raises(MemtokError, match='select "balanced" where that run has select "top1"'):
            quick(new_task(backbone, data), data, out=out, resume=True, select="balanced", **settings)
        result = quick(new_task(backbone, data), data, out=out, resume=True, **settings)
        assert (result.best_step, result.best_accuracy) == (expected.best_step, expected.best_accuracy)
        for one, other in zip(result.task.parameters(), expected.task.parameters(), strict=True):
            assert torch.equal(one, other)
        assert result.record["hyperparameters"]["select"] == "top1"
        if result.best_step < stop:  # its answers were never kept
            assert (result.score, result.best_balanced, result.warnings) == (None, None, [])
            assert not (RunFolder(out).path / "confusion.png").exists()


@pytest.fixture
def worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every validation of a run finds less than the one before."""
    validate = Trainer.validate

    def fading(self: Trainer, step: int, *rest: Any) -> Any:
        return [
            (replace(found, balanced=1 / step, loss=float(step)), given) for found, given in validate(self, step, *rest)
        ]

    monkeypatch.setattr(Trainer, "validate", fading)


@pytest.mark.usefixtures("worse")
def test_patience_ends_a_run_and_resuming_ends_it_at_the_same_step(
    backbone: Backbone, data: DataSource, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": 20, "validate_every": 3, "patience": 2}
    whole, listener = tmp_path / "whole.safetensors", Recorder()
    result = quick(new_task(backbone, data), data, out=whole, progress=listener, **settings)
    assert (result.steps, result.best_step) == (9, 3)  # the best one, and two more
    assert {"steps": 9, "completed": True, "ended_early": True}.items() <= result.record.items()
    assert result.record["hyperparameters"]["patience"] == 2
    last = load_file(RunFolder(whole).last)

    out = tmp_path / "stopped.safetensors"
    for stop in (5, 9):
        with pytest.raises(KeyboardInterrupt):
            quick(
                new_task(backbone, data), data, out=out, resume=True, save_every=1, progress=Recorder(stop), **settings
            )
    for session in range(2):  # it goes on to its end, and is over then
        listener = Recorder()
        again = quick(new_task(backbone, data, seed=7), data, out=out, resume=True, progress=listener, **settings)
        assert listener.said("step") == ([9] if session == 0 else [])
        assert (again.steps, again.best_step) == (9, 3)
        assert bytes_of(again.task) == bytes_of(result.task)
        assert all(torch.equal(value, last[name]) for name, value in load_file(RunFolder(out).last).items())
    assert quick(new_task(backbone, data), data, **(settings | {"patience": 7})).steps == 20
