"""The bundled digits, and MNIST and Fashion-MNIST as idx files."""

from __future__ import annotations

import gzip
import importlib.resources
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtok.data.download import one_at_a_time, quiet_download
from memtok.data.images import shown
from memtok.data.published import Published
from memtok.data.sources import ArrayStore, ImageSet, listing
from memtok.errors import MemtokError

DIGIT_NAMES = tuple("0123456789")

# Debian's package dataset-fashion-mnist puts the original files here.
SYSTEM_FOLDERS = {"FashionMNIST": Path("/usr/share/datasets/fashion-mnist")}

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def read_digits(data_dir: Path) -> Published:
    """The bundled handwritten digits, 8 x 8: 1,438 to train on and 359 to test on, a fixed stratified 80/20 split.

    Source: UCI Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, 1998), CC BY 4.0.
    """
    asset = importlib.resources.files("memtok").joinpath("assets/digits.npz")
    with asset.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        ink, labels, packed = arrays["images"], arrays["labels"].astype(np.int64), arrays["test"]
    # Ink from 0 to 16, bright on dark as in MNIST.
    pixels = np.rint(ink.astype(np.float32) * (255 / 16)).astype(np.uint8)
    test = np.unpackbits(packed, count=len(labels)).astype(bool)
    images = ImageSet.whole(ArrayStore(pixels, "digits"), labels)
    return Published(DIGIT_NAMES, images, (np.flatnonzero(~test), np.flatnonzero(test)))


def read_mnist(data_dir: Path) -> Published:
    """MNIST, 28 x 28: 60,000 to train on and 10,000 to test on."""
    from torchvision.datasets import MNIST  # here and in the other readers: naming the data sets needs no torch

    return _read_mnist_like(MNIST, DIGIT_NAMES, data_dir)


def read_fashion_mnist(data_dir: Path) -> Published:
    """Fashion-MNIST, 28 x 28: 60,000 to train on and 10,000 to test on."""
    from torchvision.datasets import FashionMNIST

    return _read_mnist_like(FashionMNIST, tuple(FashionMNIST.classes), data_dir)


def _read_mnist_like(kind: Any, classes: tuple[str, ...], data_dir: Path) -> Published:
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
        sets.append(ImageSet.whole(ArrayStore(pixels, part), labels))
    return Published.of_two_parts(classes, sets[0], sets[1])


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
    """Lets torchvision download and check the files; the error of a failed download says where to put them."""
    try:
        with one_at_a_time(data_dir), quiet_download():
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
