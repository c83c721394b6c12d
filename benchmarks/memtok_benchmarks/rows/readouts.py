"""Row `readouts`: many tasks that read all levels of the trunk, answered for one batch of images, over the trunk.

Timed: the logits of all tasks, without gradient. memtok: one pass of `MemoryViT` in a folded block, its base output
included. Each task by itself: the same trace, then `Task.forward` of one task after the other. Tasks are of regime
head; they have the classes of the run, with more than 200 tasks a tenth of them (1,000 readouts of 100 classes on a
ViT-B/32 would be 24 GB of weights). Floor: the trunk's multiply-adds and those that `memtok.parts.cost` counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from memtok.backbone import NOTHING
from memtok.parts import cost
from memtok.task import Task
from memtok_benchmarks import contenders, floor
from memtok_benchmarks.contenders import Contender
from memtok_benchmarks.lines import Line, RowResult, run_race
from memtok_benchmarks.scene import Scene
from memtok_benchmarks.timing import Run

MANY = 200  # tasks from which on they have a tenth of the classes


@dataclass(frozen=True, kw_only=True)
class Form:
    """Tasks of one kind. options: of `Task.create`, beside those of all. must: trunk passes by number of tasks."""

    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    must: Mapping[int, float] = field(default_factory=dict)


# The bounds are those of the second form; the first one is a part of it.
MUST = {100: 1.4, 1000: 4.0}
FORMS = (
    Form(label="readout of all levels", must=MUST),
    Form(label="the same with a side stream of 16", options={"side": 16}, must=MUST),
)


def readouts(scene: Scene) -> RowResult:
    """One line per form and number of tasks."""
    lines, notes, data = [], [], {}
    for form in FORMS:
        for count in scene.sizes.readers:
            with Scene(scene.sizes) as here:  # gives the copies of its folded block back
                tasks = make(here, form, count)
                field_ = {
                    "trunk": contenders.TRUNK,
                    "memtok": Contender(label="memtok", make=partial(contenders.serving, tasks=tasks)),
                    "one by one": Contender(label="each task by itself", make=partial(one_by_one, tasks=tasks)),
                }
                race = run_race(here, field_)
                geometry = floor.Geometry.of(here.backbone.vit)
                least = 1 + count * cost(here.backbone, tasks[0].form) / floor.trunk(geometry)
            classes = len(tasks[0].classes)
            line = Line(
                what=f"inference, {count:,} tasks of {classes} classes, {form.label}, batch {scene.sizes.batch}, "
                "over the trunk",
                memtok=race.entry("memtok", "memtok", "trunk"),
                peers=(race.entry("one by one", "each task by itself", "trunk"),),
                must=scene.sizes.asked(form.must.get(count)),
            )
            lines.append(line)
            notes.append(f"{form.label}, {count:,} tasks of {classes} classes: arithmetic alone is {least:.2f}.")
            data[f"{form.label}, {count}"] = {"classes": classes, "floor": least, **race.to_json()}
    return RowResult(lines=tuple(lines), notes=tuple(notes), data=data)


def make(scene: Scene, form: Form, count: int) -> list[Task]:
    """So many tasks of a form."""
    classes = scene.sizes.classes if count <= MANY else max(1, scene.sizes.classes // 10)
    return [scene.reader(f"task-{index}", classes, seed=index, **form.options) for index in range(count)]


def one_by_one(scene: Scene, tasks: list[Task]) -> Run:
    """The trunk's pass, and then one task after the other."""
    images = scene.images.to(scene.dtype)

    def run() -> object:
        with torch.inference_mode():
            trace = scene.backbone.trace(images, keep=NOTHING, reads=tasks[0].reads)
            assert trace.features is not None
            return [task(trace.features, trace.statistics) for task in tasks]

    return run


def profiled(scene: Scene) -> Run:
    """The pass that `--profile readouts` looks into: the first form and number of tasks."""
    return contenders.serving(scene, make(scene, FORMS[0], scene.sizes.readers[0]))
