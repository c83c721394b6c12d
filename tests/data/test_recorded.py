"""The split of the training is the split of the evaluation, and no other tests on what was trained on."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

import memtok
from memtok.data import DataSource, open_data
from memtok.data.recorded import open_as_trained, opening_key, trained_on
from memtok.data.splits import SPLIT_FILE_80_20
from memtok.errors import MemtokError
from tests.data.test_folders import fill
from tests.tiny import tiny_backbone, tiny_task


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMTOK_DATA", str(tmp_path / "cache"))


def record_of(data: DataSource) -> dict[str, Any]:
    return {"data": {"spec": data.spec, "name": data.name, "split": data.split}}


def reopened(spec: str, trained: DataSource, **options: Any) -> DataSource:
    settings: dict[str, Any] = {"who": "task 'x'", "classes": trained.classes, "part": None}
    return open_as_trained(spec, record_of(trained), **(settings | options))


@pytest.mark.parametrize("options", [{}, {"split": "80-20"}, {"split": "80-20", "seed": 3}, {"seed": 5}])
def test_the_split_of_the_training_is_taken_up(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    trained = open_data("digits", validation_fraction=0.3, **options)
    assert reopened("digits", trained).split == trained.split
    assert reopened("digits", trained, split=trained.split_kind).split == trained.split
    assert caplog.records == []


def test_other_data_are_opened_as_always() -> None:
    trained = open_data("digits", split="80-20")
    record = record_of(trained)
    record["data"]["spec"] = "mnist"
    opened = open_as_trained("digits", record, who="x", classes=trained.classes, part="test")
    assert opened.split == open_data("digits").split
    for broken in ({}, {"data": None}, {"data": {"spec": "digits", "split": {"kind": "80-20"}}}):
        assert trained_on(broken) is None
        assert opening_key("digits", broken) == ("digits", None)


def test_a_split_that_tests_on_training_images_is_refused() -> None:
    trained = open_data("digits", split="80-20")
    official = open_data("digits")
    common = len(set(trained.train.identities) & set(official.test.identities))
    with pytest.raises(MemtokError) as caught:
        reopened("digits", trained, split="official")
    assert str(caught.value) == (
        f"expected a test part that task 'x' was not trained on, found {common} of its training images (split 80-20) "
        "among the 359 of digits (split official); leave the split out to take that of the training"
    )
    assert reopened("digits", trained, split="official", part="train").split == official.split
    with pytest.raises(MemtokError) as error:
        reopened("digits", official, split="80-20", part="validation")
    assert error.value.argument == "split"


def test_a_task_of_some_classes_is_known_by_its_images(caplog: pytest.LogCaptureFixture) -> None:
    trained = open_data("digits", split="80-20").only(["1", "2"])
    opened = reopened("digits", trained)
    assert opened.classes == open_data("digits").classes
    assert opened.only(["2", "1"]).split_digest == trained.split_digest
    assert caplog.records == []  # the digests of ten classes and of two differ, but nothing changed


def test_images_that_came_or_went_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        fill(tmp_path / "photos" / name, 10)
    spec = f"folder:{tmp_path}/photos"
    trained = open_data(spec)
    with caplog.at_level(logging.WARNING, "memtok"):
        assert reopened(spec, trained).split == trained.split
        assert caplog.records == []
        fill(tmp_path / "photos" / "a", 20)
        assert reopened(spec, trained).split != trained.split
    (record,) = caplog.records
    assert "is not split as it was when task 'x' was trained" in record.getMessage()


def test_the_80_20_split_of_a_folder(tmp_path: Path) -> None:
    for part, count in (("train", 10), ("val", 5), ("test", 5)):
        for name in ("a", "b"):
            fill(tmp_path / "photos" / part / name, count)
    spec = f"folder:{tmp_path}/photos"
    data = open_data(spec, split="80-20")
    assert data.split["kind"] == "80-20"
    assert data.split["counts"] == {"train": 26, "validation": 6, "test": 8}
    names = [name for part in (data.train, data.validation, data.test) for name in part.identities]
    assert len(set(names)) == 40
    assert {name.split("/")[0] for name in names} == {"train", "val", "test"}
    for name in ("a", "b"):  # what is written holds; new images are added to it
        fill(tmp_path / "photos" / "train" / name, 15)
    again = open_data(spec, split="80-20")
    assert set(data.test.identities) < set(again.test.identities)
    assert set(data.train.identities) < set(again.train.identities)
    with pytest.raises(MemtokError) as error:
        open_data(spec, split="80-20", seed=1)
    assert error.value.argument == "seed"
    assert SPLIT_FILE_80_20 in str(error.value)
    # Its own parts are another split, and the written files do not disturb each other.
    official = open_data(spec, split="official")
    assert official.split["kind"] == "official"
    assert official.split_digest == open_data(spec).split_digest
    assert official.split["counts"] == {"train": 30, "validation": 10, "test": 10}
    with pytest.raises(MemtokError) as error:
        reopened(spec, again, split="official")
    assert error.value.argument == "split"


def test_a_split_that_tests_on_the_images_that_chose_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for part, count in (("train", 8), ("val", 2)):
        for name in ("a", "b"):
            fill(root / part / name, count)
    trained = open_data(f"folder:{root}", split="official")
    other = {"format": "memtok-split", "version": 1, "seed": 0, "fraction": 0.2, "test": trained.validation.identities}
    other |= {
        "train": trained.train.identities[1:-1],
        "validation": trained.train.identities[:: len(trained.train) - 1],
    }
    (root / SPLIT_FILE_80_20).write_text(json.dumps(other))
    assert set(open_data(f"folder:{root}", split="80-20").test.identities) == set(trained.validation.identities)
    with pytest.raises(MemtokError, match="4 of its validation images") as error:
        reopened(f"folder:{root}", trained, split="80-20")
    assert error.value.argument == "split"


def test_a_folder_without_parts_has_no_official_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(tmp_path / "photos" / name, 10)
    with pytest.raises(MemtokError) as error:
        open_data(f"folder:{tmp_path}/photos", split="official")
    assert error.value.argument == "split"
    assert not list((tmp_path / "photos").glob("*.json"))
    open_data(f"folder:{tmp_path}/photos")
    open_data(f"folder:{tmp_path}/photos", split="80-20")
    assert len(list((tmp_path / "photos").glob("*.json"))) == 2


def test_a_folder_that_was_moved_keeps_its_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(tmp_path / "photos" / name, 10)
    trained = open_data(f"folder:{tmp_path}/photos", split="80-20")
    shutil.move(tmp_path / "photos", tmp_path / "moved")
    assert reopened(f"folder:{tmp_path}/moved", trained).split_digest == trained.split_digest
    # Other images with such a split are other data.
    for name in ("a", "b"):
        fill(tmp_path / "other" / name, 12)
    open_data(f"folder:{tmp_path}/other", split="80-20")
    assert reopened(f"folder:{tmp_path}/other", trained).split_kind == "drawn"


def test_a_task_file_names_the_folder_and_not_where_it_lay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The folder is known again by its name and its written split, wherever it lies by then."""
    for name in ("a", "b"):
        fill(tmp_path / "here" / "photos" / name, 10)
        fill(tmp_path / "else" / "photos" / name, 12)  # other data of the same name, which memtok never split
    backbone = tiny_backbone()
    task = memtok.Task.create(backbone, name="x", classes=["a", "b"], memory=1, seed=0)
    quick: dict[str, Any] = {"steps": 2, "batch_size": 4, "device": "cpu", "workers": 0}
    memtok.train(task, f"folder:{tmp_path}/here/photos", split="80-20", out=tmp_path / "x.safetensors", **quick)
    assert task.record["data"]["spec"] == "folder:photos"
    assert str(tmp_path).encode() not in (tmp_path / "x.safetensors").read_bytes()

    (tmp_path / "there").mkdir()
    shutil.move(tmp_path / "here" / "photos", tmp_path / "there" / "photos")
    model = memtok.MemoryViT(backbone, [memtok.load_task(tmp_path / "x.safetensors", backbone)])
    caplog.clear()
    found = memtok.evaluate(model, f"folder:{tmp_path}/there/photos").splits["x"]
    assert (found["part"], found["digest"]) == ("test", task.record["data"]["split"]["digest"])
    assert memtok.evaluate(model, f"folder:{tmp_path}/else/photos").splits["x"]["kind"] == "drawn"
    assert caplog.records == []
    assert not (tmp_path / "else" / "photos" / SPLIT_FILE_80_20).exists()


def test_evaluate_opens_what_each_task_was_trained_on() -> None:
    backbone = tiny_backbone()
    names = [str(digit) for digit in range(10)]
    tasks = []
    for number, split in enumerate((None, "80-20", "official")):
        task = memtok.Task.create(backbone, name=f"task-{number}", classes=names, seed=number)
        task.record = record_of(open_data("digits", split=split))
        tasks.append(task)
    model = memtok.MemoryViT(backbone, tasks)
    seen: list[int] = []
    table = memtok.evaluate(
        model, dict.fromkeys(model.names, "digits"), batch_size=128, progress=lambda _, total: seen.append(total)
    )
    kinds = {name: split["kind"] for name, split in table.splits.items()}
    assert kinds == {"task-0": "official", "task-1": "80-20", "task-2": "official"}
    assert table.to_json()["splits"]["task-1"]["digest"] == open_data("digits", split="80-20").split_digest
    assert set(seen) == {2 * 359}  # the two that share a split share the pass
    with pytest.raises(MemtokError, match="task-1") as error:
        memtok.evaluate(model, dict.fromkeys(model.names, "digits"), split="official")
    assert error.value.argument == "split"


def test_a_split_of_data_that_are_open_already_is_refused() -> None:
    model = memtok.MemoryViT(tiny_backbone(), [tiny_task(tiny_backbone(), "pets", classes=10)])
    with pytest.raises(MemtokError) as error:
        memtok.evaluate(model, open_data("digits"), split="80-20")
    assert error.value.argument == "split"
    task = memtok.Task.create(tiny_backbone(), name="digits", classes=open_data("digits").classes)
    with pytest.raises(MemtokError) as error:
        memtok.train(task, open_data("digits"), split="80-20", steps=1)
    assert error.value.argument == "split"
