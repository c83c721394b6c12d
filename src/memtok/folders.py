"""Folders that long work is kept in: their names, what may not change in them, and who may work in them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memtok.errors import MemtokError
from memtok.files import write_json


def slug(text: str) -> str:
    """`text` as the name of a folder: letters, digits, dots, hyphens; with a digest where that changed it."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.")[-60:]
    return plain if plain == text else f"{plain or 'x'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def check_fixed(path: Path, fixed: dict[str, Any], what: str = "grid") -> None:
    """MemtokError unless the work in this folder (`what`) has these settings; writes them down where there is none."""
    if not path.exists():
        write_json(path, fixed)
        return
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise MemtokError(
            f"expected the settings of a {what} in {path}, found something else; use another --out"
        ) from error
    for key in sorted(found.keys() | fixed.keys()):
        if found.get(key) != fixed.get(key):
            raise MemtokError(
                f"expected the settings of the {what} in {path.parent}, {key} {json.dumps(found.get(key))}, found "
                f"{json.dumps(fixed.get(key))}; use the same, or another --out"
            )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second process from doing the same work; MemtokError if one does already."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise MemtokError(
            f"expected nobody else at work in {folder}, found another process; wait for it, or use another --out"
        ) from error
    try:
        yield
    finally:
        lock.release()
