"""CIFAR-10 and CIFAR-100, 32 x 32: 50,000 images to train on and 10,000 to test on.

The batches are published as pickles. torchvision downloads them and knows their checksums; they are read here, by an
unpickler that makes arrays, texts and numbers and refuses everything else, so no code of a file ever runs.
Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtok.data.download import Archive, download, one_at_a_time
from memtok.data.images import shown
from memtok.data.published import Published
from memtok.data.sources import ArrayStore, ImageSet
from memtok.data.splits import Indices
from memtok.errors import MemtokError, one_line
from memtok.regular import check_regular

SIDE = 32

# What the pickle of an array calls: numpy's own function, an array's and a dtype's class. Nothing else is looked up.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def read_cifar10(data_dir: Path) -> Published:
    """CIFAR-10: ten classes."""
    from torchvision.datasets import CIFAR10

    return _read(CIFAR10, data_dir)


def read_cifar100(data_dir: Path) -> Published:
    """CIFAR-100: a hundred fine classes."""
    from torchvision.datasets import CIFAR100

    return _read(CIFAR100, data_dir)


def _read(kind: Any, data_dir: Path) -> Published:
    """Reads the batches that torchvision's class `kind` lists; downloads them where one is not as published."""
    folder = data_dir / kind.base_folder
    files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    contents = _whole_files(folder, files)
    if len(contents) < len(files):
        # The class without its constructor, which would unpickle.
        downloader = kind.__new__(kind)
        downloader.root = str(data_dir)
        missing = [f"{kind.base_folder}/{name}" for name, _ in files if name not in contents]
        archive = Archive(kind.filename, kind.url, kind.tgz_md5)
        with one_at_a_time(data_dir):
            download(kind.__name__, downloader.download, root=data_dir, missing=missing, archives=[archive])
        contents = _whole_files(folder, files)
    wrong = next((name for name, _ in files if name not in contents), None)
    if wrong is not None:
        raise MemtokError(
            f"expected {wrong} of {kind.__name__} as published, found another {shown(folder / wrong)}; delete "
            f"{shown(folder)} and run again"
        )
    name, key = kind.meta["filename"], kind.meta["key"]
    classes = read_classes(contents[name], key, folder / name)
    parts = []
    for part, batches in (("train", kind.train_list), ("test", kind.test_list)):
        arrays = [read_batch(contents[name], folder / name, len(classes)) for name, _ in batches]
        pixels, labels = (np.concatenate(rows) for rows in zip(*arrays, strict=True))
        parts.append(ImageSet.whole(ArrayStore(pixels, part), labels))
    return Published.of_two_parts(classes, *parts)


def _whole_files(folder: Path, files: Sequence[Sequence[str]]) -> dict[str, bytes]:
    """{name: content} of those of `files` (name, MD5) that exist and have their checksum."""
    found = {}
    for name, md5 in files:
        check_regular(folder / name, f"the file {name} of CIFAR")
        try:
            content = (folder / name).read_bytes()
        except OSError:
            continue
        if hashlib.md5(content, usedforsecurity=False).hexdigest() == md5:
            found[name] = content
    return found


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of dicts, lists, texts, numbers and numpy arrays; anything else is an UnpicklingError."""

    def find_class(self, module: str, name: str) -> Any:
        """Called for every function or class that a pickle names."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ALLOWED[module, name]


def read_pickle(content: bytes, path: Path) -> dict[str, Any]:
    """The dict in the pickle `content`, whose texts may come from Python 2; MemtokError, which names `path`, if none.

    Nothing but arrays, lists, texts and numbers is made of it.
    """
    try:
        found = ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        if not isinstance(found, dict):
            raise pickle.UnpicklingError(f"it holds a {type(found).__name__}")
    except Exception as error:  # a broken pickle raises nearly anything
        raise MemtokError(
            f"expected a file of arrays and texts, found {shown(path)}, which is refused "
            f"({one_line(error)}); delete it and get it again"
        ) from error
    return found


def read_batch(content: bytes, path: Path, classes: int) -> tuple[NDArray[np.uint8], Indices]:
    """Pixels (images, 32, 32, 3) and labels (images,) of a batch."""
    batch = read_pickle(content, path)
    pixels, labels = batch.get("data"), batch.get("labels", batch.get("fine_labels"))
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape[1:] != (3 * SIDE * SIDE,)
        or not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(isinstance(label, int) and 0 <= label < classes for label in labels)
    ):
        raise MemtokError(
            f"expected rows of {3 * SIDE * SIDE} bytes and as many labels below {classes} in {shown(path)}, found "
            "something else; delete it and get it again"
        )
    # Rows hold the red plane, the green one and the blue one.
    rgb = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(rgb), np.array(labels, dtype=np.int64)


def read_classes(content: bytes, key: str, path: Path) -> tuple[str, ...]:
    """The class names in the file that goes with the batches."""
    names = read_pickle(content, path).get(key)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise MemtokError(f"expected class names in {shown(path)}, found none; delete it and get it again")
    return tuple(names)
