"""Where the batches of a run come from: images that are decoded, or traces that are kept (DESIGN section 3).

Either way a run sees the same images in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memtok.backbone import Backbone
from memtok.data import DataSource, ImageSet, batches, steps_per_epoch
from memtok.data.images import warn_if_dark
from memtok.data.splits import Indices
from memtok.data.transforms import Transform, evaluation_pixels, training_pixels
from memtok.display import shown_bytes
from memtok.errors import Argument, MemtokError
from memtok.task import Task
from memtok.traces import KeptBatch, Manifest, OpenStores, Store, TraceReader, describe
from memtok.traces.manifest import record_bytes, trace_shape
from memtok.traces.sizes import default_limit, default_trace_dir, taken_bytes
from memtok.training.compiler import Compiler
from memtok.training.device import Processes
from memtok.training.progress import Progress
from memtok.training.regimes import Trainable
from memtok.training.settings import Plan, Settings, default_workers

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
        self.training_pixels = training_pixels(trainable.preprocessing, plan.augment, plan.flip)
        self.evaluation_pixels = evaluation_pixels(trainable.preprocessing)
        # The same images each time, classes in proportion.
        self.validated: Indices = data.validation.chosen(plan.validation_images, seed=0)

    @property
    def validation_size(self) -> int:
        """Images in one batch of a validation."""
        return math.ceil(self.plan.batch_size / self.plan.accumulate)

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
        """All training images once, in order and without augmentation."""
        return batches(self.data.train, self.evaluation_pixels, batch_size=self.validation_size, workers=self.workers)

    def missing(self) -> int:
        """On how many images the trunk has to run for `in_order`."""
        return self.plan.train_images

    def record(self) -> dict[str, Any]:
        """What the record of the run says of the feed."""
        return {}

    def close(self) -> None:
        """Ends its use."""


class KeptFeed(Feed):
    """Batches of traces, which are read where they are kept, and kept where they are missing."""

    def __init__(
        self,
        trainable: Task,
        data: DataSource,
        plan: Plan,
        workers: int,
        settings: Settings,
        accelerator: Processes,
        progress: Progress,
        stores: OpenStores | None = None,
        compiler: Compiler | None = None,
    ) -> None:
        super().__init__(trainable, data, plan, workers, progress)
        self.trainable, self.settings, self.accelerator = trainable, settings, accelerator
        self.device = trainable.backbone.device
        self.trunk = compiler.layers.trunk if compiler else None
        assert plan.views is not None
        manifests = (
            self.manifest(data.train, plan.augment, plan.views),
            self.manifest(data.validation, "none", 1),
        )
        rows = np.arange(views_seen(plan) * manifests[0].images), self.validated
        with ExitStack() as stack:
            self.folders = self.folders_of(*manifests)
            opened = stack.enter_context(OpenStores()) if stores is None else stores
            place = str(settings.keep_traces)
            found = [
                opened.open(place, folder, manifest, self.device, progress.message)
                for folder, manifest in zip(self.folders, manifests, strict=True)
            ]
            self.reused = [store.kept for store in found]
            self.share_out(found, rows)
            self.train, self.held_out = (
                self.reader(store, images, transform, indices)
                for store, images, transform, indices in (
                    (found[0], data.train, self.training_pixels, None),
                    (found[1], data.validation, self.evaluation_pixels, self.validated),
                )
            )
            for reader in (self.train, self.held_out):
                reader.check_content()
            self.stack = stack.pop_all()

    def manifest(self, images: ImageSet, augment: str, views: int) -> Manifest:
        """What the traces of one part of the data are of."""
        return describe(
            self.trainable.backbone,
            self.trainable.preprocessing,
            images,
            augment=augment,
            flip=self.plan.flip,
            seed=self.plan.seed,
            views=views,
            autocast=None if self.plan.precision == "float32" else self.plan.precision,
        )

    def folders_of(self, train: Manifest, validation: Manifest) -> list[Path]:
        """Where the traces of both parts lie on disk."""
        given, cache = self.settings.trace_dir, default_trace_dir()
        if given is None:
            return [cache / f"train-{train.digest}", cache / f"validation-{validation.digest}"]
        return [Path(given), Path(given) / f"validation-{validation.digest}"]

    def share_out(self, stores: Sequence[Store], rows: Sequence[Indices]) -> None:
        """Divides the room, the validation images first, and says what will be kept where, if that is not done yet."""
        if all(store.allotted for store in stores):
            return  # by an earlier run with the same stores
        place, given = str(self.settings.keep_traces), self.settings.trace_limit
        taken = sum(map(taken_bytes, self.folders)) if place == "disk" else 0
        limit = default_limit(place, self.folders[0], self.device, taken) if given is None else int(given * GIGABYTE)
        size = [store.manifest.record_bytes for store in stores]
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

    def reader(self, store: Store, images: ImageSet, transform: Transform, indices: Indices | None) -> TraceReader:
        """Reads and fills a store."""
        return TraceReader(
            self.trainable.backbone,
            self.trainable.preprocessing,
            images,
            transform,
            store,
            autocast=self.accelerator.autocast,
            part=self.validation_size,
            notify=self.progress.message,
            indices=indices,
            run=self.trunk,
        )

    def training(self, start_step: int, end_step: int | None = None) -> Batches:
        yield from self.train.batches(
            batch_size=self.plan.batch_size,
            seed=self.plan.seed,
            shuffle=True,
            start_step=start_step,
            steps=self.plan.steps if end_step is None else end_step,
            workers=self.workers,
        )

    def validation(self) -> Batches:
        return self.reported(self.held_out.batches(batch_size=self.validation_size, workers=self.workers))

    def in_order(self) -> Batches:
        """All views of all training images that the run comes to, view after view, in order."""
        steps = views_seen(self.plan) * steps_per_epoch(self.plan.train_images, self.validation_size)
        yield from self.train.batches(batch_size=self.validation_size, steps=steps, workers=self.workers)

    def missing(self) -> int:
        kept = self.train.store.kept_flags()[: views_seen(self.plan) * self.plan.train_images]
        return int((~kept).sum())

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
    accelerator: Processes,
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
    assert isinstance(first, Task)
    if accelerator.num_processes > 1:
        raise MemtokError(
            f"expected one process where traces are kept, found {accelerator.num_processes}; start one, or leave "
            f"{Argument('keep_traces')} out"
        )
    if settings.keep_traces == "gpu" and device.type == "cpu":
        raise MemtokError(
            "expected a GPU to keep traces on, found training on the CPU; keep them in ram or on disk",
            argument="keep_traces",
        )
    return KeptFeed(first, data, plan, workers, settings, accelerator, progress, stores, compiler)


def views_seen(plan: Plan) -> int:
    """How many views of an image a run comes to: one shorter than its views does not come to the last of them."""
    return min(plan.views or 1, math.ceil(plan.steps / plan.steps_per_epoch))


def traces_in_memory(backbone: Backbone, plan: Plan, settings: Settings, device: torch.device) -> int:
    """Bytes that the kept traces of such a run take of the memory of `device`, on which it trains; at most.

    That is the store, where it lies there, and two batches: one in use, one being read.
    """
    if settings.keep_traces is None:
        return 0
    size = record_bytes(*trace_shape(backbone))
    room = 2 * plan.batch_size * size
    if (settings.keep_traces, device.type) in (("ram", "cpu"), ("gpu", "cuda")):
        given = settings.trace_limit
        limit = default_limit(settings.keep_traces, None, device) if given is None else int(given * GIGABYTE)
        room += min(limit, (views_seen(plan) * plan.train_images + plan.validation_images) * size)
    return room


def check_traceable(trainables: Sequence[Trainable]) -> None:
    """MemtokError unless all of these can be trained from kept traces."""
    for trainable in trainables:
        if not (isinstance(trainable, Task) and trainable.composable):
            raise MemtokError(
                f"expected a composable task (regime memory or head) where traces are kept, found {trainable.name!r} "
                f"of regime {trainable.regime!r}, whose image tokens change as it trains; leave "
                f"{Argument('keep_traces')} out"
            )
