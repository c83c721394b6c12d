"""Where the batches of a run come from: images that are decoded, or cached traces (DESIGN section 3).

Either way a run sees the same images in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memtok.backbone import Backbone
from memtok.data import DataSource, ImageSet, batches, steps_per_epoch
from memtok.data.images import warn_if_dark
from memtok.data.loader import BatchPlan
from memtok.data.splits import Indices
from memtok.data.transforms import evaluation_pixels, varied_pixels
from memtok.display import shown_bytes
from memtok.errors import Argument, MemtokError
from memtok.regimes import COMPOSABLE
from memtok.task import Task
from memtok.traces import KeptBatch, Needs, OpenStores, TraceReader, describe
from memtok.traces.manifest import MANIFEST, read_manifest
from memtok.traces.record import of_tensors, record_type, trace_tensors
from memtok.traces.sizes import default_limit, default_trace_dir, taken_bytes
from memtok.training.compiler import Compiler
from memtok.training.device import Processes
from memtok.training.plan import Plan
from memtok.training.progress import Progress
from memtok.training.recipes import GRADIENT, SAMPLING
from memtok.training.regimes import Trainable
from memtok.training.settings import Settings, default_workers

Batches = Iterator[tuple[Tensor | KeptBatch, Tensor, Tensor]]
"""Pixels (B, 3, H, W) uint8 or traces of images, labels (B,) int64, indices in the image set (B,) int64."""

GIGABYTE = 1e9
VALIDATION_SHARE = 0.5  # of the room for traces, at most; they are read at every validation


class Feed:
    """Batches of decoded images, as pixels that are not normalised yet."""

    def __init__(
        self, trainable: Trainable, data: DataSource, plan: Plan, workers: int, progress: Progress | None = None
    ) -> None:
        self.data, self.plan, self.workers, self.progress = data, plan, workers, progress or Progress()
        warn_if_dark(data.peak, trainable.preprocessing, data.spec)
        self.training_pixels = varied_pixels(trainable.preprocessing, plan.augment, plan.flip, data.variation)
        self.evaluation_pixels = evaluation_pixels(trainable.preprocessing)
        # The same images each time, classes in proportion.
        self.validated: Indices = data.validation.chosen(plan.validation_images, seed=0)

    @property
    def validation_size(self) -> int:
        """Images in one batch of a validation."""
        return math.ceil(self.plan.batch_size / self.plan.accumulate)

    def prepare(self, start_step: int, end_step: int | None = None) -> None:
        """What has to be done before these steps and their validations. Nothing, where images are decoded."""

    def training(self, start_step: int, end_step: int | None = None) -> Batches:
        """The batches of the steps from `start_step` on, to the end of the run or up to `end_step`."""
        return batches(
            self.data.train,
            self.training_pixels,
            batch_size=self.plan.batch_size,
            seed=self.plan.seed,
            shuffle=True,
            start_step=start_step,
            steps=self.plan.steps if end_step is None else end_step,
            workers=self.workers,
            balanced=self.plan.balance == SAMPLING,
        )

    def validation(self) -> Batches:
        """All images of a validation, without augmentation."""
        images = self.data.validation.select(self.validated)
        return self.reported(
            batches(images, self.evaluation_pixels, batch_size=self.validation_size, workers=self.workers)
        )

    def reported(self, looked_at: Batches) -> Batches:
        """The batches of a validation; progress is told of each that is done."""
        done = 0
        for batch in looked_at:
            yield batch
            done += len(batch[1])
            self.progress.validating(done, len(self.validated))

    def in_order(self) -> Batches:
        """All training images in order: once and without augmentation, or all views that the run has of them."""
        varied = self.plan.views is not None and self.plan.augment != "none"
        return batches(
            self.data.train,
            self.training_pixels if varied else self.evaluation_pixels,
            batch_size=self.validation_size,
            seed=self.plan.seed,
            steps=self.plan.views_seen * self.order_steps if varied else None,
            workers=self.workers,
        )

    @property
    def order_steps(self) -> int:
        """Batches of one view in `in_order`."""
        return steps_per_epoch(self.plan.train_images, self.validation_size)

    def missing(self) -> int:
        """On how many images the trunk has to run for `in_order`."""
        return self.plan.train_images

    def record(self) -> dict[str, Any]:
        """What the record of the run says of the feed."""
        return {}

    def close(self) -> None:
        """Ends its use."""


class KeptFeed(Feed):
    """Batches of traces, cached before the first step by one pass of the trunk over the images that a run comes to."""

    def __init__(
        self,
        tasks: Sequence[Task],
        data: DataSource,
        plan: Plan,
        workers: int,
        settings: Settings,
        processes: Processes,
        progress: Progress,
        stores: OpenStores | None = None,
        compiler: Compiler | None = None,
    ) -> None:
        super().__init__(tasks[0], data, plan, workers, progress)
        self.task, self.settings, self.autocast = tasks[0], settings, processes.autocast
        self.trunk = compiler.layers.trunk if compiler else None
        with ExitStack() as stack:
            self.stores = stack.enter_context(OpenStores()) if stores is None else stores
            self.needs = reduce(or_, map(needs_of, tasks), self.stores.needs)
            if settings.trace_dir is not None:
                self.needs = covering(Path(settings.trace_dir), self.needs)
            self.train = self.reader("train", data.train, plan.augment, plan.views or 1)
            self.held_out = self.reader("validation", data.validation, "none", 1, self.validated)
            self.reused = [reader.store.kept for reader in (self.train, self.held_out)]
            self.share_out()
            for reader in (self.train, self.held_out):
                reader.check_content()
            self.stack = stack.pop_all()

    def reader(
        self, part: str, images: ImageSet, augment: str, views: int, indices: Indices | None = None
    ) -> TraceReader:
        """The traces of one part of the data, in the store of the run. part: "train" or "validation"."""
        task, plan, device = self.task, self.plan, self.task.backbone.device
        if images.part_of is not None:
            images, places = images.part_of
            indices = places if indices is None else places[indices]
        manifest = describe(
            task.backbone,
            task.preprocessing,
            images,
            augment=augment,
            flip=plan.flip,
            seed=plan.seed,
            views=views,
            autocast=None if plan.precision == "float32" else plan.precision,
            needs=self.needs,
        )
        given, name = self.settings.trace_dir, f"{part}-{manifest.digest}"
        folder = default_trace_dir() / name if given is None else Path(given) / ("" if part == "train" else name)
        store = self.stores.open(str(self.settings.keep_traces), folder, manifest, device)
        return TraceReader(
            task.backbone,
            images,
            store,
            autocast=self.autocast,
            part=self.validation_size,
            notify=self.progress.message,
            indices=indices,
            run=self.trunk,
            transform=self.training_pixels if part == "train" else self.evaluation_pixels,
        )

    def share_out(self) -> None:
        """Divides the room, the validation images first, and says what will be kept where, if that is not done yet."""
        stores = self.train.store, self.held_out.store
        if all(store.allowed is not None for store in stores):
            return  # by an earlier run with the same stores
        rows = np.arange(self.plan.views_seen * len(self.train.images)), self.held_out.indices
        place, given = stores[0].place, self.settings.trace_limit
        folders = [Path(store.where) for store in stores]
        taken = sum(map(taken_bytes, folders)) if place == "disk" else 0
        device = self.task.backbone.device
        limit = default_limit(place, folders[0], device, taken) if given is None else int(given * GIGABYTE)
        size = [store.manifest.record_bytes for store in stores]
        if stores[0] is stores[1]:  # both parts are folds of one set, which `rows[0]` has all of
            stores[0].allow(rows[0], limit)
        held_out = stores[1].allow(rows[1], int(limit * VALIDATION_SHARE))
        train = stores[0].allow(rows[0], limit - held_out * size[1])
        images, views = stores[0].manifest.images, len(rows[0]) // stores[0].manifest.images
        lines = [
            f"keeping traces ({stores[0].where}): {images:,} images x {views} {'view' if views == 1 else 'views'} x "
            f"{shown_bytes(size[0])} = {shown_bytes(len(rows[0]) * size[0])}, and {len(rows[1]):,} validation images = "
            f"{shown_bytes(len(rows[1]) * size[1])}; the limit is {shown_bytes(limit)}"
        ]
        if train < len(rows[0]) or held_out < len(rows[1]):
            lines.append(
                f"that is room for {train:,} of {len(rows[0]):,} traces and {held_out:,} of {len(rows[1]):,} of the "
                "validation; the others are computed at every step"
            )
        if any(self.reused):
            lines.append(f"{self.reused[0]:,} traces and {self.reused[1]:,} of the validation are there already")
        for line in lines:
            self.progress.message(line)

    def steps(self, start_step: int, end_step: int | None) -> BatchPlan:
        """The batches of training from `start_step` on, to the end of the run or up to `end_step`."""
        plan = self.plan
        end = plan.steps if end_step is None else end_step
        return self.train.plan(
            batch_size=plan.batch_size,
            seed=plan.seed,
            shuffle=True,
            start_step=start_step,
            steps=end,
            balanced=plan.balance == SAMPLING,
        )

    def prepare(self, start_step: int, end_step: int | None = None) -> None:
        """Caches the traces of the validation images and of these steps, those that are missing and have room.

        Where a step is left, those of the steps before as well: a run that goes on after its cache in memory was lost
        computes them in the same batches as a run that was never stopped, so with the same last bit.
        """
        images = self.held_out.plan(batch_size=self.validation_size)
        self.held_out.fill(images, self.workers, self.progress.caching)
        if start_step < (self.plan.steps if end_step is None else end_step):
            needed = self.steps(0, end_step) if self.plan.solver == GRADIENT else self.all_views()
            self.train.fill(needed, self.workers, self.progress.caching)

    def training(self, start_step: int, end_step: int | None = None) -> Batches:
        yield from self.train.batches(self.steps(start_step, end_step), self.workers)

    def validation(self) -> Batches:
        images = self.held_out.plan(batch_size=self.validation_size)
        return self.reported(self.held_out.batches(images, self.workers))

    def in_order(self) -> Batches:
        """All views of all training images that the run comes to, view after view, in order."""
        yield from self.train.batches(self.all_views(), self.workers)

    def all_views(self) -> BatchPlan:
        """The batches of `in_order`."""
        steps = self.plan.views_seen * self.order_steps
        return self.train.plan(batch_size=self.validation_size, steps=steps)

    def missing(self) -> int:
        rows = self.train.all_rows(self.all_views())
        return int((~self.train.store.usable(rows)).sum())

    def record(self) -> dict[str, Any]:
        train, held_out = self.train.store, self.held_out.store
        return {
            "traces": {
                "kept": train.place,
                "views": train.manifest.views,
                "records": train.kept,
                "bytes": train.bytes,
                "reused": self.reused[0],
                "validation_records": held_out.kept,
                "validation_bytes": held_out.bytes,
                "validation_reused": self.reused[1],
            }
        }

    def close(self) -> None:
        self.stack.close()


def make_feed(
    trainables: Sequence[Trainable],
    data: DataSource,
    plan: Plan,
    settings: Settings,
    processes: Processes,
    device: torch.device,
    progress: Progress,
    stores: OpenStores | None = None,
    compiler: Compiler | None = None,
) -> Feed:
    """What a run of these tasks, which are on `device`, is fed with. MemtokError if it cannot be.

    stores: where kept traces are looked for first, and stay open; by default they are closed with the feed. compiler:
    of the trunk that fills them.
    """
    workers = default_workers(device) if settings.workers is None else settings.workers
    first = trainables[0]
    if settings.keep_traces is None:
        return Feed(first, data, plan, workers, progress)
    check_traceable(trainables)
    tasks = [task for task in trainables if isinstance(task, Task)]
    if processes.num_processes > 1:
        raise MemtokError(
            f"expected one process where traces are kept, found {processes.num_processes}; start one, or leave "
            f"{Argument('keep_traces')} out"
        )
    if settings.keep_traces == "gpu" and device.type == "cpu":
        raise MemtokError(
            "expected a GPU to keep traces on, found training on the CPU; keep them in ram or on disk",
            argument="keep_traces",
        )
    return KeptFeed(tasks, data, plan, workers, settings, processes, progress, stores, compiler)


def covering(folder: Path, needs: Needs) -> Needs:
    """What the traces in a folder were kept for, if it serves these needs too; else these needs."""
    if not (folder / MANIFEST).exists():
        return needs
    found = of_tensors(read_manifest(folder).get("tensors", {}))
    return found if found | needs == found else needs


def needs_of(task: Task) -> Needs:
    """What is kept of every image for a task."""
    return Needs(inputs=task.queries > 0, statistics=task.reads.statistics)


def traces_in_memory(backbone: Backbone, plan: Plan, settings: Settings, needs: Needs, device: torch.device) -> int:
    """Bytes that the kept traces of such a run take of the memory of `device`, on which it trains; at most.

    That is the store, where it lies there, and two batches: one in use, one being read.
    """
    if settings.keep_traces is None:
        return 0
    size = record_type(trace_tensors(backbone, needs)).itemsize
    room = 2 * plan.batch_size * size
    if (settings.keep_traces, device.type) in (("ram", "cpu"), ("gpu", "cuda")):
        given = settings.trace_limit
        limit = default_limit(settings.keep_traces, None, device) if given is None else int(given * GIGABYTE)
        room += min(limit, (plan.views_seen * plan.train_images + plan.validation_images) * size)
    return room


def check_traceable(trainables: Sequence[Trainable]) -> None:
    """MemtokError unless all of these can be trained from kept traces."""
    for trainable in trainables:
        if not (isinstance(trainable, Task) and trainable.composable):
            raise MemtokError(
                f"expected a composable task (regime {' or '.join(COMPOSABLE)}) where traces are kept, found "
                f"{trainable.name!r} of regime {trainable.regime!r}, whose image tokens change as it trains; leave "
                f"{Argument('keep_traces')} out"
            )
