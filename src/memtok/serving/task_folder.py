"""The folder of uploaded tasks: one file each, written atomically, there again after a restart."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memtok.errors import MemtokError

if TYPE_CHECKING:
    from memtok.backbone import Backbone
    from memtok.stored import StoredTask
    from memtok.task import Task

ENDING = ".safetensors"

logger = logging.getLogger("memtok")


class TaskFolder:
    """A folder with task files, those that the server wrote and others; it is made if it is not there.

    Raises MemtokError for a folder that cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._files: dict[str, Path] = {}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise MemtokError(
                f"expected a folder for uploaded tasks that can be written, found {path} ({error.strerror}); name "
                "another"
            ) from error

    def read(self) -> list[StoredTask]:
        """The tasks of all files that hold one; what is damaged is named in the log, left out, and left alone."""
        from memtok.bundle import read_stored

        found: dict[str, StoredTask] = {}
        for path in sorted(self.path.glob(f"*{ENDING}")):
            try:
                tasks = read_stored(path)
                if len(tasks) != 1 or tasks[0].name in found:
                    raise MemtokError(
                        f"expected files of one task each, and each task once, found {tasks[0].name!r} in {path}; take "
                        "it away"
                    )
            except MemtokError as error:
                logger.warning("left out: %s", error)
                continue
            found[tasks[0].name], self._files[tasks[0].name] = tasks[0], path
        return list(found.values())

    def write(self, task: StoredTask) -> None:
        """Stores a task, in the place of the one of its name."""
        from memtok.bundle import write_stored

        place = self.path / file_name(task.name)
        write_stored([task], place)
        if (before := self._files.get(task.name, place)) != place:
            before.unlink(missing_ok=True)
        self._files[task.name] = place

    def remove(self, name: str) -> None:
        """Removes the file of a task, if it has one here."""
        place = self._files.pop(name, None)
        if place is not None:
            place.unlink(missing_ok=True)


def file_name(name: str) -> str:
    """The file of a task: names that differ in upper and lower case only get different ones."""
    return f"{name}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}{ENDING}"


def joined(given: Sequence[Task], uploads: Sequence[StoredTask], backbone: Backbone) -> list[Task]:
    """The tasks of the command line and the uploaded ones, each of which stands for a given one of its name.

    An uploaded task of another backbone, or without one that it extends, is named in the log and left out.
    """
    from memtok.bundle import revive

    tasks = {task.name: task for task in given}
    waiting, reasons = list(uploads), {}
    while waiting:
        left = []
        for stored in waiting:
            try:
                [task] = revive([stored], backbone, list(tasks.values()), advice=", neither given nor uploaded")
            except MemtokError as error:
                left.append(stored)
                reasons[stored.name] = error
                continue
            if stored.name in tasks:
                logger.warning("%s stands for the one given", stored)
            tasks[stored.name] = task
        if len(left) == len(waiting):
            for stored in left:
                logger.warning("left out: %s", reasons[stored.name])
            break
        waiting = left
    return list(tasks.values())
