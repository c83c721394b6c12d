"""Batches of an image set, in an order and with an augmentation that follow from the seed alone.

The images of epoch e come in the permutation drawn from (seed, e), and what happens to one of them by chance is drawn
from (seed, e, index). So batch k is the same with any number of worker processes and after any interruption. Where
classes are balanced, an epoch shows some images several times and others not at all.

memtok's own transforms draw from generators that are made for each image, so the global ones are neither read nor
moved. Code of somebody else (a torch Dataset, a transform) can only draw from the global ones: they are seeded for each
image, in one thread at a time, and put back.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from memtok.data.images import UnreadableImageError, shown
from memtok.data.sources import ImageSet
from memtok.data.splits import Indices, check_seed, shuffled
from memtok.data.transforms import Generators, OwnTransform, Transform, VariedPixels
from memtok.data.variation import SHOWN, VariationError
from memtok.errors import Argument, MemtokError, one_line

# What a draw is for; keeps the numbers of one purpose apart from those of another.
ORDER, AUGMENTATION, OF_CLASSES, EXTRA = 2, 3, 4, 5

Key = tuple[int, int]
"""(epoch, index in the image set)."""

Batch = tuple[Tensor, Tensor, Tensor]
"""Images (B, 3, H, W) as the transform gives them, labels (B,) int64, indices in the image set (B,) int64."""


def batches(
    image_set: ImageSet,
    transform: Transform,
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = False,
    start_step: int = 0,
    steps: int | None = None,
    workers: int = 0,
    drop_last: bool = False,
    shard: tuple[int, int] = (0, 1),
    balanced: bool = False,
) -> Iterator[Batch]:
    """Yields batches number `start_step` to `steps` - 1 as (images (B, 3, H, W), labels (B,), indices (B,)).

    `steps` counts from the beginning, not from `start_step`: a run of 100 steps that is resumed at 60 asks for
    start_step=60, steps=100. None means one epoch. After the last batch of an epoch the next epoch begins; no batch
    holds images of two. The last batch of an epoch may be smaller, with `drop_last` it is left out (unless it is the
    only one). `indices` are positions in `image_set`. The skipped batches are not read.

    With `shard` (r, n), process r of n gets rows r, r + n, ... of each batch and reads no others; where there are none
    for it, the first row. `batch_size` is that of all processes together.

    With `balanced`, which needs `shuffle`, an epoch has as many rows as there are images, but each class equally many
    of them (up to one). Each image of a class is in it once before another is in it again; what is repeated is varied
    anew, as in the epochs that follow.

    Raises MemtokError for bad arguments, and when an image cannot be read, with its path.
    """
    labels = image_set.labels if balanced else None
    plan = BatchPlan(len(image_set), batch_size, check_seed(seed), shuffle, start_step, steps, drop_last, shard, labels)
    plan.check()
    check_workers(workers)
    return load(Samples(image_set, transform, plan.seed), plan, workers)


def steps_per_epoch(images: int, batch_size: int, drop_last: bool = False) -> int:
    """How many batches one epoch of `images` gives."""
    whole, rest = divmod(images, batch_size)
    return whole + (1 if rest and (not drop_last or whole == 0) else 0)


GLOBAL_RANDOM = threading.RLock()
"""Held by whoever seeds the global generators for a while: two threads at once would disturb each other."""


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Puts the global generators of Python, numpy and torch (CPU) back as they were when the block ends.

    One thread at a time is in such a block; what others draw from these generators meanwhile is not guarded.
    """
    # A worker process has no other threads, but may have been forked while one held the lock.
    with GLOBAL_RANDOM if get_worker_info() is None else nullcontext():
        of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
            torch.set_rng_state(of_torch)


@dataclass(frozen=True)
class BatchPlan:
    """Which images make up which batch; iterating gives lists of (epoch, index).

    labels: (images,) where each class is shown equally often.
    """

    images: int
    batch_size: int
    seed: int
    shuffle: bool
    start_step: int
    steps: int | None
    drop_last: bool
    shard: tuple[int, int]
    labels: Indices | None = field(default=None, compare=False)

    def check(self) -> None:
        """Raises MemtokError if there is nothing to make batches of."""
        if self.images < 1:
            raise MemtokError("expected images to make batches of, found an empty image set; check the data source")
        if self.batch_size < 1:
            raise MemtokError(
                f"expected a batch size from 1 on, found {self.batch_size}; choose a larger one", argument="batch_size"
            )
        if self.start_step < 0 or (self.steps is not None and self.steps < 0):
            raise MemtokError(
                f"expected steps from 0 on, found start_step={self.start_step}, steps={self.steps}; correct them",
                argument="start_step",
            )
        if self.labels is not None and not self.shuffle:
            raise MemtokError("expected shuffle where classes are balanced, found none; shuffle", argument="shuffle")
        if not 0 <= self.shard[0] < self.shard[1]:
            raise MemtokError(
                f"expected a shard (number, count) with a number from 0 to count - 1, found {self.shard}; correct it",
                argument="shard",
            )

    def __iter__(self) -> Iterator[list[Key]]:
        for epochs, places in self.places():
            yield list(zip(epochs.tolist(), places.tolist(), strict=True))

    def places(self) -> Iterator[tuple[Indices, Indices]]:
        """The same as epochs (b,) and indices (b,) of each batch."""
        per_epoch = steps_per_epoch(self.images, self.batch_size, self.drop_last)
        end = per_epoch if self.steps is None else self.steps
        order, order_of = np.empty((2, 0), dtype=np.int64), -1
        for step in range(self.start_step, end):
            epoch, number = divmod(step, per_epoch)
            if epoch != order_of:
                order, order_of = self._order(epoch), epoch
            start = number * self.batch_size
            rows = order[:, start : start + self.batch_size]
            share = rows[:, self.shard[0] :: self.shard[1]]
            epochs, places = share if share.size else rows[:, :1]
            yield epochs, places

    def _order(self, epoch: int) -> Indices:
        """(2, images): as in which epoch an image is varied, and its index."""
        order = shuffled(self.images, self.seed, epoch, ORDER) if self.shuffle else np.arange(self.images)
        if self.labels is None:
            return np.stack([np.full(self.images, epoch), order])
        again, places = balanced(self.labels, self.seed, epoch)
        return np.stack([epoch + again, places])[:, order]


def balanced(labels: Indices, seed: int, epoch: int) -> tuple[Indices, Indices]:
    """Indices (images,) of which each class has equally many, up to one, and how often each was there before."""
    order = shuffled(len(labels), seed, epoch, OF_CLASSES)
    by_class = order[np.argsort(labels[order], kind="stable")]  # class after class, each in random order
    _, images = np.unique(labels, return_counts=True)
    share, rest = divmod(len(labels), len(images))
    rows = np.full(len(images), share)
    rows[shuffled(len(images), seed, epoch, EXTRA)[:rest]] += 1
    number = np.arange(len(labels)) - np.repeat(np.cumsum(rows) - rows, rows)  # of a row within its class
    first, size = np.repeat(np.cumsum(images) - images, rows), np.repeat(images, rows)
    return number // size, by_class[first + number % size]


@dataclass(frozen=True)
class Failure:
    """Takes the place of a batch that cannot be made. torch would garble an exception that crosses processes."""

    error: MemtokError


@dataclass(frozen=True)
class Samples(Dataset[tuple[Tensor, int, int]]):
    """The transformed images by (epoch, index), as torch's DataLoader asks for them."""

    image_set: ImageSet
    transform: Transform
    seed: int

    def __getitems__(self, keys: Sequence[Key]) -> list[tuple[Tensor, int, int]] | Failure:
        try:
            transform = self.transform
            if isinstance(transform, OwnTransform) and not (transform.draws or self.image_set.store.draws):
                return [self._own_sample(transform, epoch, index) for epoch, index in keys]
            with kept_random_state():
                return [self._foreign_sample(epoch, index) for epoch, index in keys]
        except MemtokError as error:
            return Failure(error)

    def _own_sample(self, transform: OwnTransform, epoch: int, index: int) -> tuple[Tensor, int, int]:
        """An image of memtok's own stores, as it is stored, through one of memtok's transforms."""
        for_python, _, for_torch = self._seeds(epoch, index)
        generators = Generators(random.Random(for_python), torch.Generator().manual_seed(for_torch))
        with self._room_for(index):
            image, label = self.image_set.as_stored(index)
            return transform(image, generators), label, index

    def _foreign_sample(self, epoch: int, index: int) -> tuple[Tensor, int, int]:
        """The same where somebody else's code may draw, from the global generators."""
        for_python, for_numpy, for_torch = self._seeds(epoch, index)
        random.seed(for_python)
        np.random.seed(for_numpy)
        torch.default_generator.manual_seed(for_torch)  # torch.manual_seed would reseed the GPU as well
        with self._room_for(index):
            # memtok's transforms take what is stored; those of others are promised RGB.
            own = isinstance(self.transform, OwnTransform)
            image, label = self.image_set.as_stored(index) if own else self.image_set[index]
            return self.transform(image), label, index

    @contextmanager
    def _room_for(self, index: int) -> Iterator[None]:
        """Around the work on an image: one that does not fit into memory, or that a transform fails on, is named."""
        try:
            yield
        except MemoryError as error:
            raise UnreadableImageError(self.image_set.identity(index), "does not fit into memory") from error
        except VariationError as error:
            assert isinstance(self.transform, VariedPixels)
            name = one_line(self.transform.variation.name, SHOWN)
            raise MemtokError(
                f"expected the transform {name} to vary image {shown(self.image_set.identity(index))}, found {error}; "
                "mend the transform",
                argument="transform",
            ) from error

    def _seeds(self, epoch: int, index: int) -> list[int]:
        """For the generators of Python, numpy and torch; the first numbers of each are the same either way."""
        sequence = np.random.SeedSequence((self.seed, epoch, index, AUGMENTATION))
        return [int(seed) for seed in sequence.generate_state(3)]


def collate(samples: list[tuple[Tensor, int, int]] | Failure) -> Batch | Failure:
    """Stacks the samples of a batch."""
    if isinstance(samples, Failure):
        return samples
    if not samples:  # nobody needs an image of this batch
        return torch.empty(0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    images, labels, indices = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels), torch.tensor(indices)


def check_workers(workers: int) -> None:
    """MemtokError unless this machine can hold so many processes, each of which takes some hundred megabytes."""
    most = max(32, 4 * (os.cpu_count() or 1))
    if not 0 <= workers <= most:
        raise MemtokError(
            f"expected 0 to {most} workers on this machine, found {workers}; 0 reads in this process, more than there "
            "are cores seldom helps",
            argument="workers",
        )


def check_sendable(transform: Transform) -> None:
    """MemtokError unless a transform of the user can be sent to a worker process that is not forked."""
    if not isinstance(transform, VariedPixels):
        return
    try:
        pickle.dumps(transform.variation.transform)
    except Exception as error:
        raise MemtokError(
            f"expected a transform that can be pickled for worker processes, found {one_line(error)}; define it at the "
            f"top of a module, or use {Argument('workers', 0)}",
            argument="transform",
        ) from error


def load(samples: Samples, plan: Iterable[list[Key]], workers: int) -> Iterator[Batch]:
    """The batches of these lists of keys, in their order; `workers` processes decode ahead, 0 decode here.

    An empty list gives tensors of length 0. Raises MemtokError when an image cannot be read, with its path.
    """
    if workers and multiprocessing.get_start_method() != "fork":
        check_sendable(samples.transform)
    with warnings.catch_warnings():
        # Results do not depend on the number of workers, so more than there are cores is the caller's business.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        # Python 3.12 warns of every fork in a process with threads; torch's own threads are such. The workers that
        # are forked here touch none of them.
        warnings.filterwarnings("ignore", message="This process .* is multi-threaded", category=DeprecationWarning)
        loader = DataLoader(
            samples,
            batch_sampler=plan,
            num_workers=workers,  # each of them runs torch on one thread
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or the loader would draw a seed from the global one
        )
        loaded = iter(loader)  # starts the workers
    for batch in loaded:
        if isinstance(batch, Failure):
            raise batch.error
        yield batch
