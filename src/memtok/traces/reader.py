"""Batches of traces in the order of training: cached by one pass before it, then only read.

What is trained on went through the precision of the store, whether it was read or had to be computed at its step, so
that it does not depend on what was cached when.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from memtok.backbone import INPUTS, NOTHING, Backbone
from memtok.data.content import spread
from memtok.data.loader import BatchPlan, Key, Samples, load, steps_per_epoch
from memtok.data.sources import ImageSet
from memtok.data.splits import Indices
from memtok.data.transforms import Normaliser, OwnTransform, training_pixels
from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing
from memtok.trace import Kept
from memtok.traces.record import OF_LEVELS, KeptBatch, of_tensors
from memtok.traces.store import UNFIT, Flags, Group, Notify, Rows, Store, sent

KeptBatches = Iterator[tuple[KeptBatch, Tensor, Tensor]]
"""Traces, labels (B,) int64, indices in the image set (B,) int64."""

Caching = Callable[[str, int, int], object]
"""Receives how far a pass is: what is done, of how many records, and of how many in all."""


class TraceReader:
    """The traces of an image set: `fill` caches them in a store, `batches` reads them.

    Images are transformed as the manifest of the store says. autocast: the context that the trunk runs in. part: images
    that it runs on at once. indices: which images are asked for, all by default; batches then hold no others. run: a
    compiled `run_layer`. transform: the user's own, which the manifest can only name.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: ImageSet,
        store: Store,
        *,
        autocast: Callable[[], AbstractContextManager[object]],
        part: int,
        notify: Notify,
        indices: Indices | None = None,
        run: Callable[..., tuple[Tensor, Kept | tuple[()]]] | None = None,
        transform: OwnTransform | None = None,
    ) -> None:
        self.backbone, self.images, self.store, self.notify = backbone, images, store, notify
        self.autocast, self.part, self.layer = autocast, part, run
        manifest = store.manifest
        preprocessing = Preprocessing.from_dict(manifest.preprocessing)
        transform = transform or training_pixels(preprocessing, manifest.augment, manifest.flip)
        self.views = manifest.views
        self.needs = of_tensors(manifest.tensors)
        self.normalise = Normaliser(preprocessing)
        self.samples = Samples(images, transform, manifest.seed or 0)
        self.indices = np.arange(len(images)) if indices is None else indices
        self.device = backbone.device
        self.rooms: dict[int, KeptBatch] = {}

    # Which records

    def plan(
        self,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        start_step: int = 0,
        steps: int | None = None,
        balanced: bool = False,
    ) -> BatchPlan:
        """The batches of the steps from `start_step` on, as `memtok.data.batches` has them."""
        end = steps_per_epoch(len(self.indices), batch_size) if steps is None else steps
        labels = self.images.labels[self.indices] if balanced else None
        plan = BatchPlan(len(self.indices), batch_size, seed, shuffle, start_step, end, False, (0, 1), labels)
        plan.check()
        return plan

    def rows(self, plan: BatchPlan) -> Iterator[Rows]:
        """The records of each batch: epoch e shows view e % views."""
        for epochs, places in plan.places():
            yield epochs % self.views * len(self.images) + self.indices[places]

    def all_rows(self, plan: BatchPlan) -> Rows:
        """The records of all its batches, each once, in their order."""
        assert plan.steps is not None
        if plan.labels is None:
            again = plan.start_step + (self.views + 1) * steps_per_epoch(plan.images, plan.batch_size)
            plan = replace(plan, steps=min(plan.steps, again))  # from there on it shows the same records again
        return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *self.rows(plan)]))

    def keys(self, rows: Rows) -> list[Key]:
        """(view, index in the image set) of records."""
        return [divmod(row, len(self.images)) for row in rows.tolist()]

    # Before training

    def check_content(self) -> None:
        """MemtokError if an image is no longer what its trace was made from; checks a few, evenly spaced."""
        kept = np.flatnonzero(self.store.usable(np.arange(self.store.manifest.records)))
        kept = kept[spread(len(kept))]
        self.store.verify(kept, lambda done, total: None)
        for row in kept[self.store.usable(kept)]:
            found = self.samples.__getitems__(self.keys(row[None]))
            if not isinstance(found, list):
                raise found.error
            if pixel_hash(found[0][0]) != self.store.pixels[row].tobytes():
                name = self.images.identity(row % len(self.images))
                raise MemtokError(
                    f"expected image {name!r} as it was when its trace was kept, found other pixels; delete the traces "
                    f"in {self.store.where}, or name another folder"
                )

    def fill(self, plan: BatchPlan, workers: int, caching: Caching) -> None:
        """Caches the records of a plan that are missing, as far as the store may hold them, in one pass of the trunk.

        `workers` processes decode images meanwhile. Raises MemtokError when an image cannot be read, with its path;
        what was cached until then stays on disk, and so it does when the process is killed.
        """
        rows, store = self.all_rows(plan), self.store

        def missing() -> Rows:
            store.verify(rows, lambda done, total: caching("checking traces", done, total))
            return store.missing(rows)

        if len(missing()) and store.trouble is None:
            with store.filling(self.notify) as writable:
                left = missing()  # without those that another process wrote just now
                if writable and len(left):
                    self.cache(left, workers, caching)
        if store.trouble is not None:
            self.tell_once(
                "trouble",
                f"kept traces: no more can be written ({store.trouble}); {store.kept:,} of {store.manifest.records:,} "
                "are kept, the others are computed at every step",
            )
        if (store.state[rows] == UNFIT).any():
            self.tell_once(
                "unfit",
                "kept traces: some images are beyond the range of half precision; they are computed at every step",
            )

    def tell_once(self, what: str, line: str) -> None:
        """Notifies the user, once for all runs with the same store."""
        if what not in self.store.told:
            self.store.told.add(what)
            self.notify(line)

    def cache(self, rows: Rows, workers: int, caching: Caching) -> None:
        """Runs the trunk on the images of these records, in their order, and writes the records."""
        groups = [rows[start : start + self.part] for start in range(0, len(rows), self.part)]
        loaded = load(self.samples, map(self.keys, groups), workers)
        done = 0
        caching("caching traces", done, len(rows))
        with ThreadPoolExecutor(1, thread_name_prefix="memtok-write") as pool:
            writing: Future[None] | None = None  # while the trunk runs on the next group
            for group, (pixels, _, _) in zip(groups, loaded, strict=True):
                records, fit = self.rounded(self.traced(pixels))
                hashes = np.frombuffer(b"".join(map(pixel_hash, pixels)), dtype="V8")
                found = Group(group, records.to(self.store.memory), hashes, fit.cpu().numpy())
                if writing is not None:
                    writing.result()
                if self.store.trouble is not None:
                    break
                writing = pool.submit(self.store.write, found)
                done += len(group)
                caching("caching traces", done, len(rows))
            if writing is not None:
                writing.result()

    # The trunk

    def traced(self, pixels: Tensor) -> Mapping[str, Tensor]:
        """The tensors of the records of pixels (b, 3, H, W), on the device of the backbone, as it computes them."""
        images = self.normalise(sent(pixels, self.device))
        with self.autocast():
            keep = INPUTS if self.needs.inputs else NOTHING
            trace = self.backbone.trace(images, keep=keep, reads=self.needs.reads(self.backbone), run=self.layer)
        assert trace.features is not None
        found = {"features": trace.features} | {OF_LEVELS + name: one for name, one in trace.statistics.items()}
        return found | ({"inputs": torch.stack(trace.inputs, dim=1)} if self.needs.inputs else {})

    def rounded(self, exact: Mapping[str, Tensor]) -> tuple[KeptBatch, Tensor]:
        """The same in the precision of the store, and (b,) bool: whether all numbers of a record are finite in it."""
        tensors = self.store.manifest.tensors
        records = {name: values.to(getattr(torch, tensors[name][0])) for name, values in exact.items()}
        fit = [values.isfinite().flatten(1).all(dim=1) for values in records.values()]
        return KeptBatch(records), torch.stack(fit).all(dim=0)

    # In training

    def batches(self, plan: BatchPlan, workers: int) -> KeptBatches:
        """The batches of a plan, as `memtok.data.batches` gives them, with traces in the place of images.

        A batch is valid until the next one is asked for. What the store does not hold is computed at its step; only
        then images are decoded, by `workers` processes.
        """
        loaded = None
        if not self.store.usable(self.all_rows(plan)).all():
            absent = (self.keys(rows[~self.store.usable(rows)]) for rows in self.rows(plan))
            loaded = load(self.samples, absent, workers)
        for rows, batch, there in self.read_ahead(plan):
            if loaded is not None:
                pixels, _, _ = next(loaded)
                if len(pixels):
                    batch = self.completed(batch, there, pixels)
            indices = torch.from_numpy(rows % len(self.images))
            labels = torch.from_numpy(self.images.labels[indices.numpy()])
            yield batch, labels if self.device.type == "cpu" else labels.pin_memory(), indices

    def read_ahead(self, plan: BatchPlan) -> Iterator[tuple[Rows, KeptBatch, Flags]]:
        """What is kept of each batch.

        From main memory or a disk it is read while the batch before is trained on. Where it lies on the GPU, reading is
        a few kernels, started when the batch is due, by the thread and in the stream that then use it.
        """
        if self.store.memory.type != "cpu":
            yield from (self.fetch(rows, number) for number, rows in enumerate(self.rows(plan)))
            return
        with ThreadPoolExecutor(1, thread_name_prefix="memtok-read-ahead") as pool:
            reading: Future[tuple[Rows, KeptBatch, Flags]] | None = None
            for number, rows in enumerate(self.rows(plan)):
                before, reading = reading, pool.submit(self.fetch, rows, number)
                if before is not None:
                    yield before.result()
            if reading is not None:
                yield reading.result()

    def fetch(self, rows: Rows, number: int) -> tuple[Rows, KeptBatch, Flags]:
        """Reads what is kept of batch `number`; (B,) which of its places are filled."""
        batch, there = self.room(len(rows), number), self.store.usable(rows)
        self.store.read(rows[there], batch, np.flatnonzero(there))
        return rows, batch, there

    def room(self, count: int, number: int) -> KeptBatch:
        """Memory for batch `number`."""
        tensors, memory = self.store.manifest.tensors, self.store.memory
        if self.device.type != "cpu":
            # Pinned memory is not given out again before the GPU has fetched what lies in it.
            return KeptBatch.empty(tensors, count, memory, pin_memory=memory.type == "cpu")
        # Two in turn: fresh memory would cost as much as the reading.
        room = self.rooms.get(number % 2)
        if room is None or len(room) < count:
            room = self.rooms[number % 2] = KeptBatch.empty(tensors, count)
        return room[:count]

    def completed(self, batch: KeptBatch, there: Flags, pixels: Tensor) -> KeptBatch:
        """A batch in single precision, with the traces of the images that are not there computed from their pixels.

        They are rounded as those that are read; an image that is beyond the range of half precision is not.
        """
        batch = batch.to(self.device, non_blocking=True)
        batch = KeptBatch({name: values.float() for name, values in batch.tensors.items()})
        places = sent(torch.from_numpy(np.flatnonzero(~there)), self.device)
        for start in range(0, len(pixels), self.part):
            at = places[start : start + self.part]
            exact = self.traced(pixels[start : start + self.part])
            records, fit = self.rounded(exact)
            for name, values in batch.tensors.items():  # chosen on the device: nothing waits for a GPU
                chosen = fit.view(-1, *[1] * (values.ndim - 1))
                values[at] = torch.where(chosen, records.tensors[name].float(), exact[name].float())
        return batch


def pixel_hash(pixels: Tensor) -> bytes:
    """8 bytes for the pixels (3, H, W) of a transformed image."""
    return hashlib.blake2b(pixels.contiguous().numpy().tobytes(), digest_size=8).digest()
