"""The runs of a grid on one data set: a column at a learning rate with a seed.

FOLDER/COLUMN/rate-R-seed-S.json          the record of a run
FOLDER/COLUMN/rate-R-seed-S.safetensors   the task (or whole model) that it trained
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from memtok.backbone import Backbone
from memtok.bundle import load_task
from memtok.data import DataSource, ImageSet
from memtok.errors import MemtokError
from memtok.folders import slug
from memtok.runs import Listener as RunsListener
from memtok.runs import Runs, cost
from memtok.task import Task
from memtok.traces import Needs
from memtok.training import TrainResult, create
from memtok.training.regimes import Trainable, count_parameters
from memtok.training.result import versions
from memtok.training.state import read_run, write_run
from memtok.training.together import lock_of
from memtok_experiments.columns import Column, find_column, find_columns
from memtok_experiments.opening import workers_of
from memtok_experiments.records import RunRecord, Score, read_record, write_record
from memtok_experiments.settings import GridSettings

ALONE = 2.5  # passes of a batch through the trunk that a step of a run takes that trains alone, about
Extends = Callable[[int], tuple[Task, ...]]


@dataclass(frozen=True)
class Run:
    """One cell of the grid at one rate with one seed."""

    column: Column
    learning_rate: float
    seed: int
    weight_decay: None = None  # the recipe's

    def __str__(self) -> str:
        return f"{self.column.name}, rate {self.learning_rate:g}, seed {self.seed}"

    @property
    def name(self) -> str:
        """That of its files."""
        return f"{self.column.name}/rate-{self.learning_rate:g}-seed-{self.seed}"


class Listener(RunsListener):
    """What a grid tells while it works: `left` of all data sets, before the first run and after each training."""

    def done(self, data: str, runs: Sequence[Run], records: Sequence[RunRecord]) -> None:
        """These were trained (together)."""

    def tested(self, data: str, runs: Sequence[Run], records: Sequence[RunRecord]) -> None:
        """These were tested."""


def amount(runs: Sequence[Run], steps: int) -> float:
    """What so many steps of these take, which share a pass, or of one that trains alone; see `memtok.runs.cost`."""
    return cost(len(runs), steps) if runs[0].column.composable else ALONE * steps


class DataRuns(Runs[Run]):
    """The runs of a grid on one data set.

    extends: for a seed, the tasks that every composable column extends. trained: called after each training.
    """

    listener: Listener

    def __init__(
        self,
        settings: GridSettings,
        backbone: Backbone,
        source: DataSource,
        data: str,
        folder: Path,
        *,
        extends: Extends,
        listener: Listener,
        trained: Callable[[], None],
    ) -> None:
        super().__init__(folder, backbone, source, data, settings.training(), listener)
        self.settings, self.extends, self.trained = settings, extends, trained
        self.columns = find_columns(settings.columns)
        self.stores.needs = Needs(inputs=any(column.regime == "memory" for column in self.columns))

    def tried(self, seed: int) -> list[Run]:
        """Every column at all its rates."""
        return [Run(column, rate, seed) for column in self.columns for rate in self.settings.rates(column)]

    def chosen(self, seed: int) -> list[Run]:
        """Every column at its chosen rate."""
        return [Run(column, self.chosen_rate(column), seed) for column in self.columns]

    def chosen_rate(self, column: Column) -> float:
        """The rate with the best validation accuracy of the first seed; of equal ones the smaller."""
        seed = self.settings.seeds[0]
        found = [read_record(path) for path in self.folder.glob(f"{column.name}/rate-*-seed-{seed}.json")]
        alive = [record for record in found if not record.diverged]
        if not alive:
            raise MemtokError(
                f"expected a learning rate at which {column.name} trains on {self.spec}, found that all of "
                f"{', '.join(f'{record.learning_rate:g}' for record in found)} diverge; try smaller ones"
            )
        return min(alive, key=lambda record: (-record.validation.top1, record.learning_rate)).learning_rate

    def left(self) -> float:
        """What is left to train, as `cost` counts it; a later seed has one run for each column."""
        first, *others = self.settings.seeds
        missing = [[run for run in self.tried(first) if not self.path(run).exists()]]
        for seed in others:
            started = {path.parent.name for path in self.folder.glob(f"*/rate-*-seed-{seed}.json")}
            new = {run.column: run for run in self.tried(seed) if run.column.name not in started}
            missing.append(list(new.values()))
        groups = [group for runs in missing for group in self.passes([run for run in runs if self.composes(run)])]
        groups += [[run] for runs in missing for run in runs if not self.composes(run)]
        return sum(amount(group, self.plan.steps) for group in groups)

    # What a run is

    def create(self, run: Run) -> Trainable:
        column = run.column
        return create(
            self.backbone,
            regime=column.regime,
            name=run.name if column.composable else column.name,
            classes=self.source.classes,
            memory=column.cells,
            extends=self.extends(run.seed) if column.regime == "memory" else (),
            seed=run.seed,
        )

    def arguments(self, run: Run) -> dict[str, Any]:
        found = self.training | {"seed": run.seed}
        if run.column.composable:
            found |= self.settings.traces()
            if found["trace_dir"] is not None:
                own = "all-seeds" if self.plan.augment == "none" else f"seed-{run.seed}"
                found["trace_dir"] = Path(found["trace_dir"]) / slug(self.spec) / own
        return found

    def composes(self, run: Run) -> bool:
        return run.column.composable

    def passes(self, runs: Sequence[Run]) -> list[list[Run]]:
        # Tasks that extend the same one are computed as one family, in which a task that diverges spoils the others.
        size = 1 if runs and self.extends(runs[0].seed) else self.settings.together
        return [list(runs[start : start + size]) for start in range(0, len(runs), size)]

    def ended(self, runs: Sequence[Run]) -> None:
        self.listener.done(self.spec, runs, [self.record(run) for run in runs])
        self.trained()

    # Records

    def record(self, run: Run) -> RunRecord:
        """What came of a run; MemtokError where it left no record."""
        return read_record(self.path(run))

    def is_at(self, run: Run, step: int) -> bool:
        return self.path(run).exists()

    def keep(self, run: Run, model: Trainable, result: TrainResult | None, step: int, together: int) -> None:
        """Writes what a run trained and then its record. Of one that diverged the accuracy is 0."""
        diverged = result is None or result.diverged_at is not None
        if isinstance(model, Task) and not diverged:
            model.name = run.column.name
            model.save(self.model_path(run))  # `train` wrote a whole model itself
        trained, total = count_parameters(model)
        height, width = self.backbone.preprocessing.image_size
        record = RunRecord(
            backbone=self.settings.backbone,
            fingerprint=self.backbone.fingerprint,
            image_size=(height, width),
            data=self.spec,
            split=self.source.split | {"content": self.content},
            column=run.column.name,
            regime=run.column.regime,
            cells=run.column.cells or 0,
            learning_rate=run.learning_rate,
            seed=run.seed,
            recipe=self.plan.recipe,
            steps=self.plan.steps,
            batch_size=self.plan.batch_size,
            chosen=False,
            validation=Score(top1=0.0 if result is None else result.final_accuracy, images=self.plan.validation_images),
            test=None,
            trained_parameters=trained,
            total_parameters=total,
            seconds=0.0 if result is None else round(result.seconds / together, 3),
            together=together,
            versions=versions(),
            diverged=diverged,
        )
        write_record(self.path(run), record)

    def check_records(self) -> None:
        """MemtokError if an earlier record is of something else, or if the data are split in another way now.

        What is tested now may then have been trained on.
        """
        for path in sorted(self.folder.glob("*/rate-*.json")):
            record = read_record(path)
            name = Run(find_column(record.column), record.learning_rate, record.seed).name
            digest, content = record.split["digest"], record.split.get("content", "")
            self.check_record(path, name, record.data, record.fingerprint, digest, content)

    def take_over(self) -> None:
        """Takes over the states of passes that earlier versions left, whose runs are listed in a file beside each."""
        for path in sorted(self.folder.glob("together-*.json")):
            state = path.with_suffix(".safetensors")
            try:
                listed = [Run(find_column(name), rate, seed).name for name, rate, seed in json.loads(path.read_text())]
            except (ValueError, TypeError, RecursionError):
                listed = []  # damaged: they are trained anew
            saved = read_run(state)
            if saved is not None and len(listed) == len(saved.tasks):
                for task, name in zip(saved.tasks, listed, strict=True):
                    task.config["name"] = name
                write_run(self.states / f"{self.plan.steps}-{path.stem}.safetensors", saved)
            for one in (state, lock_of(state), path):
                one.unlink(missing_ok=True)

    # What is used of them

    def kept(self, run: Run) -> Path:
        """The file of what a run trained; MemtokError unless it is there."""
        path = self.model_path(run)
        if not path.exists():
            raise MemtokError(
                f"expected {path}, which {run} trained, found none; delete {self.path(run)} to train it again"
            )
        return path

    def load(self, run: Run) -> Task:
        """The task that a run trained."""
        return load_task(self.kept(run), self.backbone, extends=self.extends(run.seed))

    def task(self, column: Column, seed: int) -> Task:
        """The trained task of a composable or variant column at its chosen rate, called after the data set."""
        run = Run(column, self.chosen_rate(column), seed)
        if self.record(run).diverged:
            raise MemtokError(
                f"expected a trained task of {column.name} on {self.spec}, found that seed {seed} diverged at rate "
                f"{run.learning_rate:g}; try smaller ones"
            )
        task = self.load(run)
        task.name = slug(self.spec)
        return task

    def accuracy(self, column: Column, seed: int) -> float:
        """Top-1 of the chosen run on the test images, in [0, 1]."""
        test = self.record(Run(column, self.chosen_rate(column), seed)).test
        assert test is not None
        return test.top1

    @cached_property
    def test_images(self) -> ImageSet:
        """The test images that are looked at, classes in proportion; always the same ones."""
        count = self.settings.test_images
        return self.source.test if count is None else self.source.test.take(count, seed=0)

    @property
    def workers(self) -> int:
        """Processes that load test images, as in training."""
        return workers_of(self.settings, self.backbone)
