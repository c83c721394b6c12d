"""Accuracy of separately trained tasks before and after composition: concatenation and extension.

*Concatenation*: a task per data set, trained separately, once with the mask and once without; composed with the mask,
as in memtok, and without. *Extension*: each task extends all before it, except the last of three or more, which is
trained separately and concatenated. Runs and learning rates are those of a grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from memtok.backbone import Backbone
from memtok.data import ImageSet, batches, evaluation_transform
from memtok.errors import MemtokError
from memtok.evaluation import EvaluationTable, evaluate
from memtok.folders import slug
from memtok.metrics import Tally
from memtok.model import MemoryViT
from memtok.reference import unmasked_outputs
from memtok.task import Task
from memtok_experiments.columns import Column, find_column
from memtok_experiments.grid import Grid
from memtok_experiments.opening import open_backbone
from memtok_experiments.outcome import Outcome, Standing
from memtok_experiments.runs import Listener
from memtok_experiments.settings import GridSettings


def concat(settings: GridSettings, *, cells: int = 5, listener: Listener | None = None) -> Outcome:
    """Accuracy of the tasks of `settings.data`, each alone and all together, with and without the mask.

    cells: memory cells per layer; 0 for class tokens without memory. `settings.columns` is ignored. Runs that are
    in `settings.out` already, from this or from a table, are not trained again.
    """
    check_data(settings, least=2)
    masked, unmasked = columns(cells)
    grid = Grid(replace(settings, columns=(masked.name, unmasked.name)), listener=listener)
    grid.run()
    rows = []
    for seed in settings.seeds:
        tasks = {data: grid.on(data).task(masked, seed) for data in settings.data}
        images = {slug(data): grid.on(data).test_images for data in settings.data}
        together = MemoryViT(grid.backbone)
        for task in tasks.values():
            together = together.concat(MemoryViT(grid.backbone, [task]))
        table = evaluate(together, images, alone=True)
        seen_by_all = [grid.on(data).task(unmasked, seed) for data in settings.data]
        mixed = evaluate_unmasked(grid.backbone, seen_by_all, images, workers=grid.on(settings.data[0]).workers)
        for data in settings.data:
            name = slug(data)
            rows.append(
                standing(
                    table,
                    data,
                    seed,
                    alone_unmasked=grid.on(data).accuracy(unmasked, seed),
                    together_unmasked=mixed[name],
                )
            )
    return outcome("concat", grid, masked, rows)


def extension(settings: GridSettings, *, cells: int = 5, listener: Listener | None = None) -> Outcome:
    """Accuracy of a chain of tasks, each extending all before it, and one that is concatenated, before and after.

    The tasks come in the order of `settings.data`; the last of three or more is trained separately. Each task that
    extends is also trained without extending, for comparison. `settings.columns` is ignored.
    """
    check_data(settings, least=2)
    column, _ = columns(cells)
    backbone = open_backbone(settings)
    apart = Grid(replace(settings, columns=(column.name,)), backbone, listener=listener)
    apart.run()
    chain = settings.data if len(settings.data) == 2 else settings.data[:-1]
    extended: dict[str, Grid] = {}

    @cache
    def task_of(data: str, seed: int) -> Task:
        return extended.get(data, apart).on(data).task(column, seed)

    for position, data in enumerate(chain[1:], start=1):
        before = chain[:position]
        # Another learning rate can change the extended tasks; runs that extend other tasks are in other folders.
        bases = " ".join(task_of(other, settings.seeds[0]).fingerprint for other in before)
        extended[data] = Grid(
            replace(settings, data=(data,), columns=(column.name,)),
            backbone,
            listener=listener,
            folder=settings.out
            / "extended"
            / f"{slug('+'.join(before))}-{hashlib.sha256(bases.encode()).hexdigest()[:8]}",
            extends=lambda seed, before=before: tuple(task_of(other, seed) for other in before),  # type: ignore[misc]
        )
        extended[data].run()
    rows = []
    for seed in settings.seeds:
        tasks = {data: task_of(data, seed) for data in settings.data}
        images = {slug(data): apart.on(data).test_images for data in settings.data}
        table = evaluate(MemoryViT(backbone, list(tasks.values())), images, alone=True)
        for data, task in tasks.items():
            rows.append(
                standing(
                    table,
                    data,
                    seed,
                    extends=tuple(other for other in chain if tasks[other] in task.extends),
                    without_extending=apart.on(data).accuracy(column, seed) if data in extended else None,
                )
            )
    return outcome("extension", apart, column, rows)


def standing(table: EvaluationTable, data: str, seed: int, **more: Any) -> Standing:
    """The row of a task, called after its data, that was evaluated alone and with the others."""
    name = slug(data)
    found, alone = table.tasks[name], table.alone[name]
    return Standing(task=data, seed=seed, images=found.images, alone=alone.top1, together=found.top1, **more)


def columns(cells: int) -> tuple[Column, Column]:
    """The columns with and without the mask for this many cells."""
    name = f"memory-{cells}" if cells else "class"
    return find_column(name), find_column(f"{name}-unmasked")


def check_data(settings: GridSettings, *, least: int) -> None:
    """MemtokError unless there are enough data sets to compose tasks."""
    if len(settings.data) < least:
        raise MemtokError(
            f"expected at least {least} data sets to put together, found {len(settings.data)}; name more with --data",
            argument="data",
        )


def outcome(experiment: str, grid: Grid, column: Column, rows: Sequence[Standing]) -> Outcome:
    """The rows with the settings of their runs."""
    height, width = grid.backbone.preprocessing.image_size
    plans = {data: grid.on(data).plan for data in grid.settings.data}
    plan = plans[grid.settings.data[0]]
    return Outcome(
        experiment=experiment,
        backbone=grid.settings.backbone,
        fingerprint=grid.backbone.fingerprint,
        image_size=(height, width),
        column=column.name,
        recipe=plan.recipe,
        steps={data: each.steps for data, each in plans.items()},
        batch_size=plan.batch_size,
        splits={data: grid.on(data).source.split_digest for data in plans},
        rows=tuple(rows),
    )


@torch.no_grad()
def evaluate_unmasked(
    backbone: Backbone, tasks: Sequence[Task], images: Mapping[str, ImageSet], *, workers: int = 0
) -> dict[str, float]:
    """Top-1 accuracy of each task on its own images, by name, without the mask between tasks."""
    transform = evaluation_transform(tasks[0].preprocessing)
    found = {}
    for task in tasks:
        tally = Tally(task.classes)
        for pictures, labels, _ in batches(images[task.name], transform, batch_size=64, workers=workers):
            tally.add(unmasked_outputs(backbone, tasks, pictures.to(backbone.device))[task.name], labels)
        found[task.name] = tally.score().top1
    return found
