"""Opening data by name: the registry of data sets, folders, and data sets that somebody brings along.

A new data set is one row in `DATASETS` and a function that reads its official parts.
"""

from __future__ import annotations

import gzip
import importlib.resources
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtok.data.folders import open_folder
from memtok.data.images import Progress, shown
from memtok.data.sources import ArrayStore, DataSource, ImageSet, listing
from memtok.data.splits import check_fraction, check_seed, draw_validation
from memtok.errors import MemtokError

VALIDATION_FRACTION = 0.1
"""The share of a named set's training part that validates."""

DIGIT_NAMES = tuple("0123456789")

# Debian's package dataset-fashion-mnist puts the original files here.
SYSTEM_FOLDERS = {"FashionMNIST": Path("/usr/share/datasets/fashion-mnist")}

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class OfficialParts:
    """A published data set: its classes and its two parts. Nothing of `test` is ever trained or validated on."""

    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class NamedSet:
    """A row of the registry: how to read the set from a data folder, and whether its pictures may be mirrored."""

    read: Callable[[Path], OfficialParts]
    flip: bool


def default_data_dir() -> Path:
    """Where data sets are looked for and put: $MEMTOK_DATA, else ~/.cache/memtok/data."""
    return Path(os.environ.get("MEMTOK_DATA") or "~/.cache/memtok/data").expanduser()


def open_data(
    spec: str,
    *,
    data_dir: str | Path | None = None,
    seed: int | None = None,
    validation_fraction: float | None = None,
    on_bad_image: str = "fail",
    progress: Progress | None = None,
) -> DataSource:
    """Opens `digits`, `mnist`, `fashion-mnist`, or `folder:PATH`.

    `data_dir`: where named sets lie or are downloaded to (default: $MEMTOK_DATA, else ~/.cache/memtok/data).
    `seed`: of the split, not of the training; None means 0, or for a folder the seed of the split that is written
    there. `validation_fraction`: the share of the training images that validates, by default 0.1 for named sets and
    0.2 for folders. `on_bad_image`: every file of a folder is read once when it is opened; "fail" raises with the
    first unreadable path and the count, "skip" leaves them out and names them in `skipped`; `progress` is called with
    (looked at, in all) meanwhile.

    Raises MemtokError for an unknown name, missing files, a folder that is not made of classes, and bad arguments.
    """
    if on_bad_image not in ("fail", "skip"):
        raise MemtokError(f"expected on_bad_image 'fail' or 'skip', found {on_bad_image!r}; choose one of them")
    check_spec(spec)
    if seed is not None:
        seed = check_seed(seed)
    if validation_fraction is not None:
        validation_fraction = check_fraction(validation_fraction)
    folder = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    if spec.startswith("folder:"):
        return open_folder(
            spec.removeprefix("folder:"),
            data_dir=folder,
            seed=seed,
            validation_fraction=validation_fraction,
            on_bad_image=on_bad_image,
            progress=progress,
        )
    row = DATASETS[spec]
    parts = row.read(folder)
    seed = 0 if seed is None else seed
    fraction = VALIDATION_FRACTION if validation_fraction is None else validation_fraction
    train, validation = split_off(parts.train, seed, fraction)
    return DataSource(
        spec=spec,
        name=spec,
        classes=parts.classes,
        train=train,
        validation=validation,
        test=parts.test,
        split_kind="official",
        seed=seed,
        fraction=fraction,
        flip=row.flip,
    )


def check_spec(spec: str) -> str:
    """Returns `spec` if it is the name of a data set or folder:PATH, without opening anything; else MemtokError."""
    if spec in DATASETS or (spec.startswith("folder:") and spec != "folder:"):
        return spec
    if spec == "folder:":
        advice = "write for example folder:photos"
    elif Path(spec).is_dir():
        advice = f"write folder:{shown(spec)}"
    else:
        advice = "use one of these, or folder:PATH"
    raise MemtokError(f"expected a data set ({', '.join(DATASETS)}, folder:PATH), found {spec!r}; {advice}")


def split_off(images: ImageSet, seed: int, fraction: float) -> tuple[ImageSet, ImageSet]:
    """(training, validation) parts of `images`, stratified, drawn from `seed`; each stays in its order."""
    names = images.identities
    chosen = draw_validation(names, images.labels, fraction=fraction, seed=seed)
    validates = np.fromiter((name in chosen for name in names), dtype=bool, count=len(names))
    return images.select(np.flatnonzero(~validates)), images.select(np.flatnonzero(validates))


def read_digits(data_dir: Path) -> OfficialParts:
    """The bundled handwritten digits, 8 x 8: 1,438 to train on and 359 to test on, a fixed stratified 80/20 split.

    Source: UCI Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, 1998), CC BY 4.0.
    """
    asset = importlib.resources.files("memtok").joinpath("assets/digits.npz")
    with asset.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        ink, labels, packed = arrays["images"], arrays["labels"].astype(np.int64), arrays["test"]
    # Ink from 0 to 16, bright on dark as in MNIST.
    pixels = np.rint(ink.astype(np.float32) * (255 / 16)).astype(np.uint8)
    test = np.unpackbits(packed, count=len(labels)).astype(bool)
    store = ArrayStore(pixels, "digits")
    train_positions, test_positions = np.flatnonzero(~test), np.flatnonzero(test)
    return OfficialParts(
        DIGIT_NAMES,
        ImageSet(store, train_positions, labels[train_positions]),
        ImageSet(store, test_positions, labels[test_positions]),
    )


def read_mnist(data_dir: Path) -> OfficialParts:
    """MNIST, 28 x 28: 60,000 to train on and 10,000 to test on."""
    from torchvision.datasets import MNIST  # here and below, so that naming the data sets needs no torch

    return _read_mnist_like(MNIST, DIGIT_NAMES, data_dir)


def read_fashion_mnist(data_dir: Path) -> OfficialParts:
    """Fashion-MNIST, 28 x 28: 60,000 to train on and 10,000 to test on."""
    from torchvision.datasets import FashionMNIST

    return _read_mnist_like(FashionMNIST, tuple(FashionMNIST.classes), data_dir)


DATASETS: dict[str, NamedSet] = {
    "digits": NamedSet(read_digits, flip=False),
    "mnist": NamedSet(read_mnist, flip=False),
    "fashion-mnist": NamedSet(read_fashion_mnist, flip=True),
}


def _read_mnist_like(kind: Any, classes: tuple[str, ...], data_dir: Path) -> OfficialParts:
    """Reads the four idx files that torchvision's class `kind` is made of; downloads them if they are nowhere."""
    raw = data_dir / kind.__name__ / "raw"
    system = SYSTEM_FOLDERS.get(kind.__name__)
    files = _find_idx_files([raw, data_dir, *([system] if system else [])])
    if files is None:
        _download(kind, data_dir, raw)
        files = _find_idx_files([raw])
    if files is None:
        raise MemtokError(f"expected the {kind.__name__} files in {shown(raw)}, found not all four; put them there")
    sets = []
    for part, images_file, labels_file in (("train", files[0], files[1]), ("test", files[2], files[3])):
        pixels = read_idx(images_file, dimensions=3)
        labels = read_idx(labels_file, dimensions=1).astype(np.int64)
        if len(pixels) != len(labels) or labels.max(initial=0) >= len(classes):
            raise MemtokError(
                f"expected {len(pixels)} labels below {len(classes)} in {shown(labels_file)}, found {len(labels)} up "
                f"to {labels.max(initial=0)}; the files do not belong together, get them again"
            )
        sets.append(ImageSet(ArrayStore(pixels, part), np.arange(len(labels)), labels))
    return OfficialParts(classes, sets[0], sets[1])


def _find_idx_files(folders: Sequence[Path]) -> list[Path] | None:
    """The four files, as they are or gzipped, from the first folder that holds all of them."""
    for folder in folders:
        candidates = [(folder / name, folder / f"{name}.gz") for name in IDX_FILES]
        found = [next((path for path in pair if path.is_file()), None) for pair in candidates]
        whole = [path for path in found if path is not None]
        if len(whole) == len(IDX_FILES):
            return whole
    return None


def _download(kind: Any, data_dir: Path, raw: Path) -> None:
    """Lets torchvision download and check the files; one line says where to put them if that fails."""
    try:
        with redirect_stdout(sys.stderr):  # some versions of torchvision print; a program's output is not the place
            kind(str(data_dir), download=True)
    except (RuntimeError, OSError) as error:  # urllib's URLError is an OSError
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise MemtokError(
            f"expected the {kind.__name__} files in {shown(raw)}, found none, and the download failed "
            f"({lines[-1] if lines else type(error).__name__}); put {listing([f'{name}.gz' for name in IDX_FILES])} "
            "there"
        ) from error


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Reads an idx file of bytes, gzipped or not, as MNIST's are: magic number, sizes, values.

    Raises MemtokError if it is something else or cut short. Format: http://yann.lecun.com/exdb/mnist/
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise MemtokError(
            f"expected a whole idx file, found {shown(path)} ({error}); delete it and get it again"
        ) from error
    header = 4 * (1 + dimensions)
    numbers = np.frombuffer(content[:header], dtype=">u4") if len(content) >= header else np.zeros(1, dtype=">u4")
    if numbers[0] != 0x0800 + dimensions:  # 08: bytes
        raise MemtokError(
            f"expected an idx file of {dimensions} dimensions, found {shown(path)}, which is something else; delete "
            "it and get it again"
        )
    shape = tuple(int(size) for size in numbers[1:])
    if len(content) - header != int(np.prod(shape)):
        raise MemtokError(
            f"expected {int(np.prod(shape))} values in {shown(path)}, found {len(content) - header}; delete it and "
            "get it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
