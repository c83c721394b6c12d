"""Image sets and data sources: subsets, classes, and what goes into a record."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtok.data import DataSource, open_data
from memtok.data.sources import ArrayStore, ImageSet
from memtok.data.splits import digest
from memtok.errors import MemtokError


def image_set(labels: list[int], prefix: str = "train") -> ImageSet:
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None].repeat(2, axis=1).repeat(2, axis=2)
    return ImageSet(ArrayStore(pixels, prefix), np.arange(len(labels)), np.array(labels, dtype=np.int64))


def source(**changes: object) -> DataSource:
    values: dict[str, object] = {
        "spec": "made",
        "name": "made",
        "classes": ("a", "b", "c"),
        "train": image_set([0, 1, 2, 0, 1, 2, 2]),
        "validation": image_set([0, 1, 2], "validation"),
        "test": image_set([2, 1, 0], "test"),
        "split_kind": "given",
        **changes,
    }
    return DataSource(**values)  # type: ignore[arg-type]


def test_pictures_labels_and_identities() -> None:
    images = image_set([1, 0, 1])
    assert len(images) == 3
    picture, label = images[1]
    assert (picture.mode, picture.getpixel((0, 0)), label) == ("RGB", (1, 1, 1), 0)
    assert isinstance(label, int)
    assert images.identity(2) == "train/2"
    assert images.labels.dtype == np.int64
    chosen = images.select([2, 0])
    assert [chosen[index][0].getpixel((0, 0)) for index in range(2)] == [(2, 2, 2), (0, 0, 0)]
    assert chosen.identities == ["train/2", "train/0"]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 1000))
def test_take_is_stratified_nested_and_in_order(labels: list[int], count: int, seed: int) -> None:
    images = image_set(labels)
    taken = images.take(count, seed)
    assert len(taken) == min(count, len(labels))
    assert list(taken.positions) == sorted(set(taken.positions.tolist()))
    assert np.array_equal(taken.labels, images.labels[taken.positions])
    assert np.array_equal(taken.positions, images.take(count, seed).positions)
    if count >= len(set(labels)):
        assert set(taken.labels.tolist()) == set(labels)
    assert set(taken.positions.tolist()) <= set(images.take(count + 1, seed).positions.tolist())


def test_take_keeps_the_proportions_and_follows_the_seed() -> None:
    images = image_set([0] * 80 + [1] * 20)
    taken = images.take(10, seed=1)
    assert np.bincount(taken.labels).tolist() == [8, 2]
    assert taken.positions.tolist() != images.take(10, seed=2).positions.tolist()


def test_take_of_nothing_is_refused() -> None:
    with pytest.raises(MemtokError) as error:
        image_set([0, 1]).take(0)
    assert error.value.argument == "count"


def test_the_record_of_a_split() -> None:
    made = source(seed=3, fraction=0.5)
    assert json.loads(json.dumps(made.split)) == {
        "kind": "given",
        "seed": 3,
        "fraction": 0.5,
        "digest": digest(
            {
                "train": [f"train/{number}" for number in range(7)],
                "validation": [f"validation/{number}" for number in range(3)],
                "test": [f"test/{number}" for number in range(3)],
            }
        ),
        "counts": {"train": 7, "validation": 3, "test": 3},
    }


def test_only_some_classes_in_the_order_given() -> None:
    made = source().only(["c", "a"])
    assert made.classes == ("c", "a")
    assert made.train.labels.tolist() == [1, 0, 1, 0, 0]
    assert made.train.identities == ["train/0", "train/2", "train/3", "train/5", "train/6"]
    assert made.test.labels.tolist() == [0, 1]
    assert made.split_digest != source().split_digest
    assert source().only(["a", "b", "c"]).split_digest == source().split_digest


@pytest.mark.parametrize(
    ("classes", "found"), [(["a", "x"], "'x'"), (["a"], "'a'"), ([], "none"), (["a", "a"], "twice")]
)
def test_wrong_choices_of_classes(classes: list[str], found: str) -> None:
    with pytest.raises(MemtokError, match=found) as error:
        source().only(classes)
    assert error.value.argument == "classes"


def test_a_source_without_images_or_with_foreign_labels_is_refused() -> None:
    with pytest.raises(MemtokError, match="validation"):
        source(validation=image_set([]))
    with pytest.raises(MemtokError, match="found 0 to 3"):
        source(test=image_set([0, 3]))
    with pytest.raises(MemtokError, match="validation"):
        source(validation=image_set([2, 2])).only(["a", "b"])


def test_a_source_can_be_sent_to_workers() -> None:
    opened = open_data("digits")
    copy = pickle.loads(pickle.dumps(opened))
    assert copy.split == opened.split
    assert copy.train[3][0].tobytes() == opened.train[3][0].tobytes()
