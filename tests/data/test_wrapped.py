"""Anybody's torch Dataset as a data source."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from memtok.data import from_dataset
from memtok.data.transforms import as_image
from memtok.errors import MemtokError


class Pairs(Dataset[Any]):
    """A list of (picture, label); `targets` may be said, and counts how often items are asked for."""

    def __init__(self, items: list[Any], targets: Any = None, classes: Any = None) -> None:
        self.items = items
        self.asked = 0
        if targets is not None:
            self.targets = targets
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.asked += 1
        return self.items[index]


def pictures(count: int, classes: int = 2) -> list[tuple[Image.Image, int]]:
    return [(Image.new("RGB", (4, 4), (number, 0, 0)), number % classes) for number in range(count)]


def test_a_stratified_seeded_split() -> None:
    data = from_dataset(Pairs(pictures(40)), ["even", "odd"], name="mine")
    assert (data.name, data.spec, data.classes, data.flip) == ("mine", "mine", ("even", "odd"), True)
    assert (len(data.train), len(data.validation)) == (32, 8)
    assert np.bincount(data.validation.labels).tolist() == [4, 4]
    assert data.test is data.validation
    assert (data.split["kind"], data.split["seed"], data.split["fraction"]) == ("drawn", 0, 0.2)
    number = int(data.train.identity(5).removeprefix("train/"))
    picture, label = data.train[5]
    assert picture.getpixel((0, 0)) == (number, 0, 0)
    assert label == number % 2
    assert from_dataset(Pairs(pictures(40)), ["even", "odd"]).split_digest == data.split_digest
    assert from_dataset(Pairs(pictures(40)), ["even", "odd"], seed=1).split_digest != data.split_digest
    assert pickle.loads(pickle.dumps(data)).split == data.split


def test_given_validation_and_test() -> None:
    sets = [Pairs(pictures(count)) for count in (10, 6, 4)]
    data = from_dataset(sets[0], ["a", "b"], validation=sets[1], test=sets[2])
    assert [len(part) for part in (data.train, data.validation, data.test)] == [10, 6, 4]
    assert data.split["kind"] == "given"
    assert data.test.identity(3) == "test/3"


def test_targets_save_looking_at_every_item() -> None:
    quick = Pairs(pictures(10), targets=[number % 2 for number in range(10)], classes=["a", "b"])
    assert from_dataset(quick).classes == ("a", "b")
    assert quick.asked == 0
    part = Subset(quick, [1, 3, 5, 2, 4, 6])
    data = from_dataset(part)
    assert quick.asked == 0
    assert sorted(data.train.labels.tolist() + data.validation.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    slow = Pairs(pictures(10), targets=torch.zeros(10, 3), classes=["a", "b"])
    from_dataset(slow)
    assert slow.asked == 10


def test_targets_that_are_not_what_the_items_say_are_found_out() -> None:
    data = from_dataset(Pairs(pictures(10), targets=[1 - number % 2 for number in range(10)]), ["a", "b"])
    with pytest.raises(MemtokError) as error:
        data.train[0]
    assert error.value.argument == "dataset"


def test_looking_at_items_moves_no_generator() -> None:
    class Augmented(Pairs):
        def __getitem__(self, index: int) -> Any:
            random.random()
            np.random.rand()
            torch.rand(1)
            return super().__getitem__(index)

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    from_dataset(Augmented(pictures(10)), ["a", "b"])
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


PIXELS = np.array([[[0, 51, 102], [153, 204, 255]]], dtype=np.uint8)  # height 1, width 2, RGB


@pytest.mark.parametrize(
    "value",
    [
        Image.fromarray(PIXELS),
        PIXELS,
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1).float() / 255,
        PIXELS.astype(np.float64) / 255,
        (torch.from_numpy(PIXELS).permute(2, 0, 1).double() / 255).half(),
    ],
)
def test_what_a_picture_may_be(value: Any) -> None:
    picture = as_image(value)
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), PIXELS)


def test_grey_and_transparent_arrays() -> None:
    grey = np.array([[7, 8]], dtype=np.uint8)
    for value in (grey, grey[:, :, None], torch.from_numpy(grey)[None], torch.from_numpy(grey)):
        assert np.asarray(as_image(value)).tolist() == [[[7] * 3, [8] * 3]]
    see_through = np.array([[[1, 2, 3, 0]]], dtype=np.uint8)
    assert np.asarray(as_image(see_through)).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (torch.full((3, 2, 2), 1.5), "1.5 to 1.5"),
        (torch.full((3, 2, 2), -0.1), "-0.1 to -0.1"),
        (torch.full((3, 2, 2), float("nan")), "nan"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), "int64"),
        (np.zeros((3, 5, 5), dtype=np.uint8), "5 in ndarray (3, 5, 5)"),
        (torch.zeros(5, 5, 3), "5 in Tensor (5, 5, 3)"),
        (torch.zeros(3), "Tensor (3,)"),
        (torch.zeros(3, 0, 2), "Tensor (3, 0, 2)"),
        ("path.png", "str ()"),
    ],
)
def test_what_an_image_may_not_be(value: Any, found: str) -> None:
    with pytest.raises(MemtokError) as error:
        as_image(value, "item 4")
    assert error.value.argument == "dataset"
    assert f"found {found}" in str(error.value)
    assert "item 4" in str(error.value)


def test_a_tensor_dataset() -> None:
    data = from_dataset(TensorDataset(torch.rand(10, 3, 4, 4), torch.arange(10) % 2), ["a", "b"])
    assert data.train[0][0].size == (4, 4)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(pictures(4))


@pytest.mark.parametrize(
    ("dataset", "classes", "argument", "found"),
    [
        (Stream(), ["a", "b"], "dataset", "Stream"),
        (Pairs(pictures(4)), None, "classes", "none in Pairs"),
        (Pairs(pictures(4)), ["a"], "classes", "only 'a'"),
        (Pairs(pictures(9, 3)), ["a", "b"], None, "0 to 2"),
        (Pairs([]), ["a", "b"], None, "none"),
        (Pairs([(None, 0.5)]), ["a", "b"], "dataset", "tuple at item 0"),
        (Pairs([1, 2]), ["a", "b"], "dataset", "int at item 0"),
        (Pairs([(None, torch.zeros(3))]), ["a", "b"], "dataset", "tuple at item 0"),
    ],
)
def test_what_is_no_data_set(dataset: Any, classes: Any, argument: str | None, found: str) -> None:
    with pytest.raises(MemtokError) as caught:
        from_dataset(dataset, classes)
    assert caught.value.argument == argument
    assert f"found {found}" in str(caught.value)
    assert "\n" not in str(caught.value)
