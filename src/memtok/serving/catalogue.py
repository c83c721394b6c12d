"""The tasks that are served, and how they change while requests are answered.

A change makes a new model beside the one that answers, checks it, stores the file, and puts it in the place of the
other in one assignment. Requests that came before go on with the model that they came to.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from memtok.errors import MemtokError
from memtok.serving.errors import RequestError, no_task
from memtok.serving.keys import Key
from memtok.serving.models import NotFiniteError, ServedModel, TaskFacts
from memtok.serving.settings import Limits
from memtok.serving.task_folder import ENDING, TaskFolder

if TYPE_CHECKING:
    from memtok.serving.torch_model import TorchModel
    from memtok.stored import StoredTask
    from memtok.task import Task

# A name of a file on every system: no separator, no leading dot, nothing that does not print.
NAME = re.compile(r"\w[\w .+()-]{0,99}")
UPLOAD = "the upload"

# What an upload may bring along that stands in answers, and is read before anything else.
LARGEST_HEADER = 4 * 2**20  # bytes
LARGEST_RECORD = 100_000  # characters of JSON
DEEPEST_RECORD = 100  # levels; to copy a level takes several of Python's own
LONGEST_CLASS = 500  # characters

T = TypeVar("T")

logger = logging.getLogger("memtok")


@dataclass(frozen=True)
class Change:
    """A task that was added (`created`) or replaced; stored: whether it is there again after a restart."""

    task: TaskFacts
    created: bool
    stored: bool


class Catalogue:
    """The model that is served now, and its changes, one after the other."""

    def __init__(self, model: ServedModel, limits: Limits, store: TaskFolder | None = None) -> None:
        self.model = model
        self.limits = limits
        self.store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="memtok-tasks")

    @property
    def fixed(self) -> bool:
        """Whether the tasks cannot change: those of an exported file."""
        return not hasattr(self.model, "replacing")

    def stop(self) -> None:
        """Ends its thread."""
        self._thread.shutdown()

    def seen(self, key: Key) -> dict[str, TaskFacts]:
        """The tasks that a key may see."""
        return {name: task for name, task in self.model.tasks.items() if key.sees(name)}

    async def put(self, name: str, content: bytes, key: Key) -> Change:
        """Adds or replaces a task from the bytes of its file; RequestError for what cannot be."""
        self._check_changeable(name, key)
        if not NAME.fullmatch(name) or len(name.encode()) > 200 or name == "base":
            raise RequestError(
                422,
                "expected a task name of 1 to 100 letters, digits, spaces and . _ + - ( ), starting with a letter or "
                f"digit, and not 'base', found {name!r}; choose another",
            )
        return await self._alone(lambda: self._put(name, content, key))

    async def delete(self, name: str, key: Key) -> None:
        """Removes a task and its stored file; RequestError for what cannot be."""
        if not key.sees(name):
            raise no_task(name)
        self._check_changeable(name, key)
        if name not in self.model.tasks:
            raise no_task(name)
        await self._alone(lambda: self._delete(name))

    async def _alone(self, change: Callable[[], T]) -> T:
        """Runs a change in the one thread. A client that leaves takes it back while it waits, but not halfway."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, change)

    def _check_changeable(self, name: str, key: Key) -> None:
        if self.fixed:
            raise RequestError(
                409, "expected tasks that can change, found an exported file; serve task files with --backbone instead"
            )
        if not key.changes(name):
            raise RequestError(403, f"expected a key that may change {name!r}, found one that may not; ask its issuer")

    def _put(self, name: str, content: bytes, key: Key) -> Change:
        model = self._changing()
        created = name not in model.tasks
        if created and len(model.tasks) >= self.limits.max_tasks:
            raise RequestError(
                409, f"expected at most {self.limits.max_tasks} tasks, found them all there; remove one first"
            )
        if created and key.max_tasks is not None and (own := sum(map(key.changes, model.tasks))) >= key.max_tasks:
            raise RequestError(
                409, f"expected at most {key.max_tasks} tasks that this key may change, found {own}; remove one first"
            )
        if not created:
            self._check_not_extended(model, name)
        stored = uploaded(content, name)
        check_told(stored)
        extends = [task for task in model.model.tasks if key.sees(task.name) and task.name != name]
        task = revived_upload(stored, model, extends)
        made = self._with(model, task, key)
        if self.store is not None:
            try:
                self.store.write(stored)
            except MemtokError as error:  # the task is good: it is the server that cannot
                raise OSError(str(error)) from error
        self.model = made
        logger.info("%s the task %r", "added" if created else "replaced", name)
        return Change(made.tasks[name], created, self.store is not None)

    def _with(self, model: TorchModel, task: Task, key: Key) -> TorchModel:
        """The model with a task; RequestError, without a name that the key may not see, if they do not go together."""
        if any(not other.composable for other in model.model.tasks if other.name != task.name):
            raise RequestError(
                409, "expected served tasks that compose with others, found one that stands alone; remove that first"
            )
        try:
            return model.replacing(task)
        except MemtokError as error:
            own = isinstance(error, NotFiniteError) and error.task == task.name
            if own or all(key.sees(other.name) for other in model.model.tasks):
                raise
            logger.info("refused the task %r: %s", task.name, error)
            raise RequestError(
                422, "expected a task that goes with those that are served, found another; ask the operator"
            ) from error

    def _delete(self, name: str) -> None:
        model = self._changing()
        if name not in model.tasks:  # removed while this one waited
            raise no_task(name)
        self._check_not_extended(model, name)
        made = model.without(name)
        if self.store is not None:
            self.store.remove(name)
        self.model = made
        logger.info("removed the task %r", name)

    def _changing(self) -> TorchModel:
        from memtok.serving.torch_model import TorchModel

        assert isinstance(self.model, TorchModel)
        return self.model

    def _check_not_extended(self, model: TorchModel, name: str) -> None:
        """RequestError if another task extends it. Which one is not told: the key may not see it."""
        if any(other.name == name for task in model.model.tasks for other in task.extends):
            raise RequestError(409, f"expected a task that no other extends, found {name!r}; remove that other first")


def uploaded(content: bytes, name: str) -> StoredTask:
    """The one task in the bytes of a file, under its new name; RequestError for anything else."""
    from memtok.bundle import read_stored
    from memtok.stored import renamed

    if LARGEST_HEADER < int.from_bytes(content[:8], "little") <= len(content):
        raise RequestError(
            422, f"expected a file with a header of at most {LARGEST_HEADER:,} bytes, found a larger one"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"upload{ENDING}"
        path.write_bytes(content)
        try:
            stored = read_stored(path)
            if len(stored) != 1:
                raise MemtokError(
                    f"expected a file with one task, found {len(stored)} in {path}; upload them one by one"
                )
            return renamed(stored, {stored[0].name: name}, {})[0]
        except MemtokError as error:
            raise RequestError(422, str(error).replace(str(path), UPLOAD)) from error


def check_told(stored: StoredTask) -> None:
    """RequestError for class names and a record that would burden every answer in which they stand."""
    longest = max(map(len, stored.header["classes"]), default=0)
    if longest > LONGEST_CLASS:
        raise RequestError(422, f"expected class names of at most {LONGEST_CLASS} characters, found one of {longest:,}")
    if is_deeper(stored.header["record"], DEEPEST_RECORD):
        raise RequestError(422, f"expected a record of at most {DEEPEST_RECORD} levels, found a deeper one; flatten it")
    if (size := len(json.dumps(stored.header["record"]))) > LARGEST_RECORD:
        raise RequestError(422, f"expected a record of at most {LARGEST_RECORD:,} characters, found {size:,}; cut it")


def is_deeper(value: Any, levels: int) -> bool:
    """Whether a JSON value has more levels of lists and objects in each other."""
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(is_deeper(part, levels - 1) for part in parts)


def revived_upload(stored: StoredTask, model: TorchModel, extends: list[Task]) -> Task:
    """The task on the model's backbone, fit to be composed; RequestError if it is not."""
    from memtok.bundle import revive_one
    from memtok.stored import resolve

    source, fingerprint = model.backbone
    found_on = stored.header["backbone"]
    if found_on["fingerprint"] != fingerprint:
        raise RequestError(
            422,
            f"expected a task of the backbone {source} ({fingerprint[:19]}), found one of {found_on['source']} "
            f"({found_on['fingerprint'][:19]}); train it on this one",
        )
    try:
        [(_, extended)] = resolve([stored], extends, "; add it first")
        task = revive_one(stored, model.model.backbone, extended)  # type: ignore[arg-type]
    except MemtokError as error:
        raise RequestError(422, str(error).replace(stored.where, UPLOAD)) from error
    if not task.composable and model.tasks:
        raise RequestError(
            422, f"expected a task that composes with others, found one of regime {task.regime!r}; train it in another"
        )
    if model.tasks and (difference := model.preprocessing.difference(task.preprocessing)):
        raise RequestError(
            422, f"expected the preprocessing of the tasks that are served, found a difference: {difference}"
        )
    return task
