"""Configurations of one data set trained from rung to rung, in passes that fit the memory.

Between two rungs every living configuration is trained and validated; then, with early stopping, the best go on. They
are taken out of the states of their passes, with their optimizers and at their place in the schedule, and share new
passes: fewer, once some were stopped. So the outcome does not depend on how many passes there were, nor on a kill.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any

import torch

from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.folders import slug
from memtok.intervals import packed
from memtok.parts import parameters, reads
from memtok.regimes import REGIMES
from memtok.runs import Runs, cost
from memtok.sweeps.halving import find_rungs, going_on
from memtok.sweeps.memory import Budget, Step, find_limit
from memtok.sweeps.progress import SweepListener
from memtok.sweeps.settings import SweepSettings
from memtok.sweeps.space import Configuration
from memtok.sweeps.trials import Trial, ranked, read_trial, write_trial
from memtok.task import Task
from memtok.traces import NO_NEEDS, Needs
from memtok.training.feed import traces_in_memory
from memtok.training.regimes import Trainable
from memtok.training.result import TrainResult
from memtok.training.settings import Settings
from memtok.training.state import Validation


class Stages(Runs[Configuration]):
    """The configurations of one data set.

    name: of the tasks that are written. eta: of successive halving, None for none. heads: the line to beat, which is
    not stopped early. budget: the memory of a pass.
    """

    listener: SweepListener

    def __init__(
        self,
        settings: SweepSettings,
        backbone: Backbone,
        source: DataSource,
        spec: str,
        *,
        name: str,
        training: dict[str, Any],
        device: torch.device,
        listener: SweepListener,
    ) -> None:
        super().__init__(settings.out / "runs" / slug(spec), backbone, source, spec, training, listener)
        self.name, self.eta, self.heads = name, settings.halving, settings.heads()
        step = Step.of(
            backbone,
            images=-(-self.plan.batch_size // self.plan.accumulate),
            classes=len(source.classes),
            optimizer=self.plan.optimizer,
            precision=self.plan.precision,
        )
        everyone = [*(settings.space.listed(self.plan.seed) or settings.space.largest()), *self.heads]
        self.stores.needs = reduce(or_, (self.needs(each) for each in everyone), NO_NEEDS)
        traces = traces_in_memory(backbone, self.plan, Settings(**self.training), self.stores.needs, device)
        limit = find_limit(device, settings.memory_limit, traces)
        self.budget = Budget(step, limit, settings.together)

    def needs(self, configuration: Configuration) -> Needs:
        """What is kept of every image for a configuration."""
        form = configuration.form(len(self.source.classes))
        return Needs(form["queries"] > 0, reads(form).statistics)

    # Records

    def trial(self, configuration: Configuration) -> Trial:
        """What came of a configuration so far; MemtokError if its record is of other data or another backbone."""
        path = self.path(configuration)
        found = read_trial(path)
        if found is None:
            return self.fresh(configuration)
        name = found.configuration.name
        self.check_record(path, name, found.data, found.fingerprint, found.split, found.content)
        return found

    def fresh(self, configuration: Configuration) -> Trial:
        """A configuration that nobody has trained."""
        sizes = configuration.form(len(self.source.classes))
        return Trial(
            configuration=configuration,
            state="training",
            looks=(),
            trained_parameters=parameters(self.backbone, REGIMES[configuration.regime], sizes),
            seconds=0.0,
            diverged_at=None,
            data=self.spec,
            split=self.source.split_digest,
            fingerprint=self.backbone.fingerprint,
            content=self.content,
        )

    def untrained(self, configurations: Sequence[Configuration]) -> list[Configuration]:
        """Those that are not at their end, and were not stopped."""
        return [each for each in configurations if self.trial(each).state == "training"]

    def best(self) -> Trial | None:
        """The best of all records of this data set."""
        found = [read_trial(path) for path in sorted(self.folder.glob("*.json"))]
        order = ranked(trial for trial in found if trial is not None and trial.looks and trial.state != "diverged")
        return order[0] if order else None

    # What a run is

    def create(self, configuration: Configuration) -> Task:
        """A new task, called as its configuration."""
        options: Any = dict(configuration.options)
        return Task.create(
            self.backbone,
            name=configuration.name,
            classes=self.source.classes,
            regime=configuration.regime,
            seed=configuration.seed,
            **options,
        )

    def passes(self, configurations: Sequence[Configuration]) -> list[list[Configuration]]:
        return self.budget.passes(configurations)

    def is_at(self, configuration: Configuration, step: int) -> bool:
        return self.trial(configuration).look_at(step) is not None

    def keep(
        self, configuration: Configuration, model: Trainable, result: TrainResult | None, step: int, together: int
    ) -> None:
        """Writes the task of one that finished, and then the record."""
        assert result
        trial = self.trial(configuration)
        trial = replace(trial, seconds=round(trial.seconds + result.seconds / together, 3))
        if result.diverged_at is not None:
            look = Validation(step=step, top1=0.0, top5=0.0, loss=0.0)
            trial = replace(trial, state="diverged", diverged_at=result.diverged_at)
        else:
            metrics = result.record["metrics"]
            figures = {name: metrics[f"validation_{name}"] for name in ("top1", "top5", "loss", "balanced")}
            look = Validation(step=step, **figures)
            if step == self.plan.steps:
                trial = replace(trial, state="finished")
                model.name = self.name
                model.save(self.model_path(configuration))
        earlier = tuple(one for one in trial.looks if one.step < step)
        known = result.validation_right if trial.state != "diverged" else None
        right = None if known is None else packed(known)
        write_trial(self.path(configuration), replace(trial, looks=(*earlier, look), right=right))

    # From rung to rung

    def run(
        self, configurations: Sequence[Configuration], share: float = 1.0, heads: Sequence[Configuration] = ()
    ) -> list[Trial]:
        """Takes all of them to their end, or to the rung where they lose; returns what came of each.

        share: how much of all the work that is left this is, for telling the time. heads: those that are trained beside
        them, only to be compared with.
        """
        steps = self.plan.steps
        ends = (*find_rungs(self.eta, count=len(configurations), steps=steps, warmup=self.plan.warmup), steps)
        living, start = [*configurations, *heads], 0
        self.announce(living, ends, share)
        for until in ends:
            self.train(living, until, start)
            if until != steps:
                living, start = self.survivors(living, until), until
        self.clear()
        return [self.trial(each) for each in (*configurations, *heads)]

    def survivors(self, living: Sequence[Configuration], rung: int) -> list[Configuration]:
        """The best at a rung that did not diverge, in the order of the space; the others are marked as stopped.

        Heads that are the line to beat go on beside them, for they cost next to nothing.
        """
        assert self.eta
        trials = {each: self.trial(each) for each in living}
        compared = [each for each in living if each not in self.heads]
        order = ranked(as_of(trials[each], rung) for each in compared)
        best = {trial.configuration for trial in order[: going_on(self.eta, len(compared))]}
        best |= set(living) - set(compared)
        # Earlier versions stopped heads too; what was stopped here stays so, for its state is gone.
        going = [each for each in living if each in best and as_of(trials[each], rung).state != "diverged"]
        going = [each for each in going if not stopped_at(trials[each], rung)]
        for each in set(living) - set(going):
            if trials[each].state == "training":
                write_trial(self.path(each), replace(trials[each], state="stopped"))
        return going

    # What to tell

    def ended(self, configurations: Sequence[Configuration]) -> None:
        self.listener.validated(self.spec, [self.trial(each) for each in configurations], self.best())

    def announce(self, configurations: Sequence[Configuration], ends: Sequence[int], share: float) -> None:
        """Tells how what is missing is split into passes, and how much there is to do."""
        trials, missing = [self.trial(each) for each in configurations], self.untrained(configurations)
        passes = self.passes(missing)
        need = max(map(self.budget.need, passes), default=0)
        self.listener.planned(self.spec, [len(group) for group in passes], need, self.budget.limit, ends[:-1])
        amount, living, start = 0.0, len(configurations), 0
        for until in ends:
            lacking = max(0, living - sum(trial.look_at(until) is not None for trial in trials))
            groups = max(1, math.ceil(lacking * len(passes) / max(1, len(missing))))
            amount += groups * cost(lacking / groups, until - start)
            living, start = going_on(self.eta or 1, living), until
        self.listener.left(amount / share)


def as_of(trial: Trial, rung: int) -> Trial:
    """A trial as it was at a rung that it reached."""
    looks = tuple(look for look in trial.looks if look.step <= rung)
    diverged = trial.state == "diverged" and looks == trial.looks
    return replace(trial, looks=looks, state="diverged" if diverged else "training")


def stopped_at(trial: Trial, rung: int) -> bool:
    """Whether it was stopped at a rung, and did not go on."""
    return trial.state == "stopped" and trial.last is not None and trial.last.step <= rung
