"""A run is resumed on the very images that it began with, wherever their folder lies now and whatever it is called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import memtok
from memtok.data import DataSource, from_dataset, open_data
from memtok.errors import MemtokError
from tests.clocks import with_the_old_time
from tests.tiny import bytes_of
from tests.training.helpers import Recorder, new_task, quick

RUN: dict[str, Any] = {"steps": 4, "batch_size": 4, "log_every": 2, "validate_every": 2, "save_every": 1}
OTHERS = "expected the images of the run in .*, found others"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of pictures, all files of one size."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            write(tmp_path / "photos" / name / f"{number}.bmp", generator)
    return tmp_path / "photos"


def write(path: Path, generator: np.random.Generator) -> None:
    Image.fromarray(generator.integers(0, 256, (36, 36, 3), dtype=np.uint8)).save(path)


def opened(folder: Path) -> DataSource:
    return open_data(f"folder:{folder}", data_dir=folder.parent / "data")


def begin(backbone: memtok.Backbone, data: DataSource, out: Path) -> None:
    """A run that is stopped with the state of step 2."""
    with pytest.raises(KeyboardInterrupt):
        quick(new_task(backbone, data), data, out=out, progress=Recorder(3), **RUN)


def resumed(backbone: memtok.Backbone, data: DataSource, out: Path) -> dict[str, bytes]:
    task = new_task(backbone, data, seed=1)
    listener = Recorder()
    quick(task, data, out=out, resume=True, progress=listener, **RUN)
    assert listener.said("start")[0].start_step == 2
    return bytes_of(task)


@pytest.mark.twice
def test_other_pictures_under_the_same_names(backbone: memtok.Backbone, folder: Path, out: Path) -> None:
    data = opened(folder)
    expected = new_task(backbone, data)
    quick(expected, data, **RUN)
    begin(backbone, data, out)
    for images in (data.train, data.validation):
        path = folder / images.identity(0)
        status, whole = path.stat(), path.read_bytes()
        write(path, np.random.default_rng(7))
        with_the_old_time(path, status)
        assert path.stat().st_size == status.st_size
        with pytest.raises(MemtokError, match=OTHERS) as caught:
            resumed(backbone, opened(folder), out)
        assert "\n" not in str(caught.value)
        path.write_bytes(whole)  # the same picture at another time
    assert resumed(backbone, opened(folder), out) == bytes_of(expected)


@pytest.mark.twice
def test_a_folder_that_was_renamed(backbone: memtok.Backbone, folder: Path, out: Path, tmp_path: Path) -> None:
    data = opened(folder)
    expected = new_task(backbone, data)
    quick(expected, data, **RUN)
    begin(backbone, data, out)
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere" / "pictures")
    assert resumed(backbone, opened(moved), out) == bytes_of(expected)


class Items:
    """A torch Dataset of pictures drawn from `seed`, and their labels."""

    classes = ("a", "b")

    def __init__(self, seed: int = 0, swapped: bool = False) -> None:
        pixels = torch.randint(0, 256, (20, 3, 36, 36), generator=torch.Generator().manual_seed(seed))
        self.pixels, self.swapped = pixels.to(torch.uint8), swapped

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= len(self):
            raise IndexError
        return self.pixels[index], (index + self.swapped) % 2

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (self[index] for index in range(len(self)))


def given(seed: int = 0, swapped: bool = False) -> DataSource:
    return from_dataset(Items(seed, swapped), validation=Items(seed + 5, swapped))


@pytest.mark.twice
def test_other_items_of_a_data_set(backbone: memtok.Backbone, out: Path) -> None:
    begin(backbone, given(), out)
    for other in (given(seed=1), given(swapped=True)):
        with pytest.raises(MemtokError, match=OTHERS):
            resumed(backbone, other, out)
    resumed(backbone, given(), out)


@pytest.mark.twice
def test_other_pixels_in_memory(backbone: memtok.Backbone, data: DataSource, out: Path) -> None:
    pixels = data.train.store.pixels  # type: ignore[attr-defined]
    begin(backbone, data, out)
    place = data.train.positions[0], 3, 3
    before = pixels[place]
    pixels.setflags(write=True)
    try:
        pixels[place] = before ^ 1
        with pytest.raises(MemtokError, match=OTHERS):
            resumed(backbone, data, out)
    finally:
        pixels[place] = before
    resumed(backbone, data, out)


def test_kept_traces_of_other_pictures_are_not_used(backbone: memtok.Backbone, folder: Path, tmp_path: Path) -> None:
    def end(**more: Any) -> dict[str, bytes]:
        data = opened(folder)
        task = new_task(backbone, data)
        quick(task, data, **RUN, **more)
        return bytes_of(task)

    kept: dict[str, Any] = {"keep_traces": "disk", "trace_dir": tmp_path / "traces"}
    end(**kept)
    path = folder / opened(folder).train.identity(3)
    status = path.stat()
    write(path, np.random.default_rng(7))
    with_the_old_time(path, status)
    with pytest.raises(MemtokError, match="expected traces with content"):
        end(**kept)
