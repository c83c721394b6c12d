"""Task files: one safetensors file for a task, or for several that are put side by side.

One task: the tensors `class_tokens`, `memory`, `head.weight`, `head.bias`, and `adapters.*` if it has some. Several:
the same under `tasks.NAME.`. The metadata entry `memtok` holds JSON: `format_version` and the task's header, or
`tasks`, a list of headers. docs/task-file.md describes every field. No backbone is ever in such a file.

A file is read strictly: an unknown version, a missing, extra or misshapen tensor, a number that is not finite, a
content that does not match its fingerprint and a header that does not match its digest are errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from memtok.backbone import Backbone
from memtok.errors import Argument, MemtokError
from memtok.header import read_header, tensors_of
from memtok.parts import CHOICES
from memtok.preprocessing import Preprocessing
from memtok.stored import StoredTask, as_one_file, resolve
from memtok.task import Task, header_of
from memtok.writing import write_tasks


def save_tasks(tasks: Sequence[Task], path: str | Path) -> None:
    """Writes several tasks into one file, atomically; all that they extend must be among them."""
    stored = [StoredTask(header_of(task), task.tensors()) for task in tasks]
    write_stored(as_one_file(stored, " among those to write; add it"), path)


def write_stored(tasks: Sequence[StoredTask], path: str | Path) -> None:
    """Writes tasks as they came from files or objects, atomically, each header with a new digest; see `write_tasks`."""
    write_tasks([(task.header, task.tensors) for task in tasks], path)


def read_stored(path: str | Path) -> list[StoredTask]:
    """Headers and tensors of all tasks in a file, without a backbone to check them against."""
    headers = read_header(path)
    try:
        with safe_open(path, framework="pt") as stream:
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise MemtokError(
            f"expected a whole task file, found a damaged one in {path} ({error}); get it again"
        ) from error
    own, left = tensors_of(headers, tensors)
    if left:
        raise MemtokError(f"expected only tensors of the tasks named in {path}, found {left[0]}; get the file again")
    return [
        StoredTask(header, {key: tensors[name] for key, name in names.items()}, str(path))
        for header, names in zip(headers, own, strict=True)
    ]


def load_task(path: str | Path, backbone: Backbone, extends: Sequence[Task] = ()) -> Task:
    """Reads a file that holds one task, onto the backbone's device, ready to train or to compose.

    extends: where to look for what the file extends: by content, and by name among tasks of equal content. Raises
    MemtokError for a file of another backbone, a foreign or damaged one, and for a missing task among `extends`.
    """
    tasks = load_tasks(path, backbone, extends)
    if len(tasks) != 1:
        names = ", ".join(repr(task.name) for task in tasks)
        raise MemtokError(f"expected one task in {path}, found {len(tasks)} ({names}); use memtok.load_tasks")
    return tasks[0]


def load_tasks(path: str | Path, backbone: Backbone, extends: Sequence[Task] = ()) -> list[Task]:
    """Reads all tasks of a file, in its order; what they extend is found among them and `extends`."""
    return revive(read_stored(path), backbone, extends)


def revive(
    stored: Sequence[StoredTask],
    backbone: Backbone,
    extends: Sequence[Task] = (),
    advice: str = f"; give it with {Argument('extends')}, or its file beside this one",
) -> list[Task]:
    """Tasks from their stored form, in the given order; what they extend is found among them and `extends`.

    advice: what to do about one that is not found.
    """
    built: dict[int, Task] = {}
    for item, extended in resolve(stored, extends, advice):
        ancestors = [built[id(one)] if isinstance(one, StoredTask) else one for one in extended]
        built[id(item)] = revive_one(item, backbone, ancestors)
    return [built[id(item)] for item in stored]


def revive_one(stored: StoredTask, backbone: Backbone, extends: Sequence[Task]) -> Task:
    """One task from its stored form, with its content checked against its fingerprint."""
    header, where = stored.header, stored.where
    if header["backbone"]["fingerprint"] != backbone.fingerprint:
        raise MemtokError(
            f"expected the backbone {header['backbone']['source']} ({header['backbone']['fingerprint'][:19]}), on "
            f"which {stored.name!r} in {where} was trained, found {backbone.source} ({backbone.fingerprint[:19]}); "
            "load that one"
        )
    for key, tensor in stored.tensors.items():
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise MemtokError(
                f"expected {key} of {stored.name!r} in {where} as float32, found {tensor.dtype}; not this format"
            )
    task = Task(
        backbone,
        name=stored.name,
        classes=header["classes"],
        tensors={key: tensor.to(backbone.device, torch.float32) for key, tensor in stored.tensors.items()},
        regime=header["regime"],
        choices={choice.name: header[choice.name] for choice in CHOICES if choice.name in header},
        extends=extends,
        preprocessing=Preprocessing.from_dict(header["preprocessing"]),
        record=header["record"],
    )
    if task.fingerprint != header["fingerprint"] or task.composable != header["composable"]:
        raise MemtokError(
            f"expected the content of {stored.name!r} in {where} to match its fingerprint "
            f"{header['fingerprint'][:19]}, found {task.fingerprint[:19]}; the file was changed, get it again"
        )
    return task
