"""Folders that long work is kept in: their names, what may not change in them, and who may work in them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from memtok.errors import Argument, MemtokError
from memtok.files import write_json
from memtok.header import parse_metadata, read_safetensors_header

LOCK = ".lock"
ORPHANS = 15.0  # seconds that worker processes may outlive the process that started them; torch's look every 5


def slug(text: str) -> str:
    """`text` as the name of a folder: letters, digits, dots, hyphens; with a digest where that changed it."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.")[-60:]
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return plain if plain == text else f"{plain or 'x'}-{digest}"


def check_outside(place: str | Path | None, records: Path) -> None:
    """MemtokError for a folder of kept traces among records, where its files would count as some."""
    within = None if place is None else Path(place).resolve()
    if within is not None and records.resolve() in (within, *within.parents):
        raise MemtokError(f"expected {Argument('trace_dir')} outside {records}, found {place}; name another folder")


def check_fixed(
    path: Path,
    fixed: dict[str, Any],
    what: str = "grid",
    saved: Iterable[Path] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """MemtokError unless the work in this folder (`what`) has these settings; writes them down where there is none.

    saved: the tasks and models that lie there. They tell the preprocessing where the settings were written before it
    was one of them. defaults: of settings by name; one that did not exist when they were written had its default. To be
    called with the folder `locked`, for it reads and then writes.
    """
    found = read_settings(path, what)
    if found is not None:
        known = {name: value for name, value in (defaults or {}).items() if name in fixed} | found
        known.setdefault("preprocessing", fixed["preprocessing"])
        difference = first_difference(known, fixed)
        if difference is not None:
            name, here, now = difference
            raise MemtokError(
                f"expected the settings of the {what} in {path.parent}, {setting(name, here)}, found "
                f"{'none' if now is None else json.dumps(now)}; use the same, or another {Argument('out')}"
            )
    if found is None or "preprocessing" not in found:
        check_saved(saved, fixed["preprocessing"], what)
        write_json(path, (found or {}) | fixed)


def setting(name: str, value: Any) -> str:
    """A setting and its value in a message: `no halving`, or `memory [1, 5]` for `space.memory`."""
    argument = Argument(name.removeprefix("space."))
    return f"no {argument}" if value is None else f"{argument} {json.dumps(value)}"


def read_settings(path: Path, what: str) -> dict[str, Any] | None:
    """The settings that were written down, None where there are none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise MemtokError(
            f"expected the settings of a {what} in {path}, found something else; use another {Argument('out')}"
        ) from error


def first_difference(here: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Name and both values of the first setting that is not the same, None where all are; a missing one is None.

    Of the preprocessing it names what differs in it, such as `preprocessing.mean`.
    """
    for name in sorted(here.keys() | now.keys()):
        left, right = here.get(name), now.get(name)
        if left == right:
            continue
        if name == "preprocessing" and isinstance(left, dict) and isinstance(right, dict):
            inner = first_difference(left, right)
            return inner and (f"{name}.{inner[0]}", *inner[1:])
        return name, left, right
    return None


def check_saved(paths: Iterable[Path], preprocessing: dict[str, Any], what: str) -> None:
    """MemtokError if one of these tasks and models was trained with another preprocessing."""
    for path in sorted(paths):
        found = saved_preprocessing(path)
        difference = None if found is None else first_difference(found, preprocessing)
        if difference is not None:
            name, here, now = difference
            raise MemtokError(
                f"expected the preprocessing of {path}, which this {what} trained, {setting(name, here)}, found "
                f"{'none' if now is None else json.dumps(now)}; use the same, or another {Argument('out')}"
            )


def saved_preprocessing(path: Path) -> dict[str, Any] | None:
    """What the file of a task or of a model says of its preprocessing; None where it says nothing or is damaged.

    What is damaged is reported by those who need it.
    """
    try:
        metadata = read_safetensors_header(path).metadata
        if "memtok" in metadata:
            return dict(parse_metadata(path, metadata)[0]["preprocessing"])
        return dict(json.loads(metadata["preprocessing"]))
    except (MemtokError, ValueError, TypeError, KeyError, RecursionError):
        return None


@contextmanager
def locked(folder: Path, name: str = LOCK, *, wait: float = 0.0) -> Iterator[None]:
    """Keeps others from the same work in a folder; MemtokError if one is at it already, for more than `wait` seconds.

    Others are threads of this process, processes of this machine, and of others where the file system of the folder
    locks across machines, as NFS does. The system gives the lock back when the process ends, however it ends.
    `name`: of the file that is locked; NAME.holder beside it says who has it. MemtokError also for a folder that
    cannot be written.
    """
    from filelock import FileLock, Timeout

    holder = folder / f"{name}.holder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / name)
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            if not is_gone(holder):
                raise
            lock.acquire(timeout=ORPHANS)  # processes that it had started end soon, and have the lock until then
    except Timeout as error:
        raise MemtokError(
            f"expected nobody else at work in {folder}, found another process{shown_holder(holder)}; wait for it, or "
            f"use another {Argument('out')}"
        ) from error
    except OSError as error:
        raise MemtokError(
            f"expected a folder that can be written for {folder}, found: {error.strerror}; choose another place"
        ) from error
    try:
        with suppress(OSError):  # the disk is full: the lock holds all the same
            content = {"host": socket.gethostname(), "process": os.getpid()}
            holder.write_text(json.dumps(content) + "\n", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def read_holder(path: Path) -> tuple[str, int] | None:
    """Host and process that wrote a file beside a lock; None where it says nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return str(found["host"]), int(found["process"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def shown_holder(path: Path) -> str:
    """Who has a lock, for a message."""
    found = read_holder(path)
    return "" if found is None else f" (process {found[1]} on {found[0]})"


def is_gone(path: Path) -> bool:
    """Whether the process that has a lock was one of this machine, and ended."""
    import psutil

    found = read_holder(path)
    return found is not None and found[0] == socket.gethostname() and not psutil.pid_exists(found[1])
