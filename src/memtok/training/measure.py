"""Before the first step: what tasks measure on training images, the mean and spread of what they read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from memtok.backbone import NOTHING
from memtok.levels import Statistics, union
from memtok.task import Task
from memtok.traces import KeptBatch
from memtok.training.setup import Setup

IMAGES = 2048  # that are looked at, more or less
LEAST_SPREAD = 1e-3  # of a feature that tells images apart; a class token is the same for all before the first layer

Moments = dict[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def measure(setup: Setup) -> None:
    """Lets the tasks of a fresh run measure the images of its first epoch, as they are varied there."""
    tasks = [task for task in setup.tasks if isinstance(task, Task) and task.reads]
    if tasks:
        setup.progress.message("measuring mean and spread of what the readout reads")
        found = moments(read_statistics(setup, tasks))
        for task in tasks:
            task.measure(found)


def read_statistics(setup: Setup, tasks: list[Task]) -> Iterator[Statistics]:
    """What the tasks read of the first batches, float64; every process looks at all of them."""
    backbone, reads = tasks[0].backbone, union(task.reads for task in tasks)
    count = min(-(-IMAGES // setup.plan.batch_size), setup.plan.steps_per_epoch, setup.plan.steps)
    for batch, _, _ in islice(setup.feed.training(0, count), count):
        placed = setup.placed(batch)
        if isinstance(placed, KeptBatch):
            yield {name: placed.statistics[name] for name in reads.statistics}
        else:
            with setup.processes.autocast():
                yield backbone.trace(placed, keep=NOTHING, outputs=False, reads=reads).statistics


def moments(batches: Iterator[Statistics]) -> Moments:
    """Mean and standard deviation over images of every number, by statistic; 1 in place of a deviation of nothing."""
    count = 0
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for batch in batches:
        for name, values in batch.items():
            wide = values.double()
            first, second = sums.get(name, (0, 0))
            sums[name] = first + wide.sum(dim=0), second + wide.square().sum(dim=0)
        count += len(values)
    found = {}
    for name, (first, second) in sums.items():
        mean = first / count
        spread = (second / count - mean.square()).clamp(min=0).sqrt()
        found[name] = mean.float(), spread.where(spread > LEAST_SPREAD, torch.ones_like(spread)).float()
    return found
