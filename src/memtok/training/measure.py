"""Before the first step of a run: what readouts measure on training images, and where they start.

Letters for shapes: n images (views counted), F numbers that a readout reads, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from memtok.backbone import NOTHING
from memtok.levels import Reads, Statistics, union
from memtok.parts import Moments, readout
from memtok.task import Task
from memtok.traces import KeptBatch
from memtok.training.balance import closed_form_weights, log_shares
from memtok.training.feed import Batches
from memtok.training.ridge import TOLERANCE, Ridge, fit_ridge
from memtok.training.settings import LOGITS, RIDGE
from memtok.training.setup import Setup
from memtok.training.trainer import Trainer

IMAGES = 2048  # that mean and spread are measured on, more or less
LEAST_SPREAD = 1e-3  # of a number that tells images apart; a class token is the same for all before the first layer
MOST_BYTES = 4e9  # of features for the closed form; of what is beyond, later views are left out


@torch.no_grad()
def measure(setup: Setup, trainer: Trainer) -> None:
    """Lets the tasks of a fresh run measure the images of its first epoch, and starts them as the settings say."""
    tasks = [task for task in setup.tasks if isinstance(task, Task) and task.reads]
    if not tasks:
        return
    reads, plan = union(task.reads for task in tasks), setup.plan
    setup.progress.message("measuring mean and spread of what the readout reads")
    count = min(-(-IMAGES // plan.batch_size), plan.steps_per_epoch, plan.steps)
    first = islice(setup.feed.training(0, count), count)
    found = moments(statistics for statistics, _, _ in read(trainer, first, reads))
    for task in tasks:
        task.measure(found)
    if plan.start == RIDGE:
        solved: dict[Reads, Ridge] = {}
        for task in tasks:
            if task.reads not in solved:
                solved[task.reads] = solve(setup, trainer, task)
            take(task, solved[task.reads])


def read(trainer: Trainer, batches: Batches, reads: Reads) -> Iterator[tuple[Statistics, Tensor, Tensor]]:
    """The statistics that are read of each batch, its labels and its indices; every process looks at all of it."""
    backbone = next(task.backbone for task in trainer.tasks if isinstance(task, Task))
    for batch, labels, indices in batches:
        placed = trainer.placed(batch)
        if isinstance(placed, KeptBatch):
            yield placed.statistics, labels, indices
        else:
            with trainer.processes.autocast():
                found = backbone.trace(placed, keep=NOTHING, outputs=False, reads=reads).statistics
            yield found, labels, indices


def moments(batches: Iterable[Statistics]) -> Moments:
    """Mean and standard deviation over images of every number, by statistic; 1 in place of a deviation of nothing."""
    count = 0
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for batch in batches:
        for name, values in batch.items():
            wide = values.double()
            first, second = sums.get(name, (0, 0))
            sums[name] = first + wide.sum(dim=0), second + wide.square().sum(dim=0)
        count += len(next(iter(batch.values())))
    found = {}
    for name, (first, second) in sums.items():
        mean = first / count
        spread = (second / count - mean.square()).clamp(min=0).sqrt()
        found[name] = mean.float(), spread.where(spread > LEAST_SPREAD, torch.ones_like(spread)).float()
    return found


def solve(setup: Setup, trainer: Trainer, task: Task) -> Ridge:
    """The ridge regression of the labels of all training images on what a task reads, standardised."""
    features, labels, images = standardised(setup, trainer, task)
    setup.progress.message(f"ridge regression of {len(labels):,} images on {features.shape[1]:,} numbers each")
    given, classes = setup.data.train.labels, len(task.classes)
    weights = closed_form_weights(setup.plan.balance, given, classes)
    found = fit_ridge(features, labels, classes, seed=setup.plan.seed, groups=images, weights=weights)
    best = max(found.scores.values(), default=float("nan"))
    setup.progress.message(
        f"the readout starts from a ridge regression of strength {found.strength:g}; cross-fitted balanced accuracy "
        f"{100 * best:.1f} %"
    )
    if found.residual > TOLERANCE:
        setup.progress.message(f"the ridge regression was ended early, with a residual of {found.residual:.1g}")
    if setup.plan.balance == LOGITS:  # the loss adds them again
        found = replace(found, bias=found.bias - log_shares(given, classes).to(found.bias))
    return found


def standardised(setup: Setup, trainer: Trainer, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """What a task reads of all training images, (n, F) in half precision, their labels and their indices, (n,) each."""
    measured, levels = task.measured, task.sizes["readout"]
    size = 2 * measured["readout.mean"].numel()
    features: list[Tensor] = []
    answers: list[Tensor] = []
    images: list[Tensor] = []
    taken = 0
    for statistics, labels, indices in read(trainer, setup.feed.in_order(), task.reads):
        rows = readout.standardised(readout.read(statistics, task.words, levels).float(), measured)
        features.append(rows.flatten(1).half().cpu())
        answers.append(labels.cpu())
        images.append(indices.cpu())
        taken += len(labels)
        if taken * size > MOST_BYTES and taken >= setup.plan.train_images:
            break
    return torch.cat(features), torch.cat(answers), torch.cat(images)


def take(task: Task, found: Ridge) -> None:
    """Starts a task from what was found: its readout and bias answer, the rest of its head adds nothing at first."""
    weight = task.named()["readout.weight"]
    weight.copy_(found.weight.reshape(weight.shape))
    task.head.weight.zero_()
    task.head.bias.copy_(found.bias)
