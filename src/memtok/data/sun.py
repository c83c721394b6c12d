"""SUN-397: 108,754 photographs of scenes; how many classes it has is read from its ClassName.txt.

Layout, torchvision's: `SUN397/a/abbey/sun_*.jpg` in the data folder. The official lists, Training_01.txt and
Testing_01.txt (50 images each per class, the first of ten such pairs), are published apart as Partitions.zip and used
where they are at hand.
Source: J. Xiao et al., SUN Database: Large-scale Scene Recognition from Abbey to Zoo, CVPR 2010.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from memtok.data.download import Archive, check_unpacked, download, unpacking
from memtok.data.images import shown
from memtok.data.listings import list_images
from memtok.data.official import official_parts
from memtok.data.published import Published
from memtok.data.sources import FileStore, ImageSet
from memtok.errors import MemtokError
from memtok.regular import check_regular

FOLDER = "SUN397"
LISTS = ("Training_01.txt", "Testing_01.txt")
LIST_FOLDERS = (FOLDER, f"{FOLDER}/Partitions", "Partitions", ".")


def read_sun397(data_dir: Path) -> Published:
    """SUN-397; classes are named as torchvision does, such as `abbey` or `apartment_building/outdoor`."""
    root = data_dir / FOLDER
    check_unpacked(data_dir, FOLDER)
    if not root.is_dir():
        _download(data_dir)
    folders = [line.lstrip("/") for line in _lines(root / "ClassName.txt")]
    listed = list_images(root, folders, data_dir, "sun_*.jpg")
    empty = next((folder for folder, files in zip(folders, listed, strict=True) if not files), None)
    if empty is not None:
        raise MemtokError(
            f"expected images of every class, found none in {shown(root / empty)}; delete {shown(root)} and unpack it "
            "anew"
        )
    names = tuple(f"{folder}/{name}" for folder, files in zip(folders, listed, strict=True) for name in files)
    labels = np.repeat(np.arange(len(folders)), [len(files) for files in listed])
    return Published(
        tuple(folder.split("/", 1)[-1] for folder in folders),  # without the letter that they are sorted under
        ImageSet(FileStore(root, names, published=True), np.arange(len(names)), labels),
        official_parts(LISTS, [data_dir / folder for folder in LIST_FOLDERS], _read_list, names, root),
        lists=f"no {' and '.join(LISTS)} in {shown(root)}",
    )


def _download(data_dir: Path) -> None:
    from torchvision.datasets import SUN397

    archive = Archive("SUN397.tar.gz", SUN397._DATASET_URL, SUN397._DATASET_MD5)
    with unpacking(data_dir, FOLDER):
        download(
            "SUN-397",
            lambda: SUN397(str(data_dir), download=True),
            root=data_dir,
            missing=[f"{FOLDER}/"],
            archives=[archive],
        )


def _read_list(path: Path) -> list[str]:
    return [line.lstrip("/") for line in _lines(path)]


def _lines(path: Path) -> list[str]:
    check_regular(path, f"{path.name} of SUN-397")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise MemtokError(
            f"expected {path.name} of SUN-397, found {shown(path)} missing or unreadable; delete {shown(path.parent)} "
            "and unpack it anew"
        ) from error
    return [line for line in lines if line]
