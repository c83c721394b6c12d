"""Batches follow from the seed: not from workers, interruptions or the global generators."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import warnings
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from memtok.data import batches, open_data, steps_per_epoch, training_transform
from memtok.data.loader import Batch
from memtok.data.sources import ImageSet
from memtok.data.splits import Indices
from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing

SETTINGS = Preprocessing(
    image_size=(16, 16),
    resize=18,
    crop=True,
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    position_resize="timm",
)


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return open_data("digits").train.take(30, 0)


def by_chance(image: Image.Image) -> Tensor:
    """Draws from all three global generators."""
    return torch.tensor([random.random(), float(np.random.rand()), float(torch.rand(1))]).reshape(3, 1, 1)


@dataclass(frozen=True)
class CountingStore:
    """Remembers what was read."""

    read_positions: list[int] = field(default_factory=list)

    def read(self, position: int) -> Image.Image:
        self.read_positions.append(position)
        return Image.new("RGB", (1, 1), (position % 256, 0, 0))

    def identity(self, position: int) -> str:
        return str(position)


def numbered(count: int) -> ImageSet:
    indices: Indices = np.arange(count)
    return ImageSet(CountingStore(), indices, indices % 3)


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one, other)
        for left, right in zip(first, second, strict=True)
        for one, other in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("augment", ["inception", "crop", "none"])
def test_workers_change_nothing(digits: ImageSet, augment: str) -> None:
    transform = training_transform(SETTINGS, augment)
    options: dict[str, Any] = {"batch_size": 8, "seed": 3, "shuffle": True, "steps": 6}
    expected = list(batches(digits, transform, workers=0, **options))
    found = list(batches(digits, transform, workers=2, **options))
    assert same(found, expected)
    images, labels, indices = expected[0]
    assert (images.shape, images.dtype) == ((8, 3, 16, 16), torch.float32)
    assert (labels.dtype, indices.dtype) == (torch.int64, torch.int64)
    assert labels.tolist() == digits.labels[indices.numpy()].tolist()


@pytest.mark.twice
@pytest.mark.parametrize("start", [0, 1, 3, 4, 7, 10, 11])
def test_resuming_equals_skipping(start: int) -> None:
    options: dict[str, Any] = {"batch_size": 4, "seed": 5, "shuffle": True, "steps": 11}  # three epochs of 4 batches
    whole = list(batches(numbered(15), by_chance, **options))
    rest = list(batches(numbered(15), by_chance, start_step=start, **options))
    assert len(whole) == 11
    assert same(rest, list(islice(whole, start, None)))


def test_skipped_batches_are_not_read() -> None:
    images = numbered(1000)
    (batch,) = batches(images, by_chance, batch_size=2, start_step=400, steps=401)
    assert batch[2].tolist() == [800, 801]
    assert images.store.read_positions == [800, 801]  # type: ignore[attr-defined]


def test_every_epoch_holds_every_image_once_in_another_order() -> None:
    epochs = []
    found = list(batches(numbered(10), by_chance, batch_size=4, shuffle=True, steps=6, seed=1))
    for number in range(2):
        part = found[3 * number : 3 * number + 3]
        assert [len(batch[2]) for batch in part] == [4, 4, 2]  # no batch holds images of two epochs
        epochs.append(torch.cat([batch[2] for batch in part]).tolist())
        assert sorted(epochs[-1]) == list(range(10))
    assert epochs[0] != epochs[1]
    assert epochs[0] != list(range(10))


def test_balanced_epochs_show_each_class_equally_often() -> None:
    """40, 10 and 3 images, so 53 rows: each class 17 or 18 times, what is repeated varied anew."""
    labels: Indices = np.repeat([4, 1, 2], [40, 10, 3])
    images = ImageSet(CountingStore(), np.arange(53), labels)
    options: dict[str, Any] = {"batch_size": 20, "shuffle": True, "balanced": True, "seed": 7}
    found = list(batches(images, by_chance, steps=12, **options))
    seen = np.zeros(53, dtype=np.int64)
    for epoch in range(4):
        drawn, _, indices = (torch.cat(part) for part in zip(*found[3 * epoch : 3 * epoch + 3], strict=True))
        counts = np.bincount(indices, minlength=53)
        assert sorted(np.bincount(labels[indices.numpy()], minlength=5)[[1, 2, 4]].tolist()) == [17, 18, 18]
        for label in (1, 2, 4):
            assert np.ptp(counts[labels == label]) <= 1
        assert len({tuple(one.flatten().tolist()) for one in drawn}) == 53
        seen += counts
    assert seen[:40].min() < seen[:40].max()  # other images of a large class in each epoch
    rest = list(batches(images, by_chance, steps=12, start_step=7, workers=2, **options))
    assert same(rest, found[7:])
    shards = [list(batches(images, by_chance, steps=12, shard=(part, 2), **options)) for part in (0, 1)]
    assert [batch[2][::2].tolist() for batch in found] == [batch[2].tolist() for batch in shards[0]]
    assert [batch[2][1::2].tolist() for batch in found] == [batch[2].tolist() for batch in shards[1]]
    with pytest.raises(MemtokError) as caught:
        list(batches(images, by_chance, **(options | {"shuffle": False})))
    assert caught.value.argument == "shuffle"


@pytest.mark.twice
def test_chance_is_drawn_anew_per_image_and_epoch_and_follows_the_seed() -> None:
    def drawn(seed: int) -> Tensor:
        found = list(batches(numbered(6), by_chance, batch_size=3, steps=4, seed=seed))
        return torch.cat([batch[0] for batch in found]).flatten()

    assert len(set(drawn(0).tolist())) == 2 * 6 * 3
    assert torch.equal(drawn(0), drawn(0))
    assert not set(drawn(0).tolist()) & set(drawn(1).tolist())
    # The draw belongs to the image, not to its place in the batch.
    small = torch.cat([batch[0] for batch in batches(numbered(6), by_chance, batch_size=1, seed=0)]).flatten()
    assert torch.equal(small, drawn(0)[:18])


def test_one_epoch_without_shuffling_is_the_order_of_the_set() -> None:
    found = list(batches(numbered(7), by_chance, batch_size=3))
    assert [batch[2].tolist() for batch in found] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [batch[2].tolist() for batch in batches(numbered(7), by_chance, batch_size=3, start_step=2)] == [[6]]
    assert list(batches(numbered(7), by_chance, batch_size=3, start_step=3)) == []
    assert list(batches(numbered(7), by_chance, batch_size=3, steps=0)) == []


def test_processes_share_a_batch() -> None:
    options: dict[str, Any] = {"batch_size": 4, "shuffle": True, "steps": 6, "seed": 2}
    whole = list(batches(numbered(9), by_chance, **options))  # batches of 4, 4 and 1
    for number in range(3):
        images = numbered(9)
        found = list(batches(images, by_chance, shard=(number, 3), **options))
        assert len(found) == len(whole)
        for part, batch in zip(found, whole, strict=True):
            expected = [rows[number::3] if len(rows) > number else rows[:1] for rows in batch]
            assert all(torch.equal(one, other) for one, other in zip(part, expected, strict=True))
        assert len(images.store.read_positions) == sum(len(part[1]) for part in found)  # type: ignore[attr-defined]


def test_drop_last() -> None:
    found = list(batches(numbered(7), by_chance, batch_size=3, drop_last=True, steps=4))
    assert [batch[2].tolist() for batch in found] == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5]]
    assert [len(batch[2]) for batch in batches(numbered(2), by_chance, batch_size=3, drop_last=True, steps=2)] == [2, 2]


@pytest.mark.parametrize(
    ("images", "size", "drop", "expected"),
    [(7, 3, False, 3), (7, 3, True, 2), (6, 3, False, 2), (6, 3, True, 2), (2, 3, True, 1), (2, 3, False, 1)],
)
def test_steps_per_epoch(images: int, size: int, drop: bool, expected: int) -> None:
    assert steps_per_epoch(images, size, drop) == expected
    assert len(list(batches(numbered(images), by_chance, batch_size=size, drop_last=drop))) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generators_are_left_as_found(workers: int) -> None:
    def state() -> tuple[object, ...]:
        return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().numpy().tobytes()

    before = state()
    for _ in batches(numbered(6), by_chance, batch_size=2, shuffle=True, workers=workers):
        assert state() == before  # between the batches too
    assert state() == before
    random.random()
    assert state() != before


def test_results_do_not_depend_on_the_global_generators() -> None:
    found = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        found.append(list(batches(numbered(6), by_chance, batch_size=2, shuffle=True)))
    assert same(*found)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, workers: int) -> None:
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (20, 20)).save(tmp_path / "photos" / label / f"{number}.png")
    images = open_data(f"folder:{tmp_path / 'photos'}", data_dir=tmp_path).train
    broken = tmp_path / "photos" / images.identity(4)
    broken.write_bytes(b"broken since")
    found = batches(images, training_transform(SETTINGS), batch_size=2, workers=workers)
    assert [len(next(found)[1]) for _ in range(2)] == [2, 2]
    with pytest.raises(MemtokError) as caught:
        next(found)
    assert str(caught.value).startswith(f"expected a readable image, found {broken} (")
    assert "\n" not in str(caught.value)


def test_more_workers_than_cores_are_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(batches(numbered(4), by_chance, batch_size=2, workers=5))) == 2


def test_workers_end_with_the_iteration() -> None:
    others = {process.pid for process in multiprocessing.active_children()}  # of a test that ran before in this process
    found = batches(numbered(400), by_chance, batch_size=2, workers=2)
    next(found)
    own = {process.pid for process in multiprocessing.active_children()} - others
    assert len(own) == 2
    del found
    assert not own & {process.pid for process in multiprocessing.active_children()}


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {}, "expected images to make batches of, found an empty image set"),
        (3, {"batch_size": 0}, "expected a batch size from 1 on, found 0"),
        (3, {"start_step": -1}, "expected steps from 0 on, found start_step=-1, steps=None"),
        (3, {"steps": -2}, "expected steps from 0 on, found start_step=0, steps=-2"),
        (3, {"shard": (2, 2)}, r"expected a shard .*, found \(2, 2\)"),
        (3, {"workers": -1}, "expected 0 to .* workers on this machine, found -1"),
        (3, {"workers": 100_000}, "expected 0 to .* workers on this machine, found 100000"),
        (3, {"seed": -1}, r"expected a seed that is a whole number from 0 to 2\*\*63 - 1, found -1"),
    ],
)
def test_bad_arguments_are_refused_at_once(count: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MemtokError, match=message):
        batches(numbered(count), by_chance, **{"batch_size": 2, **options})
