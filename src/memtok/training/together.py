"""`train_together`: many tasks trained at once on one data set, over one pass of the trunk.

Every task has its own learning rate, decay and clipping and ends with the tensors that it would have alone (to float32
rounding). A task whose loss stops being finite is put back to its initial values, and the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memtok.data import DataSource
from memtok.errors import Argument, MemtokError
from memtok.surroundings import plain_torch
from memtok.task import Task
from memtok.traces import OpenStores
from memtok.training.plan import Plan, make_plan
from memtok.training.progress import Progress
from memtok.training.regimes import check_trainable
from memtok.training.result import TrainResult
from memtok.training.run import Run
from memtok.training.settings import ALONE, GRADIENT, Settings
from memtok.training.setup import check_solvable, set_up
from memtok.training.state import RunState


@plain_torch()
def train_together(
    tasks: Sequence[Task],
    data: str | DataSource | Any,
    *,
    learning_rates: Sequence[float] | None = None,
    weight_decays: Sequence[float] | None = None,
    state: str | Path | None = None,
    until: int | None = None,
    begun: RunState | None = None,
    stores: OpenStores | None = None,
    progress: bool | Progress = False,
    **shared: Any,
) -> list[TrainResult]:
    """Trains composable tasks of one backbone at once, in place; returns their results in order.

    learning_rates, weight_decays: one per task, else as the recipe has them. state: a file that the run is saved to
    now and then and goes on from if it is there; removed by nobody. shared: arguments of `train`, the same for all:
    recipe, steps or epochs, batch_size, accumulate, seed, device, precision, workers, augment, flip, start, solver,
    validation_images, log_every, on_bad_image, data_dir, keep_traces, trace_dir, trace_limit, views, compile. The tasks
    are validated once, after the last step, and keep their last state.
    until: stop after that many steps of the run, as if it went on: rates are those of the whole run. begun: the state
    of these tasks from which to go on, where `state` has none, such as `read_run(path).pick(...)` of a run until there.
    stores: stores of kept traces that stay open for later runs, `memtok.traces.OpenStores`; who made them closes them.

    Tasks that extend the same task are computed as one family: one that diverges takes its family with it.
    A task that diverged has `diverged_at` set in its result, an accuracy of 0, and its initial values.
    Raises MemtokError for tasks that cannot share a pass and for bad arguments.
    """
    for name in (*ALONE, "learning_rate", "weight_decay"):
        if name in shared:
            raise MemtokError(f"expected no {Argument(name)} for tasks trained together, found one; leave it out")
    settings = Settings(progress=progress, **shared)
    per_task = {"learning_rates": learning_rates, "weight_decays": weight_decays}
    check_together(tasks, per_task)
    for task in tasks:
        check_solvable(task, settings)
    if settings.solver != GRADIENT and any(values is not None for values in per_task.values()):
        raise MemtokError(
            f"expected no learning_rates and weight_decays with {Argument('solver', settings.solver)}, which takes no "
            "steps along the gradient, found some; leave them out",
            argument="solver",
        )

    def plans(source: DataSource) -> list[Plan]:
        common = replace(make_plan(settings, tasks[0].regime, source), select=None)  # they keep their last state
        rates = [common.learning_rate] * len(tasks) if learning_rates is None else learning_rates
        decays = [common.weight_decay] * len(tasks) if weight_decays is None else weight_decays
        return [
            replace(common, learning_rate=float(rate), weight_decay=float(decay))
            for rate, decay in zip(rates, decays, strict=True)
        ]

    path = None if state is None else Path(state)
    lock = None if path is None else lock_of(path)
    with set_up(tasks, data, settings, plans, state=path, lock=lock, together=True, stores=stores) as setup:
        return Run(setup, begun).run(until)


def lock_of(state: Path) -> Path:
    """The file that is locked while tasks train together with this saved state. It stays; nobody needs it then."""
    return state.with_name(f".{state.name}.lock")


def check_together(tasks: Sequence[Task], per_task: Mapping[str, Sequence[float] | None]) -> None:
    """MemtokError unless these tasks can be trained in one pass."""
    if not tasks or not all(isinstance(task, Task) for task in tasks):
        raise MemtokError(
            "expected a list of tasks to train together, found another; make them with Task.create", argument="tasks"
        )
    for task in tasks:
        check_trainable(task)
        if task.classes != tasks[0].classes:
            raise MemtokError(
                f"expected tasks of the same classes, found others in {task.name!r} than in {tasks[0].name!r}; "
                "train them apart",
                argument="tasks",
            )
    for name, values in per_task.items():
        if values is not None and len(values) != len(tasks):
            raise MemtokError(
                f"expected {len(tasks)} {Argument(name)}, one per task, found {len(values)}; give one for each"
            )
        for value in values or ():
            if not math.isfinite(value) or value < 0 or (value == 0 and name == "learning_rates"):
                raise MemtokError(f"expected finite {Argument(name)} above 0, found {value!r}; change it")
