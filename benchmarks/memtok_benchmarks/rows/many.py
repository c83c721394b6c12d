"""Row `many`: the cost of making and changing a model of 1,000 tasks of three sizes.

Timed, in seconds: making a model of the tasks, adding one more, selecting one, and reading 1,000 task files from a
folder, which were written before and lie in the system's cache. Making a model computes nothing. So the forward pass
for one image is timed as well: of a folded model that was called before, and of one just made by adding or selecting a
task, which computes the keys and values of all memory first.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from memtok.bundle import load_task
from memtok.model import MemoryViT
from memtok_benchmarks.lines import Entry, Line, RowResult
from memtok_benchmarks.scene import Scene
from memtok_benchmarks.timing import race

CELLS = (1, 5, 10)


def many(scene: Scene) -> RowResult:
    """One line per operation."""
    count = scene.sizes.many
    tasks = [scene.task(f"task-{index}", CELLS[index % len(CELLS)], seed=index) for index in range(count)]
    further = scene.task("further", CELLS[-1])
    model = MemoryViT(scene.backbone, tasks)
    chosen, image = [tasks[count // 2].name], scene.images[:1]

    def answer(answering: MemoryViT) -> object:
        with torch.inference_mode():
            return answering(image).logits

    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            task.save(Path(folder) / f"{task.name}.safetensors")
        paths = sorted(Path(folder).iterdir())
        steps = {
            f"a model of {count:,} tasks": lambda: MemoryViT(scene.backbone, tasks),
            f"adding one to {count:,} tasks": lambda: model.add(further),
            f"selecting 1 of {count:,} tasks": lambda: model.select(chosen),
            f"an answer of {count:,} tasks for 1 image": lambda: answer(model),
            "the first answer after adding one": lambda: answer(model.add(further)),
            "the first answer after selecting 1": lambda: answer(model.select(chosen)),
            f"reading {count:,} task files": lambda: [load_task(path, scene.backbone) for path in paths],
        }
        with model.folded():
            timings = race(steps, rounds=scene.sizes.rounds, synchronize=scene.synchronize)
    lines = [
        Line(what=f"{what}, seconds", memtok=Entry(label="memtok", value=timing.median), digits=3)
        for what, timing in timings.items()
    ]
    return RowResult(lines=tuple(lines), data={"timings": {what: timing.to_json() for what, timing in timings.items()}})
