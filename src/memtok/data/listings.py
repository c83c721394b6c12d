"""Images of large data sets that come as one folder per class, listed from a cache: thousands of folders are slow."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from memtok.data.file_cache import cache_file, read_cached
from memtok.data.images import shown
from memtok.data.official import official_parts
from memtok.data.published import Published
from memtok.data.sources import FileStore, ImageSet
from memtok.errors import MemtokError


def read_class_folders(
    root: Path,
    folders: Sequence[str],
    classes: tuple[str, ...],
    *,
    data_dir: Path,
    pattern: str = "*.jpg",
    lists: Sequence[str],
    list_folders: Sequence[Path],
    read_list: Callable[[Path], list[str]],
) -> Published:
    """A data set of one folder of images per class, `root/folder`, whose official lists are published separately.

    lists: the names of the official training and test list, in one of `list_folders`; `read_list` returns the file
    names in a list. MemtokError for a class without images.
    """
    listed = list_images(root, folders, data_dir, pattern)
    for folder, files in zip(folders, listed, strict=True):
        if not files:
            raise MemtokError(
                f"expected images of every class, found none in {shown(root / folder)}; delete {shown(root)} and "
                "unpack it anew"
            )
    names = tuple(f"{folder}/{name}" for folder, files in zip(folders, listed, strict=True) for name in files)
    labels = np.repeat(np.arange(len(folders)), [len(files) for files in listed])
    return Published(
        classes,
        ImageSet.whole(FileStore(root, names, published=True), labels),
        official_parts(lists, list_folders, read_list, names, root),
        lists=f"no {' and '.join(lists)} in {shown(list_folders[0])}",
    )


def list_images(root: Path, folders: Sequence[str], data_dir: Path, pattern: str) -> list[list[str]]:
    """For each of `folders` (relative to `root`) the names in it that match `pattern`, sorted; hidden ones left out.

    A folder is read again when it changed since it was cached in `data_dir`/listings. Raises MemtokError for a folder
    that cannot be read, or is outside `root`.
    """
    check_folders(root, folders)
    cache, made_by = cache_file(data_dir / "listings", root), {"version": 2, "pattern": pattern}
    try:
        return list(read_cached(root, folders, partial(_names, pattern=pattern), cache=cache, made_by=made_by).values())
    except OSError as error:
        raise MemtokError(
            f"expected a folder of images that can be read, found {shown(error.filename or root)} ({error.strerror}); "
            "get it again, or change its permissions"
        ) from error


def check_folders(root: Path, folders: Sequence[str]) -> None:
    """Raises MemtokError for names, read from a list, that are not relative paths of folders, or come twice."""
    seen: set[str] = set()
    for folder in folders:
        path = Path(folder)
        named = bool(path.parts) and "\0" not in folder and path.as_posix() == folder
        plain = named and ".." not in path.parts and not path.anchor
        if not plain or folder in seen:
            found = f"{shown(folder)} twice" if plain else repr(folder[:100])
            raise MemtokError(f"expected names of folders in {shown(root)}, found {found}; get it again")
        seen.add(folder)


def check_some(root: Path, names: Sequence[str], what: str, most: int = 1000) -> None:
    """Raises MemtokError unless the files `names` under `root` are there; of many, about `most` are checked."""
    step = max(1, len(names) // most)
    for name in [*names[::step], *names[-1:]]:
        if not (root / name).is_file():
            raise MemtokError(
                f"expected the images of {what}, found no {shown(root / name)}, so it is not whole; delete "
                f"{shown(root / name.split('/')[0])} and run again to unpack it anew"
            )


def _names(path: Path, pattern: str) -> list[str]:
    return sorted(name for name in os.listdir(path) if fnmatch.fnmatchcase(name, pattern) and name[0] != ".")
