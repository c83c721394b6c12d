"""Before the first step of a run: what readouts measure on training images, and where they start; or the only step.

Letters for shapes: n images (views counted), F numbers that a readout reads, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from memtok.training.recipes import LOGITS
from memtok.training.ridge import TOLERANCE, Ridge, fit_ridge
from memtok.training.settings import RIDGE
from memtok.training.setup import Setup
from memtok.training.trainer import Trainer

IMAGES = 2048  # that mean and spread are measured on, more or less
LEAST_SPREAD = 1e-3  # of a number that tells images apart; a class token is the same for all before the first layer
MOST_BYTES = 4e9  # of features for the closed form; of what is beyond, later views are left out
PART = 512  # rows that are wide at a time


@torch.no_grad()
def measure(setup: Setup, trainer: Trainer) -> None:
    """Lets the tasks of a fresh run measure the images of its first epoch, and starts them as the settings say."""
    tasks = [task for task in setup.tasks if isinstance(task, Task) and task.measurable]
    if not tasks:
        return
    reads, plan = union(reads_of(task) for task in tasks), setup.plan
    setup.progress.message("measuring mean and spread of what the readout reads")
    count = min(-(-IMAGES // plan.batch_size), plan.steps_per_epoch, plan.steps)
    first = islice(setup.feed.training(0, count), count)
    found = moments(statistics for statistics, _, _ in read(trainer, first, reads))
    for task in tasks:
        task.measure(found)
    if plan.start == RIDGE:
        start(setup, trainer, tasks)


def reads_of(task: Task) -> Reads:
    """The statistics that its readout reads."""
    return readout.Readout().reads(task.form)


def read(trainer: Trainer, batches: Batches, reads: Reads) -> Iterator[tuple[Statistics, Tensor, Tensor]]:
    """The statistics that are read of each batch, its labels and its indices; every process looks at all of it."""
    backbone = next(task.backbone for task in trainer.tasks if isinstance(task, Task))
    for batch, labels, indices in batches:
        placed = trainer.placed(batch)
        if isinstance(placed, KeptBatch):
            yield {name: placed.statistics[name] for name in reads.statistics}, labels, indices
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


@torch.no_grad()
def solve(setup: Setup, trainer: Trainer, check: Callable[[], None]) -> None:
    """Trains the tasks of a run by ridge regression, mean and spread of what they read included, in one pass.

    check: called before each batch and each regression; may raise, and then no task has changed.
    """
    tasks = [task for task in setup.tasks if isinstance(task, Task)]
    readers = {reads_of(task): task for task in reversed(tasks)}  # one for each readout
    rows = gathered(setup, trainer, list(readers.values()), check)
    solved: dict[Reads, tuple[dict[str, Tensor], Ridge]] = {}
    for reads, task in readers.items():
        check()
        shape = readout.features(task.backbone, task.form)
        found = rows.moments(reads)
        measured = {name: one.reshape(shape) for name, one in zip(task.measurable, found, strict=True)}
        solved[reads] = measured, regression(setup, rows, task, measured)
    for task in tasks:
        task.measured, ridge = solved[reads_of(task)]
        take(task, ridge)


def start(setup: Setup, trainer: Trainer, tasks: Sequence[Task]) -> None:
    """Starts tasks that have measured mean and spread at the ridge regression of what they read."""
    readers = {reads_of(task): task for task in reversed(tasks)}
    rows = gathered(setup, trainer, list(readers.values()), lambda: None)
    solved = {reads: regression(setup, rows, task, task.measured) for reads, task in readers.items()}
    for task in tasks:
        take(task, solved[reads_of(task)])


def regression(setup: Setup, rows: Rows, task: Task, measured: Mapping[str, Tensor]) -> Ridge:
    """The ridge regression of the labels of all training images on what a task reads; rows are used up."""
    features = rows.standardised(reads_of(task), measured["readout.mean"], measured["readout.spread"])
    setup.progress.message(f"ridge regression of {len(features):,} images on {features.shape[1]:,} numbers each")
    given, classes = setup.data.train.labels, len(task.classes)
    weights = closed_form_weights(setup.plan.balance, given, classes)
    found = fit_ridge(features, rows.labels, classes, seed=setup.plan.seed, groups=rows.images, weights=weights)
    best = max(found.scores.values(), default=float("nan"))
    setup.progress.message(
        f"a ridge regression of strength {found.strength:g}; cross-fitted balanced accuracy {100 * best:.1f} %"
    )
    if found.residual > TOLERANCE:
        setup.progress.message(f"the ridge regression was ended early, with a residual of {found.residual:.1g}")
    if setup.plan.balance == LOGITS:  # the loss adds them again
        found = replace(found, bias=found.bias - log_shares(given, classes).to(found.bias))
    return found


class Rows:
    """What tasks read of all training images: for each readout (n, F) numbers in half precision, on the CPU.

    labels, images: (n,) int64, the index of the image in the data. From every number that of the first batches' mean is
    subtracted, `shift` (F,), so that rounding is small beside the spread.
    """

    def __init__(self, widths: Mapping[Reads, int], count: int) -> None:
        self.values = {reads: torch.empty(count, width, dtype=torch.float16) for reads, width in widths.items()}
        self.shift: dict[Reads, Tensor] = {}
        self.labels, self.images = (torch.empty(count, dtype=torch.int64) for _ in range(2))
        self.taken = 0

    @property
    def left(self) -> int:
        """How many rows there is room for."""
        return len(self.labels) - self.taken

    def add(self, found: Mapping[Reads, Tensor], labels: Tensor, images: Tensor) -> None:
        """Takes the numbers (B, F) of a batch, as far as there is room."""
        count = min(len(labels), self.left)
        part = slice(self.taken, self.taken + count)
        for reads, values in found.items():
            shift = self.shift.setdefault(reads, values.mean(dim=0).cpu())
            self.values[reads][part] = values[:count].cpu() - shift
        self.labels[part], self.images[part] = labels[:count].cpu(), images[:count].cpu()
        self.taken += count

    def moments(self, reads: Reads) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (F,) of each number; 1 in place of a deviation of nothing."""
        whole = {"all": self.values[reads]}
        ((mean, spread),) = moments({name: one[part] for name, one in whole.items()} for part in self.parts()).values()
        return mean + self.shift[reads], spread

    def standardised(self, reads: Reads, mean: Tensor, spread: Tensor) -> Tensor:
        """(n, F) the numbers of a readout by their mean and spread, of F numbers each, in place of what they were."""
        values = self.values.pop(reads)
        offset, scale = self.shift[reads] - mean.flatten().cpu(), spread.flatten().cpu()
        for part in self.parts():
            values[part] = (values[part].float() + offset) / scale
        return values

    def parts(self) -> Iterator[slice]:
        """Some rows at a time, which may be wider for a while."""
        return (slice(start, start + PART) for start in range(0, len(self.labels), PART))


def gathered(setup: Setup, trainer: Trainer, tasks: Sequence[Task], check: Callable[[], None]) -> Rows:
    """What these tasks read of all training images, and of each of their views, in one pass."""
    images = setup.plan.train_images
    widths = {reads_of(task): math.prod(readout.features(task.backbone, task.form)) for task in tasks}
    total, room = setup.plan.views_seen * images, int(MOST_BYTES / (2 * sum(widths.values())))
    rows = Rows(widths, max(images, min(total, room)))
    if rows.left < total:
        setup.progress.message(
            f"{rows.left:,} of {total:,} views of images are read, for {MOST_BYTES / 1e9:.0f} GB of features; others "
            "are left out"
        )
    for statistics, labels, indices in read(trainer, setup.feed.in_order(), union(reads_of(task) for task in tasks)):
        check()
        found = {
            reads_of(task): readout.read(statistics, task.words, task.sizes["readout"]).flatten(1).float()
            for task in tasks
        }
        rows.add(found, labels, indices)
        setup.progress.caching("looking at training images", rows.taken, rows.taken + rows.left)
        if not rows.left:
            break
    return rows


def take(task: Task, found: Ridge) -> None:
    """Gives a task what was found: its readout and bias answer, the rest of its head adds nothing at first."""
    tensors = task.named()
    bias = found.bias
    if rank := task.sizes["readout_rank"]:
        up, down, bias = found.reduced(rank)  # of fewer numbers where there are fewer classes
        tensors["readout.up"].zero_()[:, : up.shape[1]] = up
        tensors["readout.down"][: up.shape[1]] = down.reshape(up.shape[1], *tensors["readout.down"].shape[1:])
    else:
        tensors["readout.weight"].copy_(found.weight.reshape(tensors["readout.weight"].shape))
    task.head.weight.zero_()
    task.head.bias.copy_(bias)
