"""Training of trials on one row with one seed: a column at a learning rate, with or without augmentation.

FOLDER/COLUMN/NAME.json           the record of a trial, see records.py
FOLDER/COLUMN/NAME.safetensors    what it trained
FOLDER/tests/COLUMN/NAME.json     how it answered the test images, of chosen trials
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import torch

from memtok import parts
from memtok.backbone import Backbone, load_backbone
from memtok.bundle import load_task
from memtok.data import DataSource
from memtok.folders import slug
from memtok.runs import Listener as RunsListener
from memtok.runs import Runs
from memtok.runs import cost as cost_together
from memtok.task import Task
from memtok.traces import Needs, OpenStores
from memtok.training import TrainResult
from memtok.training.feed import needs_of
from memtok.training.recipes import images_seen
from memtok.training.regimes import Trainable
from memtok.training.result import versions
from memtok.training.settings import VIEWS
from memtok_experiments.beyond.columns import Column
from memtok_experiments.beyond.plain import PlainModel
from memtok_experiments.beyond.records import TrialRecord
from memtok_experiments.beyond.rows import Row
from memtok_experiments.beyond.settings import BeyondSettings
from memtok_experiments.runs import ALONE


@dataclass(frozen=True)
class Trial:
    """One column on one row, at one choice of settings with one seed. timed: `steps` follow from a budget of time.

    learning_rate: 0 for a column that is fitted, which has 0 steps.
    """

    column: Column
    learning_rate: float
    varied: bool
    steps: int
    seed: int
    timed: bool = False
    weight_decay: None = None  # the recipe's

    def __str__(self) -> str:
        if self.column.fitted:
            return f"{self.column.name}, seed {self.seed}"
        views, timed = ("varied" if self.varied else "as they are"), (", equal time" if self.timed else "")
        return (
            f"{self.column.name}, rate {self.learning_rate:g}, images {views}, {self.steps:,} steps{timed}, "
            f"seed {self.seed}"
        )

    @property
    def name(self) -> str:
        """That of its files."""
        if self.column.fitted:
            return f"{self.column.name}/seed-{self.seed}"
        words = [f"rate-{self.learning_rate:g}", "varied" if self.varied else "plain", f"{self.steps}-steps"]
        return f"{self.column.name}/{'-'.join([*words, *(['timed'] if self.timed else []), f'seed-{self.seed}'])}"


class Listener(RunsListener):
    """What is told while the work goes on; silent, override what you want to hear."""

    def done(self, row: str, trial: Trial, record: TrialRecord) -> None:
        """A trial was trained, or fitted."""

    def tested(self, row: str, trial: Trial, top1: float, images: int) -> None:
        """A chosen trial was tested."""

    def skipped(self, row: str, reason: str) -> None:
        """A row, or a column, cannot be had on this machine."""


@dataclass(frozen=True)
class Place:
    """Where trials of one row and one seed happen. source: the parts that this seed draws."""

    settings: BeyondSettings
    backbone: Backbone
    row: Row
    source: DataSource
    folder: Path
    content: str
    seed: int
    seconds_per_image: float

    def record_of(self, trial: Trial, **found: Any) -> TrialRecord:
        """The record of a trial: what all have in common, and what was `found`."""
        gpu = self.backbone.device.type == "cuda"
        return TrialRecord(
            row=self.row.name,
            column=trial.column.name,
            seed=trial.seed,
            rate=None if trial.column.fitted else trial.learning_rate,
            varied=trial.varied,
            steps=trial.steps,
            timed=trial.timed,
            train_images=len(self.source.train),
            validation_images=len(self.source.validation),
            backbone=self.settings.backbone,
            fingerprint=self.backbone.fingerprint,
            image_size=self.backbone.preprocessing.image_size[0],
            split=self.source.split_digest,
            content=self.content,
            device=torch.cuda.get_device_name(self.backbone.device) if gpu else "cpu",
            versions=versions(),
            **found,
        )

    def path(self, trial: Trial) -> Path:
        """The record of a trial."""
        return self.folder / f"{trial.name}.json"

    def test_path(self, trial: Trial) -> Path:
        """The record of its test."""
        return self.folder / "tests" / f"{trial.name}.json"


def amount(trials: Sequence[Trial], steps: int) -> float:
    """What so many steps of these take, as if each had a pass of its own; see `memtok.runs.cost`."""
    return sum(cost_together(1, steps) if trial.column.composes else ALONE * steps for trial in trials)


class TrialRuns(Runs[Trial]):
    """The trials of one place that have one length, and images varied or not. stores: shared by all lengths."""

    listener: Listener

    def __init__(self, place: Place, *, varied: bool, steps: int, stores: OpenStores, listener: Listener) -> None:
        training = place.settings.training(place.seed) | {"steps": steps, "epochs": None}
        if not varied:
            training |= {"augment": "none", "flip": None}
        super().__init__(place.folder, place.backbone, place.source, place.row.name, training, listener)
        self.place, self.varied, self.stores = place, varied, stores

    def create(self, run: Trial) -> Trainable:
        name = run.name if run.column.composes else run.column.name
        return make(run, self.backbone, name, self.source.classes)

    def arguments(self, run: Trial) -> dict[str, Any]:
        if not run.column.composes:
            return dict(self.training)
        folder = f"{slug(self.place.row.name)}/seed-{self.place.seed}-{'varied' if self.varied else 'plain'}"
        return {**self.training, **self.place.settings.traces(folder, varied=self.varied)}

    def composes(self, run: Trial) -> bool:
        return run.column.composes

    def passes(self, runs: Sequence[Trial]) -> list[list[Trial]]:
        """Those of one column together, so that the seconds of each are of its own column."""
        columns = dict.fromkeys(run.column.name for run in runs)
        own = [[run for run in runs if run.column.name == name] for name in columns]
        size = self.place.settings.together
        return [some[start : start + size] for some in own for start in range(0, len(some), size)]

    def ended(self, runs: Sequence[Trial]) -> None:
        for run in runs:
            self.listener.done(self.spec, run, TrialRecord.read(self.path(run)))

    def is_at(self, run: Trial, step: int) -> bool:
        return self.path(run).exists()

    def keep(self, run: Trial, model: Trainable, result: TrainResult | None, step: int, together: int) -> None:
        """Writes what a trial trained and then its record. Of one that diverged the accuracy is 0."""
        diverged = result is None or result.diverged_at is not None
        path = self.model_path(run)
        if run.column.composes and not diverged:
            assert isinstance(model, Task)
            model.name = run.column.name
            model.save(path)
        seen = images_seen(self.plan.steps, self.plan.train_images, self.plan.batch_size)
        epochs = -(-self.plan.steps // self.plan.steps_per_epoch)
        views = (self.place.settings.views or VIEWS) if self.varied else 1
        passes = min(epochs, views) if run.column.composes else 0
        record = self.place.record_of(
            run,
            strength=None,
            validation=0.0 if result is None or diverged else result.final_accuracy,
            diverged=diverged,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            bytes=path.stat().st_size if path.exists() else 0,
            seconds=0.0 if result is None else round(seen / result.images_per_second / together, 3),
            trunk_seconds=round(passes * len(self.source.train) * self.place.seconds_per_image, 3),
            together=together,
            cost=round(cost(model, self.backbone), 4),
        )
        record.write(self.path(run))


def make(run: Trial, backbone: Backbone, name: str, classes: Sequence[str]) -> Trainable:
    """What a trial trains, with its initial values."""
    assert run.column.create is not None
    return run.column.create(backbone, name, classes, run.seed)


def load(run: Trial, place: Place) -> Trainable:
    """What a trial trained."""
    path = place.folder / f"{run.name}.safetensors"
    model = make(run, place.backbone, run.column.name, place.source.classes)
    if isinstance(model, Task):
        return load_task(path, place.backbone)
    if isinstance(model, PlainModel):
        model.restore(path)
    else:
        model.vit = load_backbone(path).to(place.backbone.device).vit
    return model


def common_needs(place: Place, columns: Sequence[Column]) -> Needs:
    """What is cached of an image so that it serves all columns that compose."""
    made = (c.create(place.backbone, c.name, place.source.classes, 0) for c in columns if c.composes and c.create)
    return reduce(or_, (needs_of(task) for task in made if isinstance(task, Task)), Needs(inputs=False))


def cost(model: Trainable, backbone: Backbone) -> float:
    """What a method adds to the trunk's pass over an image at inference, in passes of one class token.

    In multiply-adds, as `memtok sweep` counts them. What changes the tokens of the image needs a trunk of its own.
    """
    token = class_token_cost(backbone)
    head = len(model.classes) * backbone.dim
    if isinstance(model, Task) and model.composable:
        return parts.cost(backbone, model.form) / token
    tokens, seen = backbone.tokens, backbone.tokens
    if isinstance(model, PlainModel):
        tokens = seen = tokens + model.prompts
    elif isinstance(model, Task):
        seen += model.cells
    return (sum(layer.cost(tokens, seen) for layer in backbone.layers) + head) / token


def class_token_cost(backbone: Backbone) -> int:
    """The multiply-adds of one class token without memory that passes through all layers."""
    return sum(layer.cost(1, backbone.tokens + 1) for layer in backbone.layers)
