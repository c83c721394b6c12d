"""Training runs to be timed: the feed and the step of memtok's own training loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memtok.data import DataSource
from memtok.task import Task
from memtok.traces import KeptBatch
from memtok.training.feed import Feed, make_feed
from memtok.training.plan import make_plan
from memtok.training.progress import Progress
from memtok.training.settings import Settings
from memtok.training.trainer import Trainer
from memtok_benchmarks.contenders import counted
from memtok_benchmarks.scene import STEPS, Scene
from memtok_benchmarks.timing import Run


@dataclass(frozen=True)
class Runner:
    """A feed and the trainer of one task."""

    feed: Feed
    trainer: Trainer
    epoch: int  # steps

    def epochs(self) -> Run:
        """One epoch per call, continuing from the last one, with the start of the loader."""

        def whole(number: int) -> None:
            begin = number * self.epoch
            for index, (batch, labels, _) in enumerate(self.feed.training(begin, begin + self.epoch)):
                self.trainer.step(begin + index, batch, labels)

        return counted(whole)

    def loading(self) -> Run:
        """One epoch per call of loading batches without training."""

        def whole(number: int) -> None:
            begin = number * self.epoch
            for _ in self.feed.training(begin, begin + self.epoch):
                pass

        return counted(whole)

    def alone(self) -> Run:
        """One step per call on a batch in memory."""
        batch, labels, _ = next(iter(self.feed.training(0, 1)))
        if isinstance(batch, KeptBatch):  # its memory is used again
            batch = batch.clone()
        return counted(lambda number: self.trainer.step(number, batch, labels))


def runner(scene: Scene, source: DataSource, batch: int, folder: Path | None) -> Runner:
    """A run of the default recipe before its first step, live, or with its traces cached in `folder`."""
    sizes = scene.sizes
    settings = Settings(
        steps=STEPS,
        batch_size=batch,
        augment="none",
        device=sizes.device,
        precision=sizes.precision,
        keep_traces=None if folder is None else "disk",
        trace_dir=folder,
    )
    task = Task.create(
        scene.backbone, name="task", classes=source.classes, memory=sizes.training_cells, seed=sizes.seed
    )
    plan = make_plan(settings, task.regime, source)
    feed = make_feed([task], source, plan, settings, scene.processes, scene.device, Progress())
    feed.prepare(0, plan.steps_per_epoch)
    return Runner(feed, Trainer([task], [plan], scene.processes, scene.device), plan.steps_per_epoch)
