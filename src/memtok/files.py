"""Writing files so that a reader sees the old content or the new, never half of one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memtok.errors import MemtokError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there takes its place when the block ends.

    On an exception the temporary file is removed and `path` stays as it was. The content is flushed to the disk
    before the rename, so a power cut leaves the old file or the new one. Raises MemtokError if the folder cannot be
    written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise MemtokError(
            f"expected a folder that can be written for {target}, found: {error.strerror}; choose another place"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        try:
            yield temporary
        except Exception as error:
            if isinstance(error, OSError) or "No space left" in str(error) or "os error" in str(error):
                raise MemtokError(
                    f"expected to write {target}, found: {first_line(error)}; make room, or choose another place"
                ) from error
            raise
        # mkstemp makes a private file; give it the permissions that an ordinary new file would have.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        if target.is_dir():
            raise MemtokError(f"expected a file name, found the folder {target}; name a file in it")
        os.replace(temporary, target)
        flush_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.strip().splitlines()[0][:200]


def flush_folder(folder: Path) -> None:
    """Makes a rename in `folder` last through a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # some file systems cannot flush folders
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be no UTF-8


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
