"""Configurations of one data set trained from rung to rung, in passes that fit; each pass leaves a state and records.

Between two rungs every living configuration is trained and looked at; then, with early stopping, the best go on. What
goes on is taken out of the states of the passes, with its optimizer and at its place in its schedule, and shares new
passes: fewer, once some were stopped. So the outcome does not depend on how many passes there were, nor on a kill.

    FOLDER/NAME.json                       the record of a configuration
    FOLDER/NAME.safetensors                the task that it trained
    FOLDER/passes/STEP-KEY.safetensors     the state of a pass on its way to step STEP, and there
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.errors import Argument, MemtokError
from memtok.parts import parameters
from memtok.regimes import REGIMES
from memtok.sweeps.halving import find_rungs, going_on
from memtok.sweeps.memory import Budget
from memtok.sweeps.progress import SweepListener, cost
from memtok.sweeps.space import Configuration
from memtok.sweeps.trials import Trial, packed, ranked, read_trial, write_trial
from memtok.task import Task
from memtok.traces import OpenStores
from memtok.training.result import TrainResult
from memtok.training.settings import Plan
from memtok.training.state import RunState, Validation, joined, read_run
from memtok.training.together import train_together


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the configurations of one data set share.

    spec: the data as they were named. plan: every number of a run but those of its configuration. shared: arguments of
    `train_together`. eta: of successive halving, None for none. heads: the line to beat, which is not stopped early.
    name: of the tasks that are written. stores: of kept traces, which the first pass fills for all. content: the digest
    of the images.
    """

    backbone: Backbone
    source: DataSource
    spec: str
    name: str
    folder: Path
    plan: Plan
    shared: Mapping[str, Any]
    budget: Budget
    eta: int | None
    heads: Sequence[Configuration]
    listener: SweepListener
    stores: OpenStores
    content: str


class Stages:
    """Trains what is missing of some configurations, and knows what came of them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.passes = job.folder / "passes"

    # Records

    def path(self, configuration: Configuration) -> Path:
        """The record of a configuration; its task lies beside it."""
        return self.job.folder / f"{configuration.name}.json"

    def task_path(self, configuration: Configuration) -> Path:
        """The task that a configuration trained."""
        return self.job.folder / f"{configuration.name}.safetensors"

    def trial(self, configuration: Configuration) -> Trial:
        """What came of a configuration so far; MemtokError if its record is of other data or another backbone."""
        job = self.job
        found = read_trial(self.path(configuration))
        if found is None:
            return self.fresh(configuration)
        facts = {
            "configuration": (found.configuration.name, configuration.name),
            "data": (found.data, job.spec),
            "split": (found.split, job.source.split_digest),
            "backbone": (found.fingerprint, job.backbone.fingerprint),
            "images": (found.content or job.content, job.content),
        }
        for what, (here, wanted) in facts.items():
            if here != wanted:
                raise MemtokError(
                    f"expected the record {self.path(configuration)} of the {what} {wanted[:40]}, found {here[:40]}; "
                    f"restore it, or use another {Argument('out')}"
                )
        return found

    def fresh(self, configuration: Configuration) -> Trial:
        """A configuration that nobody has trained."""
        job = self.job
        sizes = configuration.sizes(len(job.source.classes))
        return Trial(
            configuration=configuration,
            state="training",
            looks=(),
            trained_parameters=parameters(job.backbone, REGIMES[configuration.regime], sizes),
            seconds=0.0,
            diverged_at=None,
            data=job.spec,
            split=job.source.split_digest,
            fingerprint=job.backbone.fingerprint,
            content=job.content,
        )

    def create(self, configuration: Configuration) -> Task:
        """A new task, called as its configuration."""
        options: Any = dict(configuration.options)
        return Task.create(
            self.job.backbone,
            name=configuration.name,
            classes=self.job.source.classes,
            regime=configuration.regime,
            seed=configuration.seed,
            **options,
        )

    # Work

    def run(
        self, configurations: Sequence[Configuration], share: float = 1.0, heads: Sequence[Configuration] = ()
    ) -> list[Trial]:
        """Takes all of them to their end, or to the rung where they lose; returns what came of each.

        share: how much of all the work that is left this is, for telling the time. heads: those that are trained beside
        them, only to be compared with.
        """
        ends = (*self.rungs(len(configurations)), self.job.plan.steps)
        living, start = [*configurations, *heads], 0
        self.announce(living, ends, share)
        for until in ends:
            self.stage(living, start, until)
            if until != self.job.plan.steps:
                living, start = self.survivors(living, until), until
        shutil.rmtree(self.passes, ignore_errors=True)
        return [self.trial(each) for each in (*configurations, *heads)]

    def rungs(self, count: int) -> tuple[int, ...]:
        """The steps after which the worse ones stop."""
        plan = self.job.plan
        return find_rungs(self.job.eta, count=count, steps=plan.steps, warmup=plan.warmup)

    def survivors(self, living: Sequence[Configuration], rung: int) -> list[Configuration]:
        """The best at a rung that did not diverge, in the order of the space; the others are marked as stopped.

        Heads that are the line to beat go on beside them, for they cost next to nothing.
        """
        assert self.job.eta
        trials = {each: self.trial(each) for each in living}
        compared = [each for each in living if each not in self.job.heads]
        order = ranked(as_of(trials[each], rung) for each in compared)
        best = {trial.configuration for trial in order[: going_on(self.job.eta, len(compared))]}
        best |= set(living) - set(compared)
        # Earlier versions stopped heads too; what was stopped here stays so, for its state is gone.
        going = [each for each in living if each in best and alive(as_of(trials[each], rung))]
        going = [each for each in going if not stopped_at(trials[each], rung)]
        for each in set(living) - set(going):
            if trials[each].state == "training":
                write_trial(self.path(each), replace(trials[each], state="stopped"))
        return going

    def stage(self, living: Sequence[Configuration], start: int, until: int) -> None:
        """Trains all of `living` from one step to another, as far as that was not done."""
        self.clear_remains()
        for path in sorted(self.passes.glob(f"{until}-*.safetensors")):
            self.go_on(path, living, until)
        missing = [each for each in living if self.trial(each).look_at(until) is None]
        for group in self.job.budget.passes(missing):
            self.train(group, until, self.begun(group, start) if start else None)

    def go_on(self, path: Path, living: Sequence[Configuration], until: int) -> None:
        """Finishes an interrupted pass. If it is too large by now, its configurations are split."""
        saved = read_run(path)
        if saved is None:
            return
        names = [task.config["name"] for task in saved.tasks]
        waiting = {each.name: each for each in living if self.trial(each).look_at(until) is None}
        missing = [waiting[name] for name in names if name in waiting]
        for group in self.job.budget.passes(missing):
            whole = [each.name for each in group] == names
            self.train(group, until, None if whole else saved.pick([names.index(each.name) for each in group]))

    def begun(self, group: Sequence[Configuration], start: int) -> RunState:
        """The states of these configurations after `start` steps, out of the passes that went there."""
        found: dict[str, RunState] = {}
        for path in sorted(self.passes.glob(f"{start}-*.safetensors")):
            saved = read_run(path)
            if saved is None or saved.step != start:
                continue
            names = [task.config["name"] for task in saved.tasks]
            found |= {each.name: saved.pick([names.index(each.name)]) for each in group if each.name in names}
        for each in group:
            if each.name not in found:
                raise MemtokError(
                    f"expected the state of {each.name} after step {start} in {self.passes}, found none; delete "
                    f"{self.job.folder} to start anew"
                )
        return joined([found[each.name] for each in group])

    def train(self, group: Sequence[Configuration], until: int, begun: RunState | None) -> None:
        """One pass: trains a group to step `until`, looks, and writes records, and tasks that are at their end."""
        job = self.job
        tasks = [self.create(each) for each in group]
        key = hashlib.sha256("/".join(each.name for each in group).encode()).hexdigest()[:12]
        start = begun.step if begun else 0
        results = train_together(
            tasks,
            job.source,
            learning_rates=[each.learning_rate for each in group],
            weight_decays=[each.weight_decay for each in group],
            state=self.passes / f"{until}-{key}.safetensors",
            until=until,
            begun=begun,
            stores=job.stores,
            progress=job.listener.training(group, start, until),
            **job.shared,
        )
        for each, result in zip(group, results, strict=True):
            self.keep(each, result, until, together=len(group))
        trials = [self.trial(each) for each in group]
        job.listener.validated(job.spec, trials, self.best())

    def keep(self, configuration: Configuration, result: TrainResult, until: int, *, together: int) -> None:
        """Writes the task, if it is at its end, and then the record, without which neither counts."""
        trial = self.trial(configuration)
        trial = replace(trial, seconds=round(trial.seconds + result.seconds / together, 3))
        if result.diverged_at is not None:
            look = Validation(step=until, top1=0.0, top5=0.0, loss=0.0)
            trial = replace(trial, state="diverged", diverged_at=result.diverged_at)
        else:
            metrics = result.record["metrics"]
            figures = {name: metrics[f"validation_{name}"] for name in ("top1", "top5", "loss", "balanced")}
            look = Validation(step=until, **figures)
            if until == self.job.plan.steps:
                trial = replace(trial, state="finished")
                result.task.name = self.job.name
                result.task.save(self.task_path(configuration))
        earlier = tuple(one for one in trial.looks if one.step < until)
        right = packed(result.validation_right) if trial.state != "diverged" else None
        write_trial(self.path(configuration), replace(trial, looks=(*earlier, look), right=right))

    # What to tell

    def best(self) -> Trial | None:
        """The best of all records of this data set."""
        found = [read_trial(path) for path in sorted(self.job.folder.glob("*.json"))]
        order = ranked(trial for trial in found if trial is not None and trial.looks and trial.state != "diverged")
        return order[0] if order else None

    def announce(self, configurations: Sequence[Configuration], ends: Sequence[int], share: float) -> None:
        """Tells how what is missing is split into passes, and how much there is to do."""
        job = self.job
        trials = [self.trial(each) for each in configurations]
        missing = [trial.configuration for trial in trials if trial.state == "training"]
        passes = job.budget.passes(missing)
        need = max((job.budget.need(group) for group in passes), default=0)
        job.listener.planned(job.spec, [len(group) for group in passes], need, job.budget.limit, ends[:-1])
        amount, living, start = 0.0, len(configurations), 0
        for until in ends:
            lacking = max(0, living - sum(trial.look_at(until) is not None for trial in trials))
            groups = max(1, math.ceil(lacking * len(passes) / max(1, len(missing))))
            amount += groups * cost(lacking / groups, until - start)
            living, start = going_on(job.eta or 1, living), until
        job.listener.left(amount / share)

    def clear_remains(self) -> None:
        """Removes what a killed process left half written."""
        for path in self.job.folder.rglob(".*.part"):
            path.unlink(missing_ok=True)


def as_of(trial: Trial, rung: int) -> Trial:
    """A trial as it was at a rung that it reached."""
    looks = tuple(look for look in trial.looks if look.step <= rung)
    diverged = trial.state == "diverged" and looks == trial.looks
    return replace(trial, looks=looks, state="diverged" if diverged else "training")


def stopped_at(trial: Trial, rung: int) -> bool:
    """Whether it was stopped at a rung, and did not go on."""
    return trial.state == "stopped" and trial.last is not None and trial.last.step <= rung


def alive(trial: Trial) -> bool:
    """Whether it did not diverge."""
    return trial.state != "diverged"
