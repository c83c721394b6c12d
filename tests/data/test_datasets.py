"""Named data sets: what is bundled, what lies somewhere, what cannot be downloaded."""

from __future__ import annotations

import gzip
import logging
import pickle
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray

from memtok.data import DATASETS, default_data_dir, mnist, open_data
from memtok.data.mnist import IDX_FILES, SYSTEM_FOLDERS, read_idx
from memtok.errors import MemtokError

DIGITS_DIGEST = "sha256:fe76253c42df3b2704d3b27d29a460daf31b0cc11747d5c4d1a85c187a48454f"

DEBIAN = SYSTEM_FOLDERS["FashionMNIST"]


def idx(values: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">{1 + values.ndim}I", 0x0800 + values.ndim, *values.shape) + values.tobytes()


def write_mnist(folder: Path, *, gzipped: bool = False, train: int = 40, test: int = 20) -> NDArray[np.uint8]:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (train + test, 28, 28), dtype=np.uint8)
    labels = (np.arange(train + test) % 10).astype(np.uint8)
    for name, values in zip(IDX_FILES, (pixels[:train], labels[:train], pixels[train:], labels[train:]), strict=True):
        content = idx(values)
        (folder / (f"{name}.gz" if gzipped else name)).write_bytes(gzip.compress(content) if gzipped else content)
    return pixels


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads go to a port where nobody listens; Debian's files are out of sight."""
    for kind in (torchvision.datasets.MNIST, torchvision.datasets.FashionMNIST):
        monkeypatch.setattr(kind, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(mnist, "SYSTEM_FOLDERS", {})


def test_digits() -> None:
    data = open_data("digits")
    assert data.classes == tuple("0123456789")
    assert (len(data.train), len(data.validation), len(data.test)) == (1295, 143, 359)
    assert not data.flip
    assert data.skipped == ()
    identities = [*data.train.identities, *data.validation.identities, *data.test.identities]
    assert sorted(identities) == sorted(f"digits/{number}" for number in range(1797))
    counts = np.bincount(data.test.labels)
    assert counts.min() >= 35
    assert counts.max() <= 37
    picture, label = data.train[0]
    assert (picture.mode, picture.size, label) == ("RGB", (8, 8), 0)
    assert picture.getextrema() == ((0, 239), (0, 239), (0, 239))  # ink of 15 out of 16 on black
    assert {
        "kind": "official",
        "seed": 0,
        "fraction": 0.1,
        "counts": {"train": 1295, "validation": 143, "test": 359},
    }.items() <= data.split.items()


def test_digits_are_the_published_ones() -> None:
    published = pytest.importorskip("sklearn.datasets").load_digits()
    data = open_data("digits")
    for part in (data.train, data.validation, data.test):
        for index in range(0, len(part), 29):
            picture, label = part[index]
            number = int(part.identity(index).split("/")[1])
            assert label == published.target[number]
            expected = np.rint(published.images[number] * 255 / 16)
            assert np.array_equal(np.asarray(picture)[:, :, 0], expected)


def test_the_asset_is_small(root: Path) -> None:
    assert (root / "src/memtok/assets/digits.npz").stat().st_size < 100_000
    assert "digits.npz" in (root / "src/memtok/assets/LICENSES.md").read_text()


def test_the_seed_moves_validation_and_never_the_test() -> None:
    first, second = open_data("digits", seed=0), open_data("digits", seed=1)
    assert first.test.identities == second.test.identities
    assert first.validation.identities != second.validation.identities
    assert first.split_digest != second.split_digest
    assert len(open_data("digits", validation_fraction=0.5).validation) == 719


def test_the_split_is_what_it_was() -> None:
    # What a task file of an earlier version says must still be true; this value never changes.
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert open_data("digits").split_digest == DIGITS_DIGEST


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("place", ["MNIST/raw", "."])
def test_mnist_files_are_found(tmp_path: Path, offline: None, gzipped: bool, place: str) -> None:
    pixels = write_mnist(tmp_path / place, gzipped=gzipped)
    data = open_data("mnist", data_dir=tmp_path)
    assert data.classes == tuple("0123456789")
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 20)
    assert data.test.identity(3) == "test/3"
    picture, label = data.test[3]
    assert np.array_equal(np.asarray(picture)[:, :, 1], pixels[43])
    assert label == 3
    for index in (0, 5):
        number = int(data.train.identity(index).removeprefix("train/"))
        assert np.array_equal(np.asarray(data.train[index][0])[:, :, 1], pixels[number])


def test_the_data_folder_comes_from_the_environment(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    monkeypatch.setenv("MEMTOK_DATA", str(tmp_path))
    data = open_data("fashion-mnist")
    assert data.classes[0] == "T-shirt/top"
    assert data.flip
    monkeypatch.delenv("MEMTOK_DATA")
    assert default_data_dir() == Path.home() / ".cache" / "memtok" / "data"


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_of_debian(tmp_path: Path) -> None:
    data = open_data("fashion-mnist", data_dir=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (54_000, 6_000, 10_000)
    assert np.bincount(data.validation.labels).tolist() == [600] * 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_offline_it_says_where_to_put_the_files(
    tmp_path: Path, offline: None, capsys: pytest.CaptureFixture[str], name: str, folder: str
) -> None:
    with pytest.raises(MemtokError) as caught:
        open_data(name, data_dir=tmp_path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"expected the {folder} files in {tmp_path / folder / 'raw'}, found none, and the download")
    assert text.endswith("t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz there")
    assert capsys.readouterr().out == ""


def test_a_cut_or_foreign_idx_file_is_named(tmp_path: Path, offline: None) -> None:
    write_mnist(tmp_path)
    path = tmp_path / IDX_FILES[0]
    content = path.read_bytes()
    for damaged, found in (
        (content[:-5], "found 31355"),
        (content[:10], "3 dimensions"),
        (b"\0\0\x08\x01" + content[4:], "3 dimensions"),
        (b"<html>404</html>" * 9, "3 dimensions"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(MemtokError, match=found):
            open_data("mnist", data_dir=tmp_path)
    zipped = tmp_path / "cut.gz"
    for damaged in (gzip.compress(content)[:-100], b"no gzip", b"\x1f\x8b\x08" + b"x" * 50):
        zipped.write_bytes(damaged)
        with pytest.raises(MemtokError, match=r"cut\.gz"):
            read_idx(zipped, dimensions=3)


def test_files_that_do_not_belong_together(tmp_path: Path, offline: None) -> None:
    write_mnist(tmp_path)
    (tmp_path / IDX_FILES[1]).write_bytes(idx(np.zeros(39, dtype=np.uint8)))
    with pytest.raises(MemtokError, match="found 39"):
        open_data("mnist", data_dir=tmp_path)
    (tmp_path / IDX_FILES[1]).write_bytes(idx(np.full(40, 10, dtype=np.uint8)))
    with pytest.raises(MemtokError, match="found 40"):
        open_data("mnist", data_dir=tmp_path)


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    for spec, named in (("cifar", ["'cifar'", *DATASETS]), (str(tmp_path), [f"folder:{tmp_path}"])):
        with pytest.raises(MemtokError) as error:
            open_data(spec)
        assert error.value.argument == "spec"
        assert all(name in str(error.value) for name in named)


def test_names_are_checked_without_torch() -> None:
    code = (
        "import sys; from memtok.data import check_spec; check_spec('digits'); check_spec('folder:x'); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("argument", "value"), [("seed", -1), ("validation_fraction", 1.0), ("on_bad_image", "ignore"), ("split", "70-30")]
)
def test_bad_arguments(argument: str, value: object) -> None:
    with pytest.raises(MemtokError) as error:
        open_data("digits", **{argument: value})  # type: ignore[arg-type]
    assert error.value.argument == argument
    assert repr(value) in str(error.value)


def test_opening_moves_no_generator_and_says_nothing(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def states() -> tuple[object, ...]:
        return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().numpy().tobytes()

    before = states()
    with caplog.at_level(logging.DEBUG, "memtok"):
        for name in ("digits",):
            assert name in DATASETS
            data = open_data(name)
            data.train.take(10, 0)
            data.train[0]
    assert states() == before
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []
