"""Arguments are checked whole before anything is read or written."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.errors import MemtokError
from memtok.training import train
from memtok.training.plan import LEAST_VALIDATED, make_plan
from memtok.training.recipes import RECIPES
from memtok.training.settings import DEFAULTS, FIXED, SETTINGS, Settings
from memtok.training.state import RunFolder, read_run, write_run
from tests.training.helpers import new_task, quick

BAD: list[tuple[dict[str, Any], str]] = [
    ({"steps": 0}, "steps"),
    ({"steps": 2.5}, "steps"),
    ({"steps": True}, "steps"),
    ({"steps": 3, "epochs": 1}, "steps"),
    ({"epochs": 0}, "epochs"),
    ({"batch_size": 0}, "batch_size"),
    ({"accumulate": 0}, "accumulate"),
    ({"batch_size": 4, "accumulate": 5}, "accumulate"),
    ({"learning_rate": -0.1}, "learning_rate"),
    ({"learning_rate": 0.0}, "learning_rate"),
    ({"learning_rate": float("nan")}, "learning_rate"),
    ({"weight_decay": -1.0}, "weight_decay"),
    ({"label_smoothing": 1.0}, "label_smoothing"),
    ({"patience": 0}, "patience"),
    ({"seed": -1}, "seed"),
    ({"recipe": "papr"}, "recipe"),
    ({"device": "gpu"}, "device"),
    ({"precision": "fp8"}, "precision"),
    ({"workers": -1}, "workers"),
    ({"augment": "mixup"}, "augment"),
    ({"flip": 1}, "flip"),
    ({"flip": True, "augment": "none"}, "augment"),
    ({"split": "90-10"}, "split"),
    ({"split": "80-20"}, "split"),
    ({"on_bad_image": "ignore"}, "on_bad_image"),
    ({"validate_every": 0}, "validate_every"),
    ({"select": "accuracy"}, "select"),
    ({"validation_images": 0}, "validation_images"),
    ({"log_every": 0}, "log_every"),
    ({"save_every": 0}, "save_every"),
    ({"resume": True}, "out"),
    ({"overwrite": "yes"}, "overwrite"),
    ({"accumulate": None}, "accumulate"),
    ({"seed": True}, "seed"),
    ({"steps": 10**400}, "steps"),
    ({"epochs": 10**400}, "epochs"),
    ({"out": 3}, "out"),
    ({"compile": "no such backend"}, "compile"),
]


@pytest.mark.parametrize(("arguments", "argument"), BAD, ids=lambda value: str(value)[:30])
def test_bad_argument_is_one_line(
    backbone: Backbone, data: DataSource, arguments: dict[str, Any], argument: str
) -> None:
    if "epochs" not in arguments and "steps" not in arguments:
        arguments = {"steps": 2, **arguments}
    task = new_task(backbone, data)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    with pytest.raises(MemtokError) as caught:
        quick(task, data, **({"steps": None} | arguments))
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MemtokError, match="CUDA device, found none"):
        Settings(device="cuda")


def test_out_must_be_a_file_that_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(MemtokError, match="found the folder"):
        Settings(out=tmp_path)
    with pytest.raises(MemtokError, match=r"ends in \.safetensors"):
        Settings(out=tmp_path / "pets.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(MemtokError, match="folder that can be written"):
        Settings(out=tmp_path / "file" / "pets.safetensors")
    with pytest.raises(MemtokError, match="resume or overwrite, found both"):
        Settings(out=tmp_path / "pets.safetensors", resume=True, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    Settings(out=tmp_path / "new" / "folder" / "pets.safetensors")
    assert not (tmp_path / "new").exists()  # checking leaves nothing behind


def test_user_values_replace_the_recipe(data: DataSource) -> None:
    images = len(data.train)
    plan = make_plan(Settings(recipe="paper"), "memory", data)
    assert (plan.steps, plan.batch_size, plan.warmup, plan.momentum) == (20_000, 512, 5, 0.9)
    smoothing = {name: make_plan(Settings(recipe=name), "memory", data).label_smoothing for name in RECIPES}
    assert smoothing == {"default": 0.1, "paper": 0, "reproduction": 0}
    assert make_plan(Settings(label_smoothing=0), "memory", data).label_smoothing == 0
    assert plan.learning_rate == RECIPES["paper"].learning_rate
    assert make_plan(Settings(recipe="paper"), "full", data).learning_rate == RECIPES["paper"].full_learning_rate
    plan = make_plan(
        Settings(recipe="paper", epochs=2, batch_size=10, learning_rate=0.5, weight_decay=0.25), "full", data
    )
    assert plan.steps == 2 * -(-images // 10)
    assert (plan.batch_size, plan.learning_rate, plan.weight_decay) == (10, 0.5, 0.25)
    assert make_plan(Settings(epochs=0.001, batch_size=10), "head", data).steps == 1


def test_reproduction_runs_as_long_as_on_that_data_set(data: DataSource) -> None:
    settings = Settings(recipe="reproduction")
    assert make_plan(settings, "memory", replace(data, spec="cifar100")).steps == 15_640
    assert make_plan(settings, "memory", replace(data, spec="digits")).steps == 10 * -(-len(data.train) // 64)
    assert make_plan(Settings(recipe="reproduction", steps=7), "memory", replace(data, spec="cifar100")).steps == 7


def test_validation_is_regular_and_bounded(data: DataSource) -> None:
    plan = make_plan(Settings(steps=1000), "memory", data)
    assert plan.validate_every == 100
    assert plan.validation_images == len(data.validation) < LEAST_VALIDATED
    assert make_plan(Settings(steps=3), "memory", data).validate_every == 1
    assert make_plan(Settings(steps=3, validation_images=7), "memory", data).validation_images == 7


def test_augmentation_follows_the_data(data: DataSource) -> None:
    plan = make_plan(Settings(), "memory", data)
    assert (plan.augment, plan.flip) == ("crop", False)  # a mirrored 2 is no 2
    assert make_plan(Settings(augment="none"), "memory", data).augment == "none"
    cifar100 = replace(data, augment="crop", flip=True)
    for settings, expected in (
        (Settings(), ("crop", True)),
        (Settings(flip=False), ("crop", False)),
        (Settings(augment="inception"), ("inception", True)),
        (Settings(augment="none"), ("none", False)),  # evaluation's transform never mirrors
    ):
        plan = make_plan(settings, "memory", cifar100)
        assert (plan.augment, plan.flip) == expected
    assert make_plan(Settings(flip=True), "memory", data).flip
    photographs = replace(data, augment="inception", flip=True)
    found = {name: make_plan(Settings(recipe=name), "memory", photographs).augment for name in RECIPES}
    assert found == {"default": "light", "paper": "inception", "reproduction": "inception"}
    assert make_plan(Settings(augment="inception"), "memory", photographs).augment == "inception"


def test_train_takes_the_declared_settings_and_says_what_they_mean() -> None:
    task, data, *keywords = inspect.signature(train).parameters.values()
    assert [task.name, data.name] == ["task", "data"]
    assert {one.name: one.default for one in keywords} == DEFAULTS
    assert all(one.kind is one.KEYWORD_ONLY for one in keywords)
    words = set(re.findall(r"\w+", train.__doc__ or ""))
    assert set(SETTINGS) <= words


def test_the_record_has_the_settings_that_the_result_depends_on(backbone: Backbone, data: DataSource) -> None:
    asked = {"steps": 2, "batch_size": 8, "accumulate": 2, "weight_decay": 0.25, "seed": 3, "validate_every": 1}
    record = quick(new_task(backbone, data), data, **asked).record
    found = record["hyperparameters"] | {"recipe": record["recipe"], "seed": record["seed"]}
    assert set(FIXED) - set(found) == {"views", "patience"}  # no traces are kept, the run has its whole length
    assert asked.items() <= found.items()
    assert json.dumps(found)


def test_a_saved_run_had_the_default_of_a_setting_that_it_does_not_know(
    backbone: Backbone, data: DataSource, out: Path
) -> None:
    quick(new_task(backbone, data), data, steps=4, out=out)
    path = RunFolder(out).state
    run = read_run(path)
    assert run is not None
    del run.tasks[0].config["accumulate"]
    write_run(path, run)
    with pytest.raises(MemtokError, match="accumulate"):
        quick(new_task(backbone, data), data, steps=4, accumulate=2, out=out, resume=True)
    assert quick(new_task(backbone, data), data, steps=4, out=out, resume=True).steps == 4
