"""Many runs on one data set, restartable: each leaves a record; those that compose train together.

    FOLDER/NAME.json                       the record of a run
    FOLDER/NAME.safetensors                the task, or whole model, that it trained
    FOLDER/NAME.run/                       the state of a run that trains alone, until it has a record
    FOLDER/passes/STEP-KEY.safetensors     the state of runs that train together, on their way to step STEP and there

What a run trained is written before its record, without which it does not count. After a kill the same calls train what
is missing: a run goes on from the state of its pass, in whatever passes fit by now, and ends with the same tensors.
"""

from __future__ import annotations

import hashlib
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.data.content import training_content
from memtok.errors import Argument, DivergedError, MemtokError
from memtok.task import Task
from memtok.traces import OpenStores
from memtok.training.loop import train
from memtok.training.plan import make_plan
from memtok.training.progress import Progress
from memtok.training.recipes import GRADIENT
from memtok.training.regimes import Trainable
from memtok.training.result import TrainResult
from memtok.training.settings import Settings
from memtok.training.state import RunFolder, RunState, joined, read_run
from memtok.training.together import train_together


class Run(Protocol):
    """What tells a run from others. name: of its files, in a folder or not. weight_decay: None for the recipe's."""

    @property
    def name(self) -> str: ...

    @property
    def learning_rate(self) -> float: ...

    @property
    def weight_decay(self) -> float | None: ...


R = TypeVar("R", bound=Run)


class Listener:
    """What many runs tell while they train. Silent; override what you want to hear."""

    def left(self, amount: float) -> None:
        """What is left to train, as `cost` counts it; near enough to tell the time. Said again when it changed."""

    def training(self, runs: Sequence[Any], start: int, until: int) -> Progress:
        """A training of these begins, from one step to another; returns who listens to its steps."""
        return Progress()

    def close(self) -> None:
        """The work ended, well or not."""


def cost(together: float, steps: int) -> float:
    """What so many steps take of runs that train together, in passes of a batch through the trunk; near enough."""
    return steps * (1 + 0.1 * together) if together else 0.0


class Runs(ABC, Generic[R]):
    """The runs on one data set, in a folder that this process keeps `locked` while it trains.

    A subclass says what a run trains, what its record holds, and how many train together. spec: the data as they were
    named. training: arguments of `train` that all share, and plan: what follows from them, but for rate and decay.
    stores: of kept traces, which the first pass fills for all others.
    """

    def __init__(
        self,
        folder: Path,
        backbone: Backbone,
        source: DataSource,
        spec: str,
        training: Mapping[str, Any],
        listener: Listener,
    ) -> None:
        self.folder, self.backbone, self.source, self.spec = folder, backbone, source, spec
        images = training.get("validation_images") or len(source.validation)  # the same for all
        self.training = {**training, "validation_images": images}
        self.plan = make_plan(Settings(**self.training), "memory", source)
        self.listener = listener
        self.states = folder / "passes"
        self.stores = OpenStores()

    # What a subclass says

    @abstractmethod
    def create(self, run: R) -> Trainable:
        """What a run trains, with its initial values. Tasks that train together are called as their runs."""

    @abstractmethod
    def is_at(self, run: R, step: int) -> bool:
        """Whether the record of a run says what was found after so many steps."""

    @abstractmethod
    def keep(self, run: R, model: Trainable, result: TrainResult | None, step: int, together: int) -> None:
        """Writes what a run trained, if `step` is its last one, and then its record. No result: it diverged, alone."""

    @abstractmethod
    def passes(self, runs: Sequence[R]) -> list[list[R]]:
        """Runs that compose, divided into those that train together."""

    @abstractmethod
    def ended(self, runs: Sequence[R]) -> None:
        """These were trained, and their records are written."""

    def arguments(self, run: R) -> dict[str, Any]:
        """The arguments of `train` and `train_together` that a run has in common with its pass."""
        return self.training

    def composes(self, run: R) -> bool:
        """Whether a run may train together with others; otherwise it trains alone, from its start to its end."""
        return True

    # Records

    def path(self, run: R) -> Path:
        """The record of a run."""
        return self.folder / f"{run.name}.json"

    def model_path(self, run: R) -> Path:
        """The task, or whole model, that a run trained."""
        return self.folder / f"{run.name}.safetensors"

    @cached_property
    def content(self) -> str:
        """The digest of the images that are trained and validated on."""
        return training_content(self.source)

    def check_record(self, path: Path, *found: str) -> None:
        """MemtokError unless the record in `path` is of the run that its name says, of these data and this backbone.

        found: its run, data, backbone, split and images, these empty where version 0.1 wrote it.
        """
        name = path.relative_to(self.folder).with_suffix("").as_posix()
        wanted = name, self.spec, self.backbone.fingerprint, self.source.split_digest, self.content
        restore = f"restore the data, or use another {Argument('out')}"
        advice = {"run": "delete it to train the run again", "split": f"give {Argument('split')} as it was, {restore}"}
        for what, here, value in zip(("run", "data", "backbone", "split", "images"), found, wanted, strict=True):
            if here != value and (here or what != "images"):
                raise MemtokError(
                    f"expected the record of a run in {path} of the {what} {value[:40]}, found {here[:40]}; "
                    + advice.get(what, restore),
                    argument="data" if what == "images" else None,
                )

    # Work

    def train(self, runs: Sequence[R], until: int, start: int = 0) -> None:
        """Takes all of these from step `start` to step `until`, as far as that was not done.

        A run that diverges has a record of it, and the others go on.
        """
        for path in self.folder.rglob(".*.part"):  # what a killed process left half written
            path.unlink(missing_ok=True)
        missing = [run for run in runs if not self.is_at(run, until)]
        together = [run for run in missing if self.composes(run)]
        states = self.saved(together, until, start)
        steps = {run.name: states[run.name].step if run.name in states else 0 for run in together}
        for step in sorted(set(steps.values()), reverse=True):  # a pass that was interrupted goes on first
            for group in self.passes([run for run in together if steps[run.name] == step]):
                self.train_together(group, until, joined([states[run.name] for run in group]) if step else None)
        for run in missing:
            if not self.composes(run):
                self.train_alone(run, until)

    def saved(self, runs: Sequence[R], until: int, start: int) -> dict[str, RunState]:
        """The latest states of these runs, by name, out of the passes to these two steps. All have one from `start`."""
        names, found = {run.name for run in runs}, dict[str, RunState]()
        for path in [*self.states.glob(f"{start}-*.safetensors"), *self.states.glob(f"{until}-*.safetensors")]:
            state = read_run(path)
            for number, task in enumerate(state.tasks if state else ()):
                name = task.config["name"]
                if state and name in names and (name not in found or found[name].step < state.step):
                    found[name] = state.pick([number])
        for name in names:
            if start and (name not in found or found[name].step < start):
                raise MemtokError(
                    f"expected the state of {name} after step {start} in {self.states}, found none; delete "
                    f"{self.folder} to start anew"
                )
        return found

    def train_together(self, group: Sequence[R], until: int, begun: RunState | None) -> None:
        """Trains a group to step `until` over one pass of the trunk, and writes the records."""
        tasks = [task for task in map(self.create, group) if isinstance(task, Task)]
        key = hashlib.sha256("/".join(run.name for run in group).encode()).hexdigest()[:12]
        results = train_together(
            tasks,
            self.source,
            **self.rates(group),
            state=self.states / f"{until}-{key}.safetensors",
            until=until,
            begun=begun,
            stores=self.stores,
            progress=self.listener.training(group, begun.step if begun else 0, until),
            **self.arguments(group[0]),
        )
        for run, result in zip(group, results, strict=True):
            self.keep(run, result.model, result, until, len(group))
        self.ended(group)

    def rates(self, group: Sequence[R]) -> dict[str, list[float]]:
        """Learning rates and weight decays of a group, where it takes steps along the gradient."""
        if self.plan.solver != GRADIENT:
            return {}
        decays = [self.plan.weight_decay if run.weight_decay is None else run.weight_decay for run in group]
        return {"learning_rates": [run.learning_rate for run in group], "weight_decays": decays}

    def train_alone(self, run: R, until: int) -> None:
        """Trains a run that does not compose, or goes on with it, and writes its record."""
        model, folder = self.create(run), RunFolder(self.model_path(run))
        try:
            result: TrainResult | None = train(
                model,
                self.source,
                learning_rate=run.learning_rate,
                weight_decay=run.weight_decay,
                out=folder.out,
                resume=folder.state.exists(),
                validate_every=until,  # the last state counts, as it does for those that train together
                compare_head=False,
                progress=self.listener.training([run], 0, until),
                **self.arguments(run),
            )
        except DivergedError:
            result = None
        self.keep(run, model, result, until, 1)
        shutil.rmtree(folder.path, ignore_errors=True)
        self.ended([run])

    def clear(self) -> None:
        """Removes the states of passes, once nobody goes on from them."""
        shutil.rmtree(self.states, ignore_errors=True)
