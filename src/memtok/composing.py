"""Which tasks may stand in one model: names, extension, preprocessing, and the sizes that a model is made for."""

from __future__ import annotations

from collections.abc import Sequence

from memtok.backbone import Backbone
from memtok.errors import Argument, MemtokError
from memtok.layout import seen_by
from memtok.preprocessing import Preprocessing
from memtok.regimes import COMPOSABLE
from memtok.task import Task, topological


def built_for(task: Task) -> tuple[object, ...]:
    """What a model's layout is made for; MemtokError for a task that does not fit its backbone."""
    return task.regime, task.check(), tuple(task.extends)


def two_of_one_name(name: str) -> MemtokError:
    """The error for two tasks that cannot be told apart."""
    return MemtokError(f"expected tasks of different names, found {name!r} twice; rename one (task.name = ...)")


def named(tasks: Sequence[Task]) -> dict[str, Task]:
    """The tasks by name; MemtokError for two of one name, as one comes to be when it is renamed in a model."""
    found: dict[str, Task] = {}
    for task in tasks:
        if task.name in found:
            raise two_of_one_name(task.name)
        found[task.name] = task
    return found


def refuse_alone(verb: str, tasks: Sequence[Task]) -> None:
    """MemtokError if one of the tasks changes what image tokens are and so cannot share a pass."""
    for task in tasks:
        if not task.composable:
            raise MemtokError(
                f"expected composable tasks to {verb}, found {task.name!r} of regime {task.regime!r}, whose image "
                f"tokens see the task; train it again with a regime among {', '.join(COMPOSABLE)}"
            )


def merge(tasks: Sequence[Task], others: Sequence[Task]) -> list[Task]:
    """Both, where a task that others extend and that stands in both (by content and classes) is taken once."""
    merged = named(tasks)
    extended = {id(ancestor) for task in (*tasks, *others) for ancestor in task.ancestors()}
    for other in named(others).values():
        same = merged.get(other.name)
        if same is None:
            merged[other.name] = other
        elif not ({id(same), id(other)} & extended) or not same_task(same, other):
            raise two_of_one_name(other.name)
        elif same.classes != other.classes:
            raise MemtokError(
                f"expected the same class names of {other.name!r} in both, found others; rename those of one "
                "(task.classes = ...)"
            )
    return list(merged.values())


def same_task(one: Task, other: Task) -> bool:
    """Whether two tasks are one object or hold the same content."""
    return one is other or one.fingerprint == other.fingerprint


def check_tasks(backbone: Backbone, tasks: Sequence[Task]) -> None:
    """MemtokError unless these tasks can stand beside this backbone in one model."""
    if not isinstance(tasks, Sequence) or not all(isinstance(task, Task) for task in tasks):
        raise MemtokError(
            "expected a list of memtok tasks, found something else; write MemoryViT(backbone, [task])", argument="tasks"
        )
    topological(tasks)  # names a cycle
    named(tasks)
    for task in tasks:
        if task.backbone.fingerprint != backbone.fingerprint:
            raise MemtokError(
                f"expected tasks of backbone {backbone.source} ({backbone.fingerprint[:19]}), found {task.name!r} of "
                f"{task.backbone.source} ({task.backbone.fingerprint[:19]}); load the backbone that it was trained on",
                argument="tasks",
            )
        if task.class_tokens.device != backbone.device:
            raise MemtokError(
                f"expected tasks on {backbone.device} like the backbone, found {task.name!r} on "
                f"{task.class_tokens.device}; move it with task.to({str(backbone.device)!r})",
                argument="tasks",
            )
    if len(tasks) > 1:
        refuse_alone("put side by side", tasks)


def check_agreement(preprocessing: Preprocessing, tasks: Sequence[Task]) -> None:
    """MemtokError unless these tasks were trained with this preprocessing."""
    for task in tasks:
        if task.preprocessing != preprocessing:
            raise MemtokError(
                f"expected tasks of the model's preprocessing, found a difference in {task.name!r}: "
                f"{preprocessing.difference(task.preprocessing)}; give preprocessing=",
                argument="preprocessing",
            )


def resolve_extends(tasks: Sequence[Task]) -> list[list[int]]:
    """For each task, the positions of those that it extends.

    MemtokError if one is missing, if there is another of its name, or if one of the model would stand for two.
    """
    positions = {task.name: index for index, task in enumerate(tasks)}
    resolved = []
    for task in tasks:
        found = []
        for ancestor in task.extends:
            index = positions.get(ancestor.name)
            if index is None:
                raise MemtokError(
                    f"expected all that {task.name!r} extends in the model, found no {ancestor.name!r}; add it first"
                )
            if not same_task(tasks[index], ancestor):
                raise MemtokError(
                    f"expected the {ancestor.name!r} that {task.name!r} extends ({ancestor.fingerprint[:19]}), found "
                    f"another task of that name ({tasks[index].fingerprint[:19]}); add the one that was extended"
                )
            found.append(index)
        resolved.append(found)
    for index, task in enumerate(tasks):
        own, here = task.ancestors(), seen_by(index, resolved)
        if len(own) != len(here):  # two of equal content, of which others in the model extend only one
            names = ", ".join(repr(ancestor.name) for ancestor in own)
            raise MemtokError(
                f"expected all that {task.name!r} extends, directly or through others ({names}), found {len(here)} "
                f"tasks of the model for them; use the very tasks that {task.name!r} extends"
            )
    return resolved


def common_preprocessing(backbone: Backbone, tasks: Sequence[Task], explicit: Preprocessing | None) -> Preprocessing:
    """What images of this model go through: as given, else what all tasks agree on, else the backbone's."""
    chosen = explicit or (tasks[0].preprocessing if tasks else backbone.preprocessing)
    if explicit is None:
        for task in tasks[1:]:
            if task.preprocessing != chosen:
                raise MemtokError(
                    f"expected tasks of one preprocessing, found a difference between {tasks[0].name!r} and "
                    f"{task.name!r}: {chosen.difference(task.preprocessing)}; train them alike or give preprocessing=",
                    argument="preprocessing",
                )
    own = backbone.preprocessing
    if chosen.image_size != own.image_size:
        raise MemtokError(
            f"expected images of {chosen.image_size[0]}x{chosen.image_size[1]} px as the tasks were trained with, "
            f"found a backbone for {own.image_size[0]}x{own.image_size[1]} px; load it with "
            f"{Argument('image_size', chosen.image_size)}"
        )
    if chosen.position_resize != own.position_resize and explicit is None:
        raise MemtokError(
            f"expected position embeddings resized as by {chosen.position_resize}, found a backbone resized as "
            f"by {own.position_resize}; load it from the same kind of source or give preprocessing=",
            argument="preprocessing",
        )
    return chosen
