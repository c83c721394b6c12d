"""Hashes of files, which are read once: a file whose size and times are those of an earlier read is not read again."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from memtok.data.images import FRESH_SECONDS
from memtok.digests import sealed, unsealed
from memtok.errors import MemtokError
from memtok.files import atomic_write

VERSION = 1
PART = 512  # files that are handed to the threads at once
MISSING = "missing"  # in the place of a hash

Mark = list[int]
"""What changes when a file does: size, and the times of its content and of its entry in ns."""


def file_hashes(root: Path, names: Sequence[str], memory: Path | None) -> list[str]:
    """SHA-256 of every file `root/name`, 64 hexadecimal digits; "missing" where no regular file can be read.

    `memory`: a JSON file that the hashes are remembered in; done without where it cannot be read or written.
    """
    known = read_memory(memory)
    started = time.time()
    marks = {name: mark_of(root / name) for name in names}
    found = {name: known[name][1] for name, mark in marks.items() if name in known and known[name][0] == mark}
    pending = [name for name, mark in marks.items() if name not in found and mark is not None]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(pending), PART):  # in parts, so that Ctrl-C waits for a part only
            part = pending[start : start + PART]
            found |= zip(part, pool.map(hash_of, [root / name for name in part]), strict=True)
    # A file that changed a moment ago may change again within one tick of the clock that marks it.
    latest = (started - FRESH_SECONDS) * 1e9
    settled = {name: (mark, found[name]) for name in pending if (mark := marks[name]) and max(mark[1:]) < latest}
    if memory is not None and settled:
        write_memory(memory, known | settled)
    return [found.get(name, MISSING) for name in names]


def mark_of(path: Path) -> Mark | None:
    """The mark of a regular file, None for anything else."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns] if stat.S_ISREG(status.st_mode) else None


def hash_of(path: Path) -> str:
    """SHA-256 of a file, or "missing"."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return MISSING


def read_memory(path: Path | None) -> dict[str, tuple[Mark, str]]:
    """What was remembered, {name: (mark, hash)}; nothing where there is no such file."""
    if path is None:
        return {}
    try:
        content = unsealed(json.loads(path.read_text(encoding="utf-8")))
        if content["version"] != VERSION:
            return {}
        return {name: ([int(number) for number in row[:3]], str(row[3])) for name, row in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return {}


def write_memory(path: Path, files: dict[str, tuple[Mark, str]]) -> None:
    """Writes what `read_memory` reads, where that can be done."""
    content = {"version": VERSION, "files": {name: [*mark, digest] for name, (mark, digest) in files.items()}}
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(sealed(content)), encoding="utf-8")
    except (MemtokError, OSError):
        pass
