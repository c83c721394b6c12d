"""Task files: one safetensors file for a task, or for several that are put side by side.

One task: the tensors `class_tokens`, `memory`, `head.weight`, `head.bias`, and `adapters.*` if it has some. Several:
the same under `tasks.NAME.`. The metadata entry `memtok` holds JSON: `format_version` and the task's header, or
`tasks`, a list of headers. docs/task-file.md describes every field. No backbone is ever in such a file.

A file is read strictly: an unknown version, a missing, extra or misshapen tensor, a number that is not finite and a
content that does not match its fingerprint are errors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from memtok.backbone import Backbone
from memtok.checks import check_classes, check_name
from memtok.errors import MemtokError
from memtok.files import atomic_write
from memtok.header import FORMAT_VERSION, read_header
from memtok.preprocessing import Preprocessing
from memtok.task import Task, content_fingerprint, topological


@dataclass(frozen=True)
class StoredTask:
    """A task as it lies in a file: its header, and its tensors under their plain names."""

    header: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def name(self) -> str:
        """The task's name."""
        return str(self.header["name"])

    def fingerprint(self) -> str:
        """What `Task.fingerprint` would be, of the content as it lies here; no backbone is needed."""
        header = self.header
        return content_fingerprint(
            self.tensors,
            backbone=header["backbone"]["fingerprint"],
            extends=[entry["fingerprint"] for entry in header["extends"]],
            placement=header["placement"],
            preprocessing=header["preprocessing"],
            regime=header["regime"],
        )


def header_of(task: Task) -> dict[str, Any]:
    """What a file says of a task beside its tensors."""
    return {
        "name": task.name,
        "classes": list(task.classes),
        "regime": task.regime,
        "composable": task.composable,
        "placement": task.placement,
        "backbone": {"fingerprint": task.backbone.fingerprint, "source": task.backbone.source},
        "preprocessing": task.preprocessing.to_dict(),
        "extends": [{"name": ancestor.name, "fingerprint": ancestor.fingerprint} for ancestor in task.extends],
        "fingerprint": task.fingerprint,
        "record": task.record,
    }


def save_task(task: Task, path: str | Path) -> None:
    """Writes one task, atomically. What it extends is named by fingerprint and not written."""
    write_stored([StoredTask(header_of(task), task.tensors())], path)


def save_tasks(tasks: Sequence[Task], path: str | Path) -> None:
    """Writes several tasks into one file, atomically; all that they extend must be among them."""
    missing = [task for task in topological(tasks) if not any(task is given for given in tasks)]
    known = {task.fingerprint for task in tasks} if missing else set()
    for task in missing:
        if task.fingerprint not in known:
            raise MemtokError(f"expected all that the tasks extend among them, found no {task.name!r}; add it")
    write_stored([StoredTask(header_of(task), task.tensors()) for task in tasks], path)


def write_stored(tasks: Sequence[StoredTask], path: str | Path) -> None:
    """Writes tasks as they came from files or objects; MemtokError for no task, two of one name, or broken numbers."""
    if not tasks:
        raise MemtokError("expected at least one task to write, found none; name some")
    names: set[str] = set()
    tensors: dict[str, Tensor] = {}
    for task in tasks:
        check_name(task.name)
        if len(check_classes(task.header["classes"])) != len(task.tensors["head.bias"]):
            raise MemtokError(
                f"expected {len(task.tensors['head.bias'])} class names in task {task.name!r}, found "
                f"{len(task.header['classes'])}; the file was changed, get it again"
            )
        if task.name in names:
            raise MemtokError(f"expected tasks of different names in one file, found {task.name!r} twice; rename one")
        names.add(task.name)
        prefix = "" if len(tasks) == 1 else f"tasks.{task.name}."
        for key, tensor in task.tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise MemtokError(
                    f"expected finite numbers in {key} of task {task.name!r}, found others; train it again"
                )
            tensors[prefix + key] = tensor.detach().to("cpu").contiguous()
    content = tasks[0].header if len(tasks) == 1 else {"tasks": [task.header for task in tasks]}
    try:
        text = json.dumps({"format_version": FORMAT_VERSION, **content}, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise MemtokError(f"expected a task.record of JSON values, found another ({error}); mend the record") from error
    # A path in the record may be no UTF-8; its odd bytes become escapes of JSON.
    metadata = {"memtok": text.encode("utf-8", "backslashreplace").decode()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


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
    if len(headers) == 1 and "class_tokens" in tensors:
        return [StoredTask(headers[0], tensors)]
    # The longest name first: one name may begin with another and a dot.
    stored: dict[str, StoredTask] = {}
    for header in sorted(headers, key=lambda header: -len(header["name"])):
        prefix = f"tasks.{header['name']}."
        own = {key: tensors.pop(key) for key in sorted(tensors) if key.startswith(prefix)}
        stored[header["name"]] = StoredTask(header, {key.removeprefix(prefix): value for key, value in own.items()})
    if tensors or len(stored) != len(headers):
        found = next(iter(tensors), "two tasks of one name")
        raise MemtokError(f"expected only tensors of the tasks named in {path}, found {found}; get the file again")
    return [stored[header["name"]] for header in headers]


def load_task(path: str | Path, backbone: Backbone, extends: Sequence[Task] = ()) -> Task:
    """Reads a file that holds one task, onto the backbone's device, ready to train or to compose.

    extends: where to look, by fingerprint, for what the file extends. Raises MemtokError for a file of another
    backbone, a foreign or damaged one, and for a missing task among `extends`.
    """
    tasks = load_tasks(path, backbone, extends)
    if len(tasks) != 1:
        names = ", ".join(repr(task.name) for task in tasks)
        raise MemtokError(f"expected one task in {path}, found {len(tasks)} ({names}); use memtok.load_tasks")
    return tasks[0]


def load_tasks(path: str | Path, backbone: Backbone, extends: Sequence[Task] = ()) -> list[Task]:
    """Reads all tasks of a file, in its order; what they extend is found among them and `extends`."""
    return revive(read_stored(path), backbone, extends, str(path))


def revive(stored: Sequence[StoredTask], backbone: Backbone, extends: Sequence[Task], where: str) -> list[Task]:
    """Tasks from their stored form, those first that others extend; returned in the given order."""
    known = {task.fingerprint: task for task in topological(extends)}
    built: dict[int, Task] = {}
    while len(built) < len(stored):
        ready = [
            index
            for index, item in enumerate(stored)
            if index not in built and all(entry["fingerprint"] in known for entry in item.header["extends"])
        ]
        if not ready:
            blocked = next(item for index, item in enumerate(stored) if index not in built)
            lacking = next(entry for entry in blocked.header["extends"] if entry["fingerprint"] not in known)
            raise MemtokError(
                f"expected {lacking['name']!r} ({lacking['fingerprint'][:19]}), which {blocked.name!r} in {where} "
                "extends, found no such task; give it with extends=, or its file beside this one"
            )
        for index in ready:
            ancestors = [known[entry["fingerprint"]] for entry in stored[index].header["extends"]]
            task = revive_one(stored[index], backbone, ancestors, where)
            built[index] = known[stored[index].header["fingerprint"]] = task  # which it was just checked against
    return [built[index] for index in range(len(stored))]


def revive_one(stored: StoredTask, backbone: Backbone, extends: Sequence[Task], where: str) -> Task:
    """One task from its stored form, with its content checked against its fingerprint."""
    header = stored.header
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
        placement=header["placement"],
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
