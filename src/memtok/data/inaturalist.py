"""iNaturalist 2017: 675,170 photographs of 5,089 species; how many it has is read from its folders.

Layout, torchvision's: `2017/GROUP/SPECIES/*.jpg` in the data folder. The official lists, train2017.json and
val2017.json (579,184 and 95,986 images), are published apart and used where they are at hand.
Source: G. Van Horn et al., The iNaturalist Species Classification and Detection Dataset, CVPR 2018.
"""

from __future__ import annotations

import json
from pathlib import Path

from memtok.data.download import Archive, download, one_at_a_time
from memtok.data.images import shown
from memtok.data.listings import read_class_folders
from memtok.data.published import Published
from memtok.errors import MemtokError, one_line

VERSION = "2017"
LISTS = ("train2017.json", "val2017.json")
LIST_FOLDERS = (".", "train_val2017", "annotations", VERSION)
ARCHIVE_FOLDER = "train_val_images"  # the lists name the files as the archive does


def read_inaturalist2017(data_dir: Path) -> Published:
    """iNaturalist 2017; classes are `GROUP/SPECIES`, in the order of torchvision's."""
    root = data_dir / VERSION
    if not root.is_dir() or not any(root.iterdir()):
        _download(data_dir)
    classes = _classes(root)
    return read_class_folders(
        root,
        classes,
        classes,
        data_dir=data_dir,
        lists=LISTS,
        list_folders=[data_dir / folder for folder in LIST_FOLDERS],
        read_list=read_list,
    )


def _download(data_dir: Path) -> None:
    from torchvision.datasets import INaturalist, inaturalist

    archive = Archive(f"{VERSION}.tgz", inaturalist.DATASET_URLS[VERSION], inaturalist.DATASET_MD5[VERSION])
    with one_at_a_time(data_dir):
        download(
            "iNaturalist 2017",
            lambda: INaturalist(str(data_dir), version=VERSION, download=True),
            root=data_dir,
            missing=[f"{VERSION}/"],
            archives=[archive],
        )


def _classes(root: Path) -> tuple[str, ...]:
    """GROUP/SPECIES, sorted by group and then by species, as torchvision numbers them."""
    groups = _folders(root)
    return tuple(f"{group}/{species}" for group in groups for species in _folders(root / group))


def _folders(path: Path) -> list[str]:
    return sorted(child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def read_list(path: Path) -> list[str]:
    """The file names, as GROUP/SPECIES/NAME, in a list in COCO's format; MemtokError if it is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = [str(image["file_name"]) for image in content["images"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MemtokError(
            f"expected a list of images in COCO's format, found {shown(path)} ({one_line(error)}); get it again"
        ) from error
    return [name.removeprefix(f"{ARCHIVE_FOLDER}/") for name in files]
