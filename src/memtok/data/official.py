"""The official lists of a data set's training and test images, if they are published separately."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from memtok.data.images import shown
from memtok.data.splits import Indices
from memtok.errors import MemtokError


def official_parts(
    lists: Sequence[str],
    folders: Sequence[Path],
    read: Callable[[Path], list[str]],
    names: Sequence[str],
    root: Path,
) -> tuple[Indices, Indices] | None:
    """Positions in `names` (files in `root`) of the official training and test images; None without both `lists`.

    The lists are searched in `folders`, in this order; `read` returns the names in a list. MemtokError for lists that
    do not match the images or overlap.
    """
    found = [next((folder / name for folder in folders if (folder / name).is_file()), None) for name in lists]
    paths = [path for path in found if path is not None]
    if len(paths) < len(lists):
        return None
    numbers = {name: number for number, name in enumerate(names)}
    train, test = (positions_of(read(path), numbers, path, root) for path in paths)
    check_apart(train, test, names, paths)
    return train, test


def positions_of(listed: list[str], numbers: dict[str, int], path: Path, root: Path) -> Indices:
    """The positions of the `listed` names in a data set; MemtokError if one is missing or listed twice."""
    missing = [name for name in listed if name not in numbers]
    if missing:
        raise MemtokError(
            f"expected the {len(listed):,} images of {shown(path)} in {shown(root)}, found {len(missing):,} of them "
            f"missing, such as {shown(missing[0])}; get the images again, or remove the list"
        )
    positions = np.array([numbers[name] for name in listed], dtype=np.int64)
    if len(np.unique(positions)) < len(positions) or not len(positions):
        raise MemtokError(f"expected every image once in {shown(path)}, found some twice or none; get it again")
    return np.sort(positions)


def check_apart(train: Indices, test: Indices, names: Sequence[str], paths: Sequence[Path]) -> None:
    """MemtokError if an image is in both lists at `paths`: training images must not be tested on."""
    both = np.intersect1d(train, test)
    if len(both):
        raise MemtokError(
            f"expected no image in both lists ({', '.join(map(shown, paths))}), found {len(both):,}, such as "
            f"{shown(names[both[0]])}; get them again"
        )
