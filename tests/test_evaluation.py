"""Evaluation: right numbers, one pass per data set, and nothing disturbed."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import memtok
from memtok import evaluation
from memtok.data import DataSource, evaluation_transform, from_dataset, recorded
from memtok.errors import MemtokError
from tests.tiny import bytes_of, tiny_backbone, tiny_task, tiny_vit

COLOURS = ("class 0", "class 1", "class 2")


class Pictures(torch.utils.data.Dataset[tuple[Image.Image, int]]):
    """Random pictures with random labels of three classes."""

    def __init__(self, count: int, seed: int, classes: tuple[str, ...] = COLOURS) -> None:
        generator = np.random.default_rng(seed)
        self.classes = list(classes)
        self.pixels = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.targets = [number % len(classes) for number in range(count)]
        self.read = 0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.read += 1
        return Image.fromarray(self.pixels[index]), self.targets[index]


def source_of(pictures: Pictures, name: str = "pictures") -> DataSource:
    return from_dataset(pictures, name=name, validation=pictures)


@pytest.fixture(scope="module")
def backbone() -> memtok.Backbone:
    return tiny_backbone()


@pytest.fixture
def model(backbone: memtok.Backbone) -> memtok.MemoryViT:
    pets = tiny_task(backbone, "pets", seed=1)
    more = tiny_task(backbone, "more", seed=2, extends=[pets], memory=2)
    return memtok.MemoryViT(backbone, [pets, more, tiny_task(backbone, "head", seed=3, regime="head")])


def by_hand(model: memtok.MemoryViT, pictures: Pictures, name: str) -> float:
    """Top-1 of a task, image by image."""
    transform = evaluation_transform(model.preprocessing)
    right = 0
    for index in range(len(pictures)):
        image, label = pictures[index]
        out = model(transform(image).unsqueeze(0))
        answer = out.base if name == "base" else out[name]
        assert answer is not None
        right += int(answer.argmax()) == label
    return right / len(pictures)


def test_numbers_equal_those_by_hand_composed_and_alone(model: memtok.MemoryViT) -> None:
    pictures = Pictures(20, seed=0)
    source = source_of(pictures)
    table = memtok.evaluate(model, dict.fromkeys(model.names, source), alone=True, batch_size=6)
    assert list(table.tasks) == ["pets", "more", "head"]
    for name, score in table.tasks.items():
        assert score.images == 20
        assert score.top1 == pytest.approx(by_hand(model, pictures, name))
        assert score.top5 == 1.0
        assert table.alone[name].top1 == pytest.approx(by_hand(model.select([name]), pictures, name))


def test_alone_is_computed_without_the_other_tasks(model: memtok.MemoryViT, monkeypatch: pytest.MonkeyPatch) -> None:
    """`alone` would be worth nothing if it were the composed answer, written down twice."""
    answered: list[tuple[str, ...]] = []
    original = memtok.MemoryViT.answer

    def recorded(self: memtok.MemoryViT, *arguments: Any, **more: Any) -> Any:
        answered.append(tuple(task.name for task in self.tasks))
        return original(self, *arguments, **more)

    monkeypatch.setattr(memtok.MemoryViT, "answer", recorded)
    memtok.evaluate(model, {"more": Pictures(3, 0), "head": Pictures(3, 0)}, alone=True, batch_size=3)
    assert answered == [("pets", "more", "head"), ("pets", "more"), ("pets", "more", "head"), ("head",)]


def test_tasks_on_one_data_set_share_the_pass_over_its_images(model: memtok.MemoryViT) -> None:
    shared, other = Pictures(9, seed=0), Pictures(5, seed=1)
    source = source_of(shared)
    seen: list[tuple[int, int]] = []
    data: dict[str, Any] = {"pets": source, "more": source, "head": source_of(other)}
    shared.read = other.read = 0
    table = memtok.evaluate(
        model, data, alone=True, batch_size=4, progress=lambda done, total: seen.append((done, total))
    )
    assert (shared.read, other.read) == (9, 5)
    assert seen == [(4, 14), (8, 14), (9, 14), (13, 14), (14, 14)]
    assert {name: score.images for name, score in table.tasks.items()} == {"pets": 9, "more": 9, "head": 5}


def test_one_spec_for_several_tasks_is_opened_once(model: memtok.MemoryViT, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def open_once(spec: str, **_: Any) -> DataSource:
        opened.append(spec)
        return source_of(Pictures(6, 0), spec)

    monkeypatch.setattr(recorded, "open_data", open_once)
    memtok.evaluate(model, {"pets": "somewhere", "head": "somewhere"})
    assert opened == ["somewhere"]


def test_classes_are_matched_by_name(backbone: memtok.Backbone) -> None:
    task = tiny_task(backbone, seed=4)
    model = memtok.MemoryViT(backbone, [task])
    pictures = Pictures(12, seed=2)
    expected = memtok.evaluate(model, source_of(pictures)).tasks["pets"]
    other_order = source_of(pictures).only(("class 2", "class 0", "class 1"))
    found = memtok.evaluate(model, other_order).tasks["pets"]
    assert found == expected
    fewer = memtok.evaluate(model, source_of(pictures).only(("class 2", "class 0"))).tasks["pets"]
    assert [row.images for row in fewer.per_class] == [4, 0, 4]
    assert fewer.per_class[2] == expected.per_class[2]


def test_unknown_class_names_the_class(model: memtok.MemoryViT) -> None:
    pictures = Pictures(6, seed=0, classes=("class 0", "zebra"))
    with pytest.raises(MemtokError, match="zebra") as error:
        memtok.evaluate(model, {"pets": source_of(pictures, "zoo")})
    assert error.value.argument == "data"


def test_a_task_that_cannot_compose_is_alone(backbone: memtok.Backbone) -> None:
    task = tiny_task(backbone, "shared", regime="memory-shared", seed=1)
    model = memtok.MemoryViT(backbone, [task])
    pictures = Pictures(8, seed=0)
    table = memtok.evaluate(model, pictures, alone=True)
    assert table.alone == table.tasks
    assert table.tasks["shared"].top1 == pytest.approx(by_hand(model, pictures, "shared"))


def test_base_by_class_name_and_by_position() -> None:
    backbone = tiny_backbone(num_classes=3)
    pictures = Pictures(15, seed=0)
    table = memtok.evaluate(memtok.MemoryViT(backbone), {}, base=source_of(pictures))
    assert table.base is not None
    assert table.tasks == {}
    expected = by_hand(memtok.MemoryViT(backbone), pictures, "base")
    assert table.base.top1 == pytest.approx(expected)

    backbone.classes = ("class 2", "class 1", "class 0")
    named = memtok.evaluate(memtok.MemoryViT(backbone), {}, base=source_of(pictures)).base
    assert named is not None
    assert [row.name for row in named.per_class] == ["class 2", "class 1", "class 0"]
    flipped = from_dataset(pictures, COLOURS[::-1], validation=pictures)  # the same labels, named the other way round
    again = memtok.evaluate(memtok.MemoryViT(backbone), {}, base=flipped).base
    assert again is not None
    assert again.top1 == pytest.approx(expected)


def test_base_needs_a_classifier_and_its_classes(model: memtok.MemoryViT) -> None:
    with pytest.raises(MemtokError) as error:
        memtok.evaluate(model, {}, base=source_of(Pictures(6, 0)))
    assert error.value.argument == "base"
    without = memtok.MemoryViT(tiny_backbone(num_classes=0))
    with pytest.raises(MemtokError) as error:
        memtok.evaluate(without, {}, base=source_of(Pictures(6, 0)))
    assert error.value.argument == "base"


def test_json_csv_and_pairs(model: memtok.MemoryViT, tmp_path: Path) -> None:
    source = source_of(Pictures(7, seed=0))
    table = memtok.evaluate(model, {"pets": source, "more": source}, alone=True)
    assert table.to_json() == {
        "tasks": {name: score.to_json() for name, score in table.tasks.items()},
        "base": None,
        "alone": {name: dict(score) for name, score in table.alone.items()},
        "skipped_images": 0,
        "left_out": [],
        "splits": {name: {"spec": "pictures", "part": "validation", **source.split} for name in ("pets", "more")},
    }
    own = table.to_json()["tasks"]["pets"]
    assert own.keys() == {"top1", "top5", "images", "balanced", "recall", "confusion"}
    assert own["recall"] == {row.name: row.top1 for row in table.tasks["pets"].per_class}
    assert [sum(row) for row in own["confusion"]] == [3, 2, 2]
    assert table.to_json()["alone"]["pets"].keys() == {"top1", "top5", "images", "balanced"}
    pairs = dict(table)
    assert pairs["pets/top1"] == table.tasks["pets"].top1
    assert pairs["more/alone_top5"] == 1.0

    table.write_csv(tmp_path / "classes.csv")
    with (tmp_path / "classes.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["task"] for row in rows] == ["pets"] * 3 + ["more"] * 3
    assert rows[0].keys() == {"task", "class", "images", "top1", "top5", "part"}
    assert {row["part"] for row in rows} == {"validation"}
    assert [int(row["images"]) for row in rows[:3]] == [3, 2, 2]
    assert float(rows[1]["top1"]) == pytest.approx(table.tasks["pets"].per_class[1].top1, abs=1e-6)


@pytest.fixture
def training_model(model: memtok.MemoryViT) -> Iterator[memtok.MemoryViT]:
    model.train()
    model.tasks[1].eval()
    yield model
    model.eval()


def test_mode_gradients_weights_and_generators_are_left_as_found(training_model: memtok.MemoryViT) -> None:
    modes = [module.training for module in training_model.modules()]
    weights = bytes_of(training_model)
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    memtok.evaluate(training_model, {"pets": Pictures(6, 0)}, alone=True)
    found = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    assert found == (random.random(), np.random.rand(), float(torch.rand(())))
    assert modes == [module.training for module in training_model.modules()]
    assert weights == bytes_of(training_model)
    assert all(parameter.grad is None for parameter in training_model.parameters())


def test_no_split_of_data_that_are_opened_already(model: memtok.MemoryViT) -> None:
    with pytest.raises(MemtokError, match=r"only with data given by name, found '80-20' with a DataSource"):
        memtok.evaluate(model, {"pets": source_of(Pictures(6, seed=0))}, split="80-20")


def test_wrong_names_and_parts(model: memtok.MemoryViT, backbone: memtok.Backbone) -> None:
    pictures = source_of(Pictures(6, 0))
    for data in (pictures, {"cars": pictures}, {"base": pictures}):
        with pytest.raises(MemtokError) as error:
            memtok.evaluate(model, data)
        assert error.value.argument == "data"
    with pytest.raises(MemtokError) as error:
        memtok.evaluate(model, {"pets": pictures}, part="all")
    assert error.value.argument == "part"


def test_confusion_matrices_are_written(model: memtok.MemoryViT, tmp_path: Path) -> None:
    table = memtok.evaluate(model, {"pets": source_of(Pictures(20, seed=0)), "head": source_of(Pictures(9, seed=1))})
    written = table.write_confusions(tmp_path / "confusion")
    assert sorted(path.name for path in written) == [
        f"{name}.{ending}" for name in ("head", "pets") for ending in ("csv", "json", "png")
    ]
    score = table.tasks["pets"]
    content = json.loads((tmp_path / "confusion" / "pets.json").read_text())
    assert content["classes"] == list(COLOURS)
    assert content["confusion"] == score.confusion().tolist()
    assert content["balanced"] == score.balanced
    with (tmp_path / "confusion" / "pets.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [[int(row[name]) for name in COLOURS] for row in rows] == content["confusion"]
    assert [float(row["recall"]) for row in rows] == pytest.approx(list(score.recall.values()), abs=1e-6)
    with Image.open(tmp_path / "confusion" / "pets.png") as picture:
        assert min(picture.size) > 200


def test_pictures_of_several_threads_leave_the_settings_of_matplotlib(model: memtok.MemoryViT, tmp_path: Path) -> None:
    import matplotlib

    table = memtok.evaluate(model, {"pets": source_of(Pictures(6, seed=0))})
    before = dict(matplotlib.rcParams)
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(lambda number: table.write_confusions(tmp_path / str(number)), range(4)))
    assert dict(matplotlib.rcParams) == before
    assert len({path.read_bytes() for paths in written for path in paths if path.suffix == ".png"}) == 1


def test_skipped_images_are_in_the_result(backbone: memtok.Backbone, tmp_path: Path) -> None:
    for number, name in enumerate(COLOURS):
        (tmp_path / name).mkdir()
        for index in range(4):
            Image.new("RGB", (32, 32), (number * 90, index * 60, 0)).save(tmp_path / name / f"{index}.png")
    (tmp_path / COLOURS[0] / "broken.png").write_bytes(b"no image")
    model = memtok.MemoryViT(backbone, [tiny_task(backbone)])
    spec = f"folder:{tmp_path}"
    with pytest.raises(MemtokError, match=r"broken\.png"):
        memtok.evaluate(model, spec, data_dir=tmp_path / "data")
    table = memtok.evaluate(model, spec, on_bad_image="skip", data_dir=tmp_path / "data")
    assert [Path(path).name for path in table.skipped] == ["broken.png"]
    assert table.to_json()["skipped_images"] == 1
    assert table.to_json()["left_out"] == [
        {"path": str(tmp_path / COLOURS[0] / "broken.png"), "reason": "not an image that Pillow can read"}
    ]


def test_a_class_is_found_in_any_unicode_form(backbone: memtok.Backbone, tmp_path: Path) -> None:
    """A task that was trained on a folder of macOS, by a version that took names as they came."""
    for name in ("cafe\u0301", "caf\u00e9s", "tea"):
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.new("RGB", (32, 32), (index * 60, 0, 0)).save(tmp_path / name / f"{index}.png")
    task = tiny_task(backbone, classes=3)
    task.classes = ("tea", "cafe\u0301", "cafe\u0301s")
    table = memtok.evaluate(memtok.MemoryViT(backbone, [task]), f"folder:{tmp_path}", data_dir=tmp_path / "data")
    assert table.tasks["pets"].images == 3


def test_parts(backbone: memtok.Backbone) -> None:
    model = memtok.MemoryViT(backbone, [tiny_task(backbone)])
    source = from_dataset(Pictures(12, 0), validation=Pictures(6, 1), test=Pictures(3, 2))
    counts = {
        part: memtok.evaluate(model, source, part=part).tasks["pets"].images for part in ("train", "validation", "test")
    }
    assert counts == {"train": 12, "validation": 6, "test": 3}
    assert memtok.evaluate(model, source).splits["pets"]["part"] == "test"


def test_validation_images_are_never_called_test(backbone: memtok.Backbone) -> None:
    model = memtok.MemoryViT(backbone, [tiny_task(backbone)])
    source = from_dataset(Pictures(12, 0), validation=Pictures(6, 1))
    classes = source.only(COLOURS[::-1])  # a source made of another knows it too
    for data in (source, classes):
        assert not data.has_test
        table = memtok.evaluate(model, data)
        assert table.tasks["pets"].images == 6
        assert table.splits["pets"]["part"] == table.to_json()["splits"]["pets"]["part"] == "validation"
        assert data.split["counts"] == {"train": 12, "validation": 6, "test": 0}
        with pytest.raises(MemtokError) as error:
            memtok.evaluate(model, data, part="test")
        assert error.value.argument == "part"
    # Nobody says what a torch data set is for.
    whole = memtok.evaluate(model, Pictures(5, 0)).splits["pets"]
    assert (whole["part"], whole["counts"]) == ("all", {"all": 5})


def test_labels_that_the_base_has_twice_are_counted_by_number() -> None:
    backbone = tiny_backbone(num_classes=3)
    pictures = Pictures(30, seed=0)
    by_number = memtok.evaluate(memtok.MemoryViT(backbone), {}, base=pictures).base
    assert by_number is not None
    backbone.classes = ("crane", "ox", "crane")
    model = memtok.MemoryViT(backbone)
    told_apart = ("crane (0)", "ox", "crane (2)")

    pictures.classes = ["crane", "ox", "crane"]  # the same labels in the same order: by position
    same = memtok.evaluate(model, {}, base=pictures).base
    assert same is not None
    assert (same.top1, same.confusions) == (by_number.top1, by_number.confusions)
    assert tuple(same.recall) == told_apart
    assert list(same.recall.values()) == list(by_number.recall.values())

    turned = from_dataset(pictures, told_apart, validation=pictures).only(("ox", "crane (2)"))  # by name
    some = memtok.evaluate(model, {}, base=turned).base
    assert some is not None
    assert some.recall == {"crane (0)": None, "ox": same.recall["ox"], "crane (2)": same.recall["crane (2)"]}

    for names in (("crane", "ox", "crane (2)"), ("crane", "digger", "bird")):
        with pytest.raises(MemtokError, match=r"crane \(0\)") as error:
            memtok.evaluate(model, {}, base=from_dataset(pictures, names, validation=pictures))
        assert error.value.argument == "base"


def test_the_base_names_of_a_vit_are_numbers_where_unknown() -> None:
    backbone = memtok.load_backbone(tiny_vit(num_classes=4))
    assert evaluation.classes_of(memtok.MemoryViT(backbone), "base") == ("0", "1", "2", "3")
