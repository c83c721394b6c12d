"""What a run needs before its first step: device, processes, compiler, data, plans and the feed, made in one place.

`train` and `train_together` are thin over `set_up`. All is put back as it was when the block ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from memtok.checks import composed
from memtok.data import DataSource, from_dataset, open_data
from memtok.data.datasets import refuse_split
from memtok.errors import Argument, MemtokError
from memtok.folders import locked
from memtok.task import Task
from memtok.traces import OpenStores
from memtok.training.compiler import Compiler, make_compiler
from memtok.training.device import Processes, moved, processes_for
from memtok.training.feed import Feed, make_feed
from memtok.training.plan import Plan
from memtok.training.progress import Progress, RichProgress, RunInfo
from memtok.training.recipes import GRADIENT
from memtok.training.regimes import Trainable, count_parameters, frozen_parts
from memtok.training.settings import ZERO, Settings


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run of N tasks that is ready to begin: modules on `device`, data open, batches to be had from `feed`.

    plans: one per task; they differ in learning rate and weight decay only. state, lock: the file that the run is saved
    to and goes on from, and the one that is locked meanwhile; None where nothing is saved. together: a task that
    diverges leaves the others alone, in place of ending the run, and is reported with its initial values.
    """

    tasks: Sequence[Trainable]
    data: DataSource
    plans: list[Plan]
    settings: Settings
    processes: Processes
    device: torch.device
    compiler: Compiler | None
    progress: Progress
    feed: Feed
    state: Path | None
    lock: Path | None
    together: bool

    @property
    def plan(self) -> Plan:
        """What all plans have in common; and the learning rate and weight decay of the first task."""
        return self.plans[0]

    @property
    def writes(self) -> bool:
        """Whether this process writes files."""
        return self.state is not None and self.processes.is_main_process

    def info(self, start_step: int, end_step: int) -> RunInfo:
        """What progress is told at the start of a run from one step to another."""
        plan, first = self.plan, self.tasks[0]
        counts = [count_parameters(task) for task in self.tasks]
        return RunInfo(
            name=f"{len(self.tasks)} tasks together" if self.together else first.name,
            regime=", ".join(sorted({task.regime for task in self.tasks})),
            classes=len(first.classes),
            trainable_parameters=sum(own for own, _ in counts),
            total_parameters=sum(own for own, _ in counts) + counts[0][1] - counts[0][0],
            train_images=plan.train_images,
            validation_images=plan.validation_images,
            steps=end_step,
            start_step=start_step,
            epochs=plan.steps / plan.steps_per_epoch if plan.solver == GRADIENT else plan.views_seen,
            batch_size=plan.batch_size,
            learning_rate=max(each.learning_rate for each in self.plans),
            recipe=plan.recipe,
            solver=plan.solver,
            augment=plan.augment,
            device=self.device.type,
            precision=plan.precision,
            out=self.settings.task_file or self.state,
        )


@contextmanager
def set_up(
    tasks: Sequence[Trainable],
    data: str | DataSource | Any,
    settings: Settings,
    make_plans: Callable[[DataSource], list[Plan]],
    *,
    state: Path | None = None,
    lock: Path | None = None,
    together: bool = False,
    stores: OpenStores | None = None,
) -> Iterator[Setup]:
    """The setup of a run of these tasks; arguments as in `Setup`. make_plans: from the opened data.

    stores: stores of kept traces that stay open for later runs.
    """
    with ExitStack() as stack:
        processes = processes_for(settings.device, settings.precision)
        for task in tasks:
            stack.enter_context(as_found(task))
        if lock is not None and lock.exists() and processes.is_main_process:
            with locked(lock.parent, lock.name):
                pass  # another run there is told of before the data are opened
        progress = listener_of(settings.progress) if processes.is_main_process else Progress()
        stack.callback(progress.close)
        device = device_of(tasks[0], settings, processes)
        compiler = make_compiler(settings.compile, device)
        with processes.main_process_first():  # the first one writes a folder's split down, the others read it
            source = matching(open_source(data, tasks[0], settings, progress), tasks[0])
        plans = make_plans(source)
        stack.enter_context(moved(modules_of(tasks), device))
        feed = make_feed(tasks, source, plans[0], settings, processes, device, progress, stores, compiler)
        stack.enter_context(closing(feed))
        yield Setup(
            tasks=tasks,
            data=source,
            plans=plans,
            settings=settings,
            processes=processes,
            device=device,
            compiler=compiler,
            progress=progress,
            feed=feed,
            state=state,
            lock=lock,
            together=together,
        )


def check_start(task: Trainable, settings: Settings) -> None:
    """MemtokError for a start that is that of a readout where there is none."""
    if settings.start != ZERO and not (isinstance(task, Task) and task.measurable):
        raise MemtokError(
            f"expected a task with a readout for {Argument('start', settings.start)}, found {task.name!r} without; "
            f"give {Argument('readout')}, or leave {Argument('start')} out",
            argument="start",
        )


def check_solvable(task: Trainable, settings: Settings) -> None:
    """MemtokError for a solver that knows a readout and a head only, where something else trains."""
    if settings.solver == GRADIENT:
        return
    trains = {name.partition(".")[0] for name, tensor in task.named_parameters() if tensor.numel()}
    if not isinstance(task, Task) or not task.reads or not trains <= {"head", "readout"}:
        raise MemtokError(
            f"expected a task that trains a readout and nothing else for {Argument('solver', settings.solver)}, found "
            f"{task.name!r} of regime {task.regime!r}, which trains {', '.join(sorted(trains))}; use "
            f"{Argument('regime', 'readout')}",
            argument="solver",
        )


def listener_of(progress: bool | Progress) -> Progress:
    """The object whose hooks are called: the caller's own, a bar for True, a silent one for False."""
    if isinstance(progress, Progress):
        return progress
    return RichProgress() if progress else Progress()


def device_of(task: Trainable, settings: Settings, processes: Processes) -> torch.device:
    """Where the run trains. A model that the caller put onto a GPU stays on that one, unless told otherwise."""
    home = next(task.parameters()).device
    return home if settings.device == "auto" and home.type != "cpu" else processes.device


def modules_of(tasks: Sequence[Trainable]) -> list[nn.Module]:
    """The tasks and all that their passes need, each once."""
    everything = [part for task in tasks for part in (task, *frozen_parts(task))]
    return list({id(module): module for module in everything}.values())


def open_source(data: str | DataSource | Any, task: Trainable, settings: Settings, progress: Progress) -> DataSource:
    """The data as a DataSource; MemtokError for a split of data that is split already or is not memtok's to split."""
    if isinstance(data, str):
        return open_data(
            data,
            data_dir=settings.data_dir,
            split=settings.split,
            on_bad_image=settings.on_bad_image,
            progress=progress.reading,
        )
    refuse_split(settings.split, data)
    if isinstance(data, DataSource):
        return data
    inner = data
    while isinstance(inner, Subset):
        inner = inner.dataset
    return from_dataset(data, None if hasattr(inner, "classes") else task.classes)


def matching(source: DataSource, task: Trainable) -> DataSource:
    """The data with its labels in the order of the task's classes; MemtokError unless they have the same classes."""
    wanted = tuple(composed(name) for name in task.classes)  # earlier versions took names as they came
    if source.classes == wanted:
        return source
    if set(source.classes) == set(wanted):
        return source.only(wanted)
    missing = [name for name in wanted if name not in source.classes]
    extra = [name for name in source.classes if name not in wanted]
    found = f"no {missing[0]!r} in {source.spec}" if missing else f"{extra[0]!r} in {source.spec} as well"
    advice = "make the task with classes=data.classes" if missing else "train on data.only(task.classes)"
    raise MemtokError(
        f"expected the {len(task.classes)} classes of {task.name!r} in the data, found {found} "
        f"({len(source.classes)} classes); {advice}",
        argument="data",
    )


@contextmanager
def as_found(task: nn.Module) -> Iterator[None]:
    """Leaves training modes as they were, and no gradients behind."""
    modes = [(module, module.training) for module in task.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in task.parameters():
            parameter.grad = None
