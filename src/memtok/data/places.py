"""Places-365, standard, small images (256 x 256): 1,803,460 images to train on and 36,500 to test on.

The official validation part is the test part here, since the labels of the official test part are not published.
Layout, torchvision's: the lists, `data_256_standard/` and `val_256/` in the data folder.
Source: B. Zhou et al., Places: A 10 Million Image Database for Scene Recognition, TPAMI 2018.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from memtok.data.download import Archive, check_unpacked, download, one_at_a_time, unpacking
from memtok.data.images import shown
from memtok.data.listings import check_some
from memtok.data.published import Published
from memtok.data.sources import FileStore, ImageSet
from memtok.errors import MemtokError, one_line

PARTS = {"train-standard": "data_256_standard", "val": "val_256"}


def read_places365(data_dir: Path) -> Published:
    """Places-365; classes are named as torchvision does, such as `/a/airfield`."""
    from torchvision.datasets import Places365

    check_unpacked(data_dir, PARTS["val"])
    if _missing(Places365, data_dir):
        _download(Places365, data_dir)
    names: list[str] = []
    labels: list[int] = []
    sizes = []
    for part, folder in PARTS.items():
        try:
            official = Places365(str(data_dir), split=part, small=True)
        except (RuntimeError, OSError, ValueError) as error:
            raise MemtokError(
                f"expected the lists of Places-365 in {shown(data_dir)}, found them damaged "
                f"({one_line(error)}); delete them and run again"
            ) from error
        start = len(official.images_dir) + 1
        files = [f"{folder}/{path[start:]}".replace("\\", "/") for path, _ in official.imgs]
        check_some(data_dir, files, f"Places-365 ({part})")
        names += files
        labels += official.targets
        sizes.append(len(files))
    classes = tuple(sorted(official.class_to_idx, key=official.class_to_idx.__getitem__))
    images = ImageSet.whole(FileStore(data_dir, tuple(names), published=True), np.array(labels, dtype=np.int64))
    train, test = np.split(np.arange(len(names)), [sizes[0]])
    return Published(classes, images, (train, test))


def _files(kind: Any) -> list[tuple[str, str]]:
    """(name, MD5) of the lists that are needed."""
    return [kind._CATEGORIES_META, *(kind._FILE_LIST_META[part] for part in PARTS)]


def _missing(kind: Any, data_dir: Path) -> list[str]:
    """The lists and folders that are not there, or lists that are not as published."""
    from torchvision.datasets.utils import check_integrity

    lists = [name for name, md5 in _files(kind) if not check_integrity(str(data_dir / name), md5)]
    return lists + [f"{folder}/" for folder in PARTS.values() if not (data_dir / folder).is_dir()]


def _download(kind: Any, data_dir: Path) -> None:
    for part in reversed(PARTS):  # the small one first
        # torchvision renames the training folder when it is whole; that of the validation images needs a mark.
        marked = unpacking(data_dir, PARTS[part]) if part == "val" else one_at_a_time(data_dir)
        with marked:
            missing = _missing(kind, data_dir)
            files = [kind._DEVKIT_META["standard"]] if any(not name.endswith("/") for name in missing) else []
            files += [kind._IMAGES_META[name, True] for name, folder in PARTS.items() if f"{folder}/" in missing]
            download(
                "Places-365",
                partial(kind, str(data_dir), split=part, small=True, download=True),
                root=data_dir,
                missing=missing,
                archives=[Archive(name, kind._BASE_URL + name, md5) for name, md5 in files],
            )
