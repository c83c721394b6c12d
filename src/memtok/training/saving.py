"""A run on disk: whether it may begin, what it goes on from, and what it writes. The files are those of state.py."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from memtok.data import DataSource
from memtok.data.content import training_content
from memtok.errors import Argument, MemtokError
from memtok.files import write_json
from memtok.folders import locked
from memtok.training.device import same_start
from memtok.training.optim import Optimizer
from memtok.training.plan import Plan
from memtok.training.recipes import GRADIENT
from memtok.training.regimes import FullModel, Trainable
from memtok.training.result import make_record
from memtok.training.settings import TOP1, Settings
from memtok.training.setup import Setup
from memtok.training.state import (
    RunFolder,
    RunState,
    TaskState,
    Validation,
    check_same_run,
    check_tensors,
    read_run,
    write_run,
)
from memtok.training.trainer import load, snapshot, values


class Saving:
    """Reads and writes what is kept of a run; writes in the first process only, and nothing where it has no file.

    begun: the state to begin with where there is no saved one. step: that of the saved state, None where there is none.
    at, cost: when it was written, by `time.perf_counter`, and how many seconds that took.
    """

    def __init__(self, setup: Setup, optimizer: Optimizer, begun: RunState | None = None) -> None:
        self.setup, self.optimizer, self.begun = setup, optimizer, begun
        out = setup.settings.task_file
        self.folder = None if out is None else RunFolder(out)
        self.step: int | None = None
        self.at = self.cost = 0.0

    def fresh(self) -> RunState:
        """The state of the run before its first step."""
        setup = self.setup
        content = "" if setup.state is None and self.begun is None else training_content(setup.data)
        tasks = zip(setup.tasks, setup.plans, strict=True)
        return RunState(
            [TaskState(configuration(task, setup.data, plan, content), snapshot(task)) for task, plan in tasks]
        )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps others from the same run; MemtokError if one is at it, or did a step that this run would replace."""
        lock = self.setup.lock if self.setup.writes else None
        with nullcontext() if lock is None else locked(lock.parent, lock.name):
            check_replaces_nothing(self.setup.settings)  # in every process, so that none waits for the others
            yield

    # Going on

    def restore(self, fresh: RunState, until: int) -> RunState | None:
        """Takes over the saved state, or the one to begin with; None where there is none to go on from.

        fresh: the state before the first step. until: the step to which the run goes.
        """
        setup = self.setup
        asked = setup.settings.resume or not self.folder
        saved = read_run(setup.state) if setup.state and asked else None
        where = "begun" if saved is None else str(setup.state)
        saved = saved or self.begun
        if saved is None:
            if self.folder and setup.settings.resume:
                setup.progress.message(f"no saved state in {self.folder.path}: starting anew")
            same_start(setup.processes, [parameter for task in setup.tasks for parameter in task.parameters()])
            return None
        self.check(saved, fresh, where, until)
        for number, (task, state) in enumerate(zip(setup.tasks, saved.tasks, strict=True)):
            load(task, state.parameters)
            self.optimizer.restore(number, state.optimizer, where)
        self.step = saved.step
        tasks = [replace(state, history=list(state.history)) for state in saved.tasks]  # `begun` is the caller's
        return replace(saved, tasks=tasks, pending=[values.to(setup.device) for values in saved.pending])

    def check(self, saved: RunState, fresh: RunState, where: str, until: int) -> None:
        """MemtokError unless a saved state, of a file or "begun", is one of this very run."""
        setup = self.setup
        if len(saved.tasks) != len(setup.tasks):
            raise MemtokError(
                f"expected the state of {len(setup.tasks)} tasks in {where}, found that of {len(saved.tasks)}; delete "
                "it, or train the same tasks"
            )
        for number, (task, state) in enumerate(zip(setup.tasks, saved.tasks, strict=True)):
            found = {**before(state.config, alone=self.folder is not None), **state.config}
            if self.folder:
                check_same_run(found, fresh.tasks[number].config, self.folder.path)
            else:
                check_same_run(found, fresh.tasks[number].config, Path(where), "delete it to start anew")
            measured = () if isinstance(task, FullModel) else task.measurable
            check_tensors(state, dict(task.named_parameters()), measured, where)
        if saved.step > until:
            raise MemtokError(
                f"expected a state of step {until} at most in {where}, found one of step {saved.step}; delete it to "
                "start anew"
            )

    # Writing

    def prepare(self, state: RunState, *, resumed: bool) -> None:
        """Makes the run folder ready. A fresh run saves its state at once: killed early, it begins with the same."""
        self.setup.processes.wait_for_everyone()  # nobody writes before everybody has read
        self.at = time.perf_counter()
        if not (self.setup.writes and self.folder):
            return
        self.folder.clear_remains()
        if not resumed:
            self.folder.clear()
            write_json(self.folder.config, state.tasks[0].config)
            write_json(self.folder.split, self.setup.data.split)
            self.save(state)

    def save(self, state: RunState) -> None:
        """Writes the state from which the run can go on."""
        if not (self.setup.writes and self.setup.state):
            return
        begun = time.perf_counter()
        finished = state.step == self.setup.plan.steps
        for number, (task, own) in enumerate(zip(self.setup.tasks, state.tasks, strict=True)):
            own.parameters = values(task)
            own.optimizer = {} if finished else self.optimizer.tensors(number)
        write_run(self.setup.state, state)
        self.step, self.at = state.step, time.perf_counter()
        self.cost = self.at - begun

    def write_task(self, state: RunState, stored: Validation, *, best_too: bool) -> None:
        """Writes the parameters of the only task as they are now: as the last state, and as the best one."""
        if self.setup.writes and self.folder:
            (task,) = self.setup.tasks
            task.record = make_record(self.setup, state, 0, stored)
            task.save(self.folder.last)
            if best_too:
                task.save(self.folder.out)


def as_it_began(plans: list[Plan], settings: Settings, saved: RunState | None) -> list[Plan]:
    """The plans of a run that goes on from a saved state: what its version did by default is done where nobody asks for
    another thing today.
    """
    if saved is None or len(saved.tasks) != len(plans):  # then nothing goes on, which is told later
        return plans
    found = []
    for plan, task in zip(plans, saved.tasks, strict=True):
        had = before(task.config, alone=settings.task_file is not None)
        if "label_smoothing" in had and "augment" in task.config:
            had["augment"] = task.config["augment"]  # no recipe changed that of the data
        taken = {name: value for name, value in had.items() if getattr(settings, name, None) is None}
        found.append(replace(plan, **taken))
    return found


def before(config: Mapping[str, Any], *, alone: bool) -> dict[str, Any]:
    """What held in a saved run whose configuration does not say so.

    Version 0.1 chose by top-1, where a task trained alone, had one rate for all parts, smoothed no labels and counted
    all images alike. Runs without gradient steps came later, and have none of these.
    """
    if config.get("solver", GRADIENT) != GRADIENT:
        return {}
    had = {"by_part": False, "label_smoothing": 0.0, "balance": "none"} | ({"select": TOP1} if alone else {})
    return {name: value for name, value in had.items() if name not in config}


def check_replaces_nothing(settings: Settings) -> None:
    """MemtokError if this run would take the place of one that did a step already, finished or not."""
    out = settings.task_file
    if out is None or settings.resume or settings.overwrite:
        return
    folder = RunFolder(out)
    saved = read_run(folder.state)
    if saved is not None and saved.step > 0:
        raise MemtokError(
            f"expected no run beside {out}, found one at step {saved.step} of {saved.tasks[0].config['steps']} in "
            f"{folder.path}; {Argument('resume', True)} goes on with it, {Argument('overwrite', True)} starts anew",
            argument="out",
        )


def configuration(trainable: Trainable, data: DataSource, plan: Plan, content: str) -> dict[str, Any]:
    """All that must agree when a run is resumed, as JSON-able values. content: of the data, by `training_content`."""
    own: dict[str, Any] = {
        "regime": trainable.regime,
        "name": trainable.name,
        "classes": list(trainable.classes),
        "preprocessing": trainable.preprocessing.to_dict(),
        "shapes": {name: list(parameter.shape) for name, parameter in trainable.named_parameters()},
        "data": data.name,
        "split": data.split_digest,
        "content": content,
    }
    if isinstance(trainable, FullModel):
        own["backbone"] = trainable.backbone_fingerprint
    else:
        own["backbone"] = trainable.backbone.fingerprint
        own |= trainable.choices
        own["extends"] = [task.fingerprint for task in trainable.extends]
    return own | plan.to_dict()
