"""Lists of the image files of large data sets, remembered: reading thousands of folders takes long on a slow disk."""

from __future__ import annotations

import fnmatch
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from memtok.data.images import FRESH_SECONDS, check_cache_file, shown
from memtok.errors import MemtokError
from memtok.files import atomic_write

VERSION = 1


def list_images(root: Path, folders: Sequence[str], data_dir: Path, pattern: str = "*.jpg") -> list[list[str]]:
    """For each of `folders` (relative to `root`) the names in it that match `pattern`, sorted; hidden ones left out.

    A folder is read again when it changed since it was remembered in `data_dir`/listings. Raises MemtokError for a
    folder that cannot be read, or lies elsewhere.
    """
    check_folders(root, folders)
    cache = check_cache_file(data_dir / "listings", root)
    known = _read(cache, pattern)
    fresh: dict[str, tuple[int, list[str]]] = {}
    found: list[list[str]] = []
    now = time.time()
    for folder in folders:
        path = root / folder
        try:
            changed = path.stat().st_mtime_ns
            before = known.get(folder)
            names = before[1] if before and before[0] == changed else _names(path, pattern)
        except OSError as error:
            raise MemtokError(
                f"expected a folder of images that can be read, found {shown(path)} ({error.strerror}); get it again, "
                "or change its permissions"
            ) from error
        found.append(names)
        if changed / 1e9 < now - FRESH_SECONDS:  # within one tick of the clock two changes look alike
            fresh[folder] = (changed, names)
    if fresh != known:
        _write(cache, pattern, fresh)
    return found


def check_folders(root: Path, folders: Sequence[str]) -> None:
    """Raises MemtokError for names, read from a list, that do not lead to folders below `root`, each to its own."""
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
    """Raises MemtokError unless the files `names` under `root` are there; of many, about `most` are looked at."""
    step = max(1, len(names) // most)
    for name in [*names[::step], *names[-1:]]:
        if not (root / name).is_file():
            raise MemtokError(
                f"expected the images of {what}, found no {shown(root / name)}, so it is not whole; delete "
                f"{shown(root / name.split('/')[0])} and run again to unpack it anew"
            )


def _names(path: Path, pattern: str) -> list[str]:
    return sorted(name for name in os.listdir(path) if fnmatch.fnmatchcase(name, pattern) and name[0] != ".")


def _read(cache: Path, pattern: str) -> dict[str, tuple[int, list[str]]]:
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        if content["version"] == VERSION and content["pattern"] == pattern:
            return {folder: (int(changed), list(names)) for folder, (changed, names) in content["folders"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # a cache that cannot be read is done without
    return {}


def _write(cache: Path, pattern: str, folders: dict[str, tuple[int, list[str]]]) -> None:
    try:
        with atomic_write(cache) as temporary:
            content = {"version": VERSION, "pattern": pattern, "folders": folders}
            temporary.write_text(json.dumps(content), encoding="utf-8")
    except (MemtokError, OSError):
        pass
