"""Writing files so that a reader sees the old content or the new, never half of one."""

from __future__ import annotations

import csv
import errno
import io
import json
import logging
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from memtok.errors import MemtokError

logger = logging.getLogger("memtok")

STANDARD = (1, 2)  # the descriptors of standard output and standard error
LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # halves of surrogate pairs, which stand for no byte of a file name
KINDS = {stat.S_IFDIR: "the folder", stat.S_IFSOCK: "the socket", stat.S_IFBLK: "the block device"}


@contextmanager
def atomic_write(path: str | Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Yields a temporary file; what was written there takes the place of `path` when the block ends.

    mode: permissions of a file that was not there, less what the umask takes.

    On an exception the temporary file is removed and `path` stays as it was. The content is flushed to the disk
    before the rename, so a power cut leaves the old file or the new one. A file that is replaced keeps its
    permissions and, where we may set it, its owner; of several hard links the others keep the old content.

    A symbolic link stays, and the file that it leads to is replaced. A FIFO, a character device, and the file that
    standard output or standard error goes to are written into, once the content is complete. Raises MemtokError for a
    folder, a socket and a block device, and if the folder cannot be written.
    """
    given = Path(path)
    status = look_at(given)
    if status is not None and is_stream(status):
        with tempfile.TemporaryDirectory(prefix="memtok-") as folder, explained(given):
            content = Path(folder) / "content"
            content.touch()
            yield content
            pour(content, given, status)
        return
    target = Path(os.path.realpath(given))
    temporary = new_file_beside(target, given, mode)
    try:
        with explained(given):
            permissions = stat.S_IMODE(temporary.stat().st_mode)  # the writer may put a file of its own there
            yield temporary
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            if status is not None:
                permissions = stat.S_IMODE(status.st_mode)
                with suppress(OSError):  # only an administrator may give files away
                    os.chown(temporary, status.st_uid, status.st_gid)
            temporary.chmod(permissions)
            os.replace(temporary, target)
            flush_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def look_at(path: Path) -> os.stat_result | None:
    """What is at `path`, behind its links; None for nothing. MemtokError for what is no place for a file."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise MemtokError(
            f"expected a place that can be written at {path}, found: {error.strerror}; choose another"
        ) from error
    kind = KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        raise MemtokError(f"expected a file name, found {kind} {path}; name a file")
    return status


def is_stream(status: os.stat_result) -> bool:
    """Whether to write into what is there, for a file in its place would be another thing."""
    mode = status.st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or standard_descriptor(status) is not None


def standard_descriptor(status: os.stat_result) -> int | None:
    """1 or 2 for the file that standard output or standard error goes to, such as /dev/stdout; else None."""
    for descriptor in STANDARD:
        with suppress(OSError):  # it may be closed
            if os.path.samestat(status, os.fstat(descriptor)):
                return descriptor
    return None


def pour(content: Path, place: Path, status: os.stat_result) -> None:
    """Writes the bytes of a file into a FIFO, a device or a standard stream."""
    descriptor = standard_descriptor(status)
    if descriptor is None:
        handle = open_stream(place)
    else:
        (sys.stdout if descriptor == 1 else sys.stderr).flush()  # what was printed before comes before
        handle = os.dup(descriptor)  # opened anew, a regular file would be cut to nothing
    with content.open("rb") as source, os.fdopen(handle, "wb") as sink:
        shutil.copyfileobj(source, sink)


def open_stream(place: Path) -> int:
    """A descriptor for writing into a FIFO or device; logs a warning while it waits for a reader of a FIFO."""
    try:
        handle = os.open(place, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        logger.warning("nobody reads %s yet: waiting", place)
        return os.open(place, os.O_WRONLY)
    os.set_blocking(handle, True)
    return handle


def new_file_beside(target: Path, given: Path, mode: int) -> Path:
    """A new, empty file in the folder of `target`, with the permissions that the umask leaves of `mode`."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    except OSError as error:
        raise MemtokError(
            f"expected a folder that can be written for {given}, found: {error.strerror}; choose another place"
        ) from error
    return temporary


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What goes wrong in writing becomes a MemtokError that names `path`."""
    try:
        yield
    except MemtokError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or "No space left" in str(error) or "os error" in str(error):
            raise MemtokError(
                f"expected to write {path}, found: {first_line(error)}; make room, or choose another place"
            ) from error
        raise


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
    """Writes `text` as UTF-8, atomically. Of file names that are no UTF-8 the odd bytes become escapes: `\\udcff`.

    In JSON that is the name itself: `os.fsencode` of what Python reads gives its bytes.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV, one per line, that every reader takes apart again: a field with any line end in it is quoted."""
    text = io.StringIO(newline="")
    for row in rows:
        line = io.StringIO(newline="")
        csv.writer(line, lineterminator="\r\n").writerow(row)  # it quotes the line ends that it knows of
        text.write(line.getvalue().removesuffix("\r\n") + "\n")
    return text.getvalue()


def write_csv(path: str | Path, text: str) -> None:
    """Writes CSV as UTF-8, atomically. A file name that is no UTF-8 stands there byte for byte: it can be opened."""
    text = LONE.sub(lambda match: ascii(match[0])[1:-1], text)
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))
