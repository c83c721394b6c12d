"""SHA-256 of files, cached: a file is hashed again when its size or times have changed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from memtok.data.file_cache import read_cached
from memtok.regular import special_kind

MISSING = "missing"  # in the place of a hash


def file_hashes(root: Path, names: Sequence[str], cache: Path | None) -> list[str]:
    """SHA-256 of every file `root/name`, 64 hexadecimal digits; "missing" where no regular file can be read.

    cache: a JSON file of earlier hashes; not used where it cannot be read or written.
    """
    hashes = read_cached(root, names, lambda path: [hash_of(path)], cache=cache, made_by={"version": 1})
    return [hashes[name][0] for name in names]


def hash_of(path: Path) -> str:
    """SHA-256 of a file, or "missing"."""
    try:
        if special_kind(path):
            return MISSING
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return MISSING
