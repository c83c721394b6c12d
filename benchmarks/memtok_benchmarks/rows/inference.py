"""Row `inference`: many tasks answered for one batch of images, over the trunk and over the floor (N + T) / N.

Timed: the logits of all tasks, without gradient. memtok: one pass of `MemoryViT`, its base output included, under
inference mode. Dense masked form: one pass too, with up to 100 tasks (its mask and its work grow with the square).
vit-pytorch, LoRA and separate models need a pass per task: up to ten tasks are measured, more are that time per task
times the number of tasks, which is what passes one after another take. Sizes: 5 cells and 100 classes per task; with
more than 200 tasks a quarter of the batch, for trunk and tasks alike.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from memtok_benchmarks import contenders, floor
from memtok_benchmarks.contenders import Contender
from memtok_benchmarks.lines import Entry, Line, Race, RowResult, run_race
from memtok_benchmarks.scene import Scene
from memtok_benchmarks.sizes import Sizes
from memtok_benchmarks.timing import Run

MOST_DENSE = 100
MANY = 200  # tasks from which on a quarter of the batch is taken
MUST, AIM = {10: 1.12, 100: 1.12, 1000: 1.2}, 1.05
MUST_GPU = 1.15
SERVING = {
    "vit-pytorch": ("vit-pytorch Adapters", contenders.vit_pytorch_serving, ("vit-pytorch",)),
    "lora": ("PEFT LoRA r=8", contenders.lora_serving, ("peft", "transformers")),
    "models": ("separate models", contenders.models_serving, ()),
}


def inference(scene: Scene) -> RowResult:
    """One line per number of tasks."""
    sizes = scene.sizes
    measured = min(sizes.models, *sizes.tasks)
    one_by_one = {
        name: Contender(label=label, make=partial(make, tasks=measured), needs=needs)
        for name, (label, make, needs) in SERVING.items()
    }
    lines, data = [], {}
    apart: Race | None = None
    for tasks in sizes.tasks:
        batch = max(1, sizes.batch // 4) if tasks > MANY else sizes.batch
        with nullcontext(scene) if batch == sizes.batch else Scene(replace(sizes, batch=batch)) as here:
            field = {
                "trunk": contenders.TRUNK,
                "memtok": Contender(label="memtok", make=partial(contenders.memtok_serving, tasks=tasks)),
            }
            if tasks <= MOST_DENSE:
                field["dense"] = Contender(label="dense masked", make=partial(contenders.dense_serving, tasks=tasks))
            race = run_race(here, field if apart else field | one_by_one)
            apart = apart or race
            geometry = floor.Geometry.of(here.backbone.vit)
        ratio = floor.token_ratio(geometry, tasks)
        entries = [race.entry("dense", "dense masked", "trunk", scale=1 / ratio)] if "dense" in field else []
        entries += [
            race_entry(apart, name, contender.label, tasks, measured, ratio) for name, contender in one_by_one.items()
        ]
        lines.append(
            Line(
                what=(
                    f"inference, {tasks} tasks of {sizes.serving_cells} cells, batch {batch}, over the floor "
                    f"(N + T) / N = {ratio:.3g}"
                ),
                memtok=race.entry("memtok", "memtok", "trunk", scale=1 / ratio),
                peers=tuple(entries),
                must=asked(sizes, tasks),
                aim=sizes.asked(AIM),
            )
        )
        counted = floor.serving(geometry, tasks, sizes.serving_cells, sizes.classes)
        data[str(tasks)] = {
            "batch": batch,
            "floor": ratio,
            "all_products": counted,
            "over_trunk": race.entry("memtok", "memtok", "trunk").value,
            **race.to_json(),
        }
    return RowResult(lines=tuple(lines), notes=(explain(data, measured),), data=data)


def asked(sizes: Sizes, tasks: int) -> float | None:
    """What must hold: on a GPU it is one figure, for 100 tasks in bf16."""
    if sizes.device == "cuda":
        return MUST_GPU if tasks == 100 and sizes.precision == "bf16" else None
    return sizes.asked(MUST.get(tasks))


def race_entry(race: Race, name: str, label: str, tasks: int, measured: int, ratio: float) -> Entry:
    """A peer that makes one pass per task: as measured, or that time per task times the number of tasks."""
    note = "" if tasks == measured else f"{measured} measured, times {tasks / measured:.4g}"
    return race.entry(name, label, "trunk", scale=tasks / measured / ratio, note=note)


def explain(data: dict[str, Any], measured: int) -> str:
    """How the lines are to be read."""
    over = ", ".join(f"{found['over_trunk']:.3g} with {tasks}" for tasks, found in data.items())
    return (
        f"Inference: memtok's pass over the trunk's is {over} tasks. Who makes one pass per task was measured with "
        f"{measured}, in the rounds of the first line; for more tasks that is multiplied."
    )


def profiled(scene: Scene) -> Run:
    """The pass that `--profile inference` looks into: the second number of tasks."""
    return contenders.memtok_serving(scene, scene.sizes.tasks[min(1, len(scene.sizes.tasks) - 1)])
