"""Tasks as they lie in files, and which of them extends which.

A header names what its task extends by content (fingerprint) and by name. The content decides: a task that was renamed
since is the same task. The name decides among tasks of equal content, which are not interchangeable: a task that
extends two of them sees two class tokens, one that extends the same one twice sees one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from memtok.errors import MemtokError
from memtok.parts import CHOICES
from memtok.task import Task, content_fingerprint, topological


@dataclass(frozen=True)
class StoredTask:
    """A task as it lies in a file: its header without the digest, and its tensors under their plain names.

    where: the file, for messages; empty for what comes from an object.
    """

    header: dict[str, Any]
    tensors: dict[str, Tensor]
    where: str = ""

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
            choices={choice.name: header[choice.name] for choice in CHOICES if choice.name in header},
            extends=[entry["fingerprint"] for entry in header["extends"]],
            preprocessing=header["preprocessing"],
            regime=header["regime"],
        )

    def __str__(self) -> str:
        return f"{self.name!r} in {self.where}" if self.where else repr(self.name)


Known = StoredTask | Task
"""What a stored task may extend: another stored one, or one that is there already."""


def resolve(stored: Sequence[StoredTask], extends: Sequence[Task], advice: str) -> list[tuple[StoredTask, list[Known]]]:
    """Each task with what it extends directly, found among all of them and `extends`; ancestors come first.

    advice: the end of the message about a task that is not found. MemtokError for a missing one, for a cycle, and
    where tasks of equal content cannot be told apart.
    """
    alike: dict[str, list[Known]] = {}
    for item in stored:
        alike.setdefault(item.header["fingerprint"], []).append(item)
    for task in topological(extends):
        alike.setdefault(task.fingerprint, []).append(task)
    waiting = [(item, matched(item, alike, advice)) for item in stored]
    ordered: list[tuple[StoredTask, list[Known]]] = []
    seen: dict[int, set[int]] = {}  # by identity: all that a stored task extends, directly or through others
    while waiting:
        ready = [one for one in waiting if all(isinstance(other, Task) or id(other) in seen for other in one[1])]
        if not ready:
            raise MemtokError(
                f"expected tasks that extend each other without a cycle, found one through {waiting[0][0]}; get the "
                "files again"
            )
        for item, extended in ready:
            seen[id(item)] = lineage(extended, seen)
            check_lineage(item, len(seen[id(item)]))
        waiting = [one for one in waiting if id(one[0]) not in seen]
        ordered += ready
    return ordered


def matched(item: StoredTask, alike: Mapping[str, Sequence[Known]], advice: str) -> list[Known]:
    """What one task extends, in the order of its header. alike: tasks by fingerprint."""
    entries = [(entry["name"], entry["fingerprint"]) for entry in item.header["extends"]]
    chosen: dict[tuple[str, str], Known] = {}
    for entry in entries:
        called_so = (one for one in alike.get(entry[1], ()) if one.name == entry[0])
        if found := next(called_so, None):
            chosen[entry] = found
    for entry in dict.fromkeys(entries):
        if entry not in chosen:
            wanted = {other for other in entries if other[1] == entry[1] and other not in chosen}
            taken = {id(one) for one in chosen.values()}
            free = [one for one in alike.get(entry[1], ()) if id(one) not in taken]
            chosen[entry] = choose(item, entry, free, len(wanted), advice)
    return [chosen[entry] for entry in entries]


def choose(item: StoredTask, entry: tuple[str, str], free: Sequence[Known], wanted: int, advice: str) -> Known:
    """One of the tasks with the content of `entry` and another name. wanted: how many of them the task extends."""
    name, fingerprint = entry
    if not free:
        raise MemtokError(f"expected {name!r} ({fingerprint[:19]}), which {item} extends, found no such task{advice}")
    # All of them, or any: what the task answers is the same, if it then sees as many tasks as its header says.
    if len(free) > wanted and "sees" not in item.header:
        names = ", ".join(sorted(repr(one.name) for one in free))
        raise MemtokError(
            f"expected one task of the content {fingerprint[:19]} for {name!r}, which {item} extends, found {names}; "
            f"rename the one that was extended to {name!r}, or leave the others out"
        )
    return min(free, key=lambda one: one.name)


def lineage(extended: Sequence[Known], seen: Mapping[int, set[int]]) -> set[int]:
    """The identities of these tasks and of all that they extend in turn."""
    found = {id(one) for one in extended}
    for one in extended:
        found |= {id(other) for other in one.ancestors()} if isinstance(one, Task) else seen[id(one)]
    return found


def check_lineage(item: StoredTask, count: int) -> None:
    """MemtokError unless a task sees as many others as when it was saved; version 0.1 did not write how many."""
    expected = item.header.get("sees", count)
    if count != expected:
        raise MemtokError(
            f"expected {expected} tasks that {item} extends, directly or through others, found {count}: of tasks of "
            "equal content one stands for another; give the tasks that it was trained with, under their names"
        )


def as_one_file(stored: Sequence[StoredTask], advice: str) -> list[StoredTask]:
    """The same tasks for one file: all that they extend is among them, and named as it is there."""
    extended = {id(item): found for item, found in resolve(stored, (), advice)}
    return [
        replace(item, header=item.header | {"extends": called(item.header["extends"], extended[id(item)])})
        for item in stored
    ]


def called(entries: Sequence[Mapping[str, Any]], tasks: Sequence[Known]) -> list[dict[str, Any]]:
    """The entries of `extends`, with the names that these tasks have now."""
    return [{**entry, "name": task.name} for entry, task in zip(entries, tasks, strict=True)]


def renamed(
    stored: Sequence[StoredTask], names: Mapping[str, str], classes: Mapping[str, Mapping[str, str]]
) -> list[StoredTask]:
    """The tasks of a file under other names. Those among them that extend a renamed one call it by its new name.

    names: new ones by old. classes: by the old name of a task, new names of its classes by old. All take effect at
    once, so that two may swap. MemtokError for the name of something that the task extends.
    """
    contents = {item.name: item.header["fingerprint"] for item in stored}
    found = []
    for item in stored:
        extends = [
            {**entry, "name": names.get(entry["name"], entry["name"])}
            if contents.get(entry["name"]) == entry["fingerprint"]
            else entry
            for entry in item.header["extends"]
        ]
        new = {
            "name": names.get(item.name, item.name),
            "classes": [classes.get(item.name, {}).get(one, one) for one in item.header["classes"]],
            "extends": extends,
        }
        if any(entry["name"] == new["name"] for entry in extends):
            raise MemtokError(
                f"expected another name than those of the tasks that {item} extends, found {new['name']!r}; choose one"
            )
        found.append(replace(item, header=item.header | new))
    return found
