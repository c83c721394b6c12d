"""What was read from files, cached in a JSON file: a file whose size and times are unchanged is not read again."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from memtok.digests import sealed, unsealed
from memtok.errors import MemtokError
from memtok.files import atomic_write

# Two changes within one tick of the file system's clock have the same time. A file that changed less than this many
# seconds before it was read is therefore read again the next time.
FRESH_SECONDS = 2.0
PART = 512  # files that are handed to the threads at once, so that Ctrl-C waits for a part only

Mark = list[int]
"""What changes when a file does: its size, and the times of its content and of its entry in ns."""

Entry = tuple[Mark, list[Any]]
"""A file's mark when it was read, and what was found in it (JSON-able)."""


def cache_file(folder: Path, root: Path) -> Path:
    """The cache for the files under `root`: one file in `folder`, named by a digest of the resolved path."""
    return folder / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]}.json"


def read_cached(
    root: Path,
    names: Sequence[str],
    read: Callable[[Path], list[Any]],
    *,
    cache: Path | None,
    made_by: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[Any]]:
    """{name: what `read` returns for the file or folder `root/name`, JSON-able}, in the order of `names`.

    `read` is called by several threads, only for what is not in `cache`, a JSON file. `made_by` says how the entries
    were made; a cache that says something else, is damaged or cannot be written is not used. progress: called with
    (files done, files in all).
    """
    known = read_cache(cache, made_by)
    started = time.time()
    marks = {name: mark_of(root / name) for name in names}
    found = {
        name: known[name][1]
        for name, mark in marks.items()
        if mark is not None and name in known and known[name][0] == mark
    }
    pending = [name for name in marks if name not in found]
    report = progress or (lambda done, total: None)
    report(len(found), len(marks))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(pending), PART):
            part = pending[start : start + PART]
            for name, contents in zip(part, pool.map(read, [root / name for name in part]), strict=True):
                found[name] = contents
                report(len(found), len(marks))
    latest = (started - FRESH_SECONDS) * 1e9
    settled = {name: (mark, found[name]) for name in pending if (mark := marks[name]) and max(mark[1:]) < latest}
    if cache is not None and settled:
        write_cache(cache, known | settled, made_by)
    return {name: found[name] for name in marks}


def mark_of(path: Path) -> Mark | None:
    """The mark of a file or folder; None for a pipe or a device, and for what cannot be inspected."""
    try:
        status = path.stat()
    except OSError:
        return None
    plain = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns] if plain else None


def read_cache(path: Path | None, made_by: Mapping[str, Any]) -> dict[str, Entry]:
    """The entries by name; none where there is no such cache."""
    if path is None:
        return {}
    try:
        content = unsealed(json.loads(path.read_text(encoding="utf-8")))
        entries = {name: (list(row[:3]), list(row[3:])) for name, row in content.pop("files").items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return entries if content == made_by else {}


def write_cache(path: Path, entries: Mapping[str, Entry], made_by: Mapping[str, Any]) -> None:
    """Writes what `read_cache` reads, where that can be done."""
    files = {name: [*mark, *found] for name, (mark, found) in entries.items()}
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(sealed({**made_by, "files": files})), encoding="utf-8")
    except (MemtokError, OSError):
        pass
