"""SUN-397: 108,754 photographs of scenes; how many classes it has is read from its ClassName.txt.

Layout, torchvision's: `SUN397/a/abbey/sun_*.jpg` in the data folder. The official lists, Training_01.txt and
Testing_01.txt (50 images each per class, the first of ten such pairs), are published apart as Partitions.zip and used
where they are at hand.
Source: J. Xiao et al., SUN Database: Large-scale Scene Recognition from Abbey to Zoo, CVPR 2010.
"""

from __future__ import annotations

from pathlib import Path

from memtok.data.download import Archive, check_unpacked, download, unpacking
from memtok.data.images import shown
from memtok.data.listings import read_class_folders
from memtok.data.published import Published
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
    folders = _paths(root / "ClassName.txt")
    return read_class_folders(
        root,
        folders,
        tuple(folder.split("/", 1)[-1] for folder in folders),  # without the letter that they are sorted under
        data_dir=data_dir,
        pattern="sun_*.jpg",
        lists=LISTS,
        list_folders=[data_dir / folder for folder in LIST_FOLDERS],
        read_list=_paths,
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


def _paths(path: Path) -> list[str]:
    """The paths in a list of SUN-397, one a line, each with a slash before it."""
    check_regular(path, f"{path.name} of SUN-397")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise MemtokError(
            f"expected {path.name} of SUN-397, found {shown(path)} missing or unreadable; delete {shown(path.parent)} "
            "and unpack it anew"
        ) from error
    return [line.lstrip("/") for line in lines if line]
