"""Batches of traces in the order that training wants: read where they are kept, computed and kept where they are not.

Whatever is trained on went through half precision, whether it was read or computed just now, so that a run that fills
a store and a run that finds it filled see the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from memtok.backbone import INPUTS, Backbone
from memtok.data.content import spread
from memtok.data.loader import BatchPlan, Key, Samples, load, steps_per_epoch
from memtok.data.sources import ImageSet
from memtok.data.splits import Indices
from memtok.data.transforms import Normaliser, Transform
from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing
from memtok.trace import Kept
from memtok.traces.record import KeptBatch
from memtok.traces.store import Flags, Notify, Rows, Store, sent

KeptBatches = Iterator[tuple[KeptBatch, Tensor, Tensor]]
"""Traces, labels (B,) int64, indices in the image set (B,) int64."""


class TraceReader:
    """The traces of an image set, out of a store that it fills as it goes.

    preprocessing: of the task, which may differ from the backbone's. transform: to uint8 pixels, made of it as the
    manifest says. autocast: the context that the trunk runs in. part: images that it runs on at once. indices: which
    images are asked for, all by default; batches then hold no others. run: a compiled `run_layer`. Raises MemtokError
    for a preprocessing that is not the store's.
    """

    def __init__(
        self,
        backbone: Backbone,
        preprocessing: Preprocessing,
        images: ImageSet,
        transform: Transform,
        store: Store,
        *,
        autocast: Callable[[], AbstractContextManager[object]],
        part: int,
        notify: Notify,
        indices: Indices | None = None,
        run: Callable[..., tuple[Tensor, Kept | tuple[()]]] | None = None,
    ) -> None:
        self.backbone, self.images, self.store, self.notify = backbone, images, store, notify
        self.autocast, self.part, self.layer = autocast, part, run
        self.views = store.manifest.views
        kept = Preprocessing.from_dict(store.manifest.preprocessing)
        if preprocessing != kept:
            difference = preprocessing.difference(kept)
            raise MemtokError(
                f"expected traces of the task's preprocessing in {store.where}, found {difference}; describe the store "
                "with the preprocessing of the task"
            )
        self.normalise = Normaliser(preprocessing)
        self.samples = Samples(images, transform, store.manifest.seed or 0)
        self.indices = np.arange(len(images)) if indices is None else indices
        self.device = backbone.device
        self.rooms: dict[int, KeptBatch] = {}
        # Of every record: whether its trace was looked at here, and whether half precision can hold it.
        self.tested, self.fit = (np.zeros(store.manifest.records, dtype=bool) for _ in range(2))

    def check_content(self) -> None:
        """MemtokError if an image is no longer what its trace was made from; checks a few, evenly spaced."""
        manifest = self.store.manifest
        kept = np.flatnonzero(self.store.kept_flags())
        kept = kept[spread(len(kept))]
        for row in kept[self.store.usable(kept)]:
            view, index = divmod(int(row), manifest.images)
            if pixel_hash(self.decoded([(view, index)])[0]) != self.store.pixels(int(row)):
                raise MemtokError(
                    f"expected image {self.images.identity(index)!r} as it was when its trace was kept, found other "
                    f"pixels; delete the traces in {self.store.where}, or name another folder"
                )

    def batches(
        self,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        start_step: int = 0,
        steps: int | None = None,
        workers: int = 0,
    ) -> KeptBatches:
        """As `memtok.data.batches`, with traces in the place of images: epoch e shows view e % views.

        A batch is valid until the next one is asked for. Images are decoded, by `workers` processes, only where a
        trace is missing.
        """
        plan = BatchPlan(len(self.indices), batch_size, seed, shuffle, start_step, steps, False, (0, 1))
        plan.check()
        per_epoch = steps_per_epoch(plan.images, batch_size)
        end = per_epoch if steps is None else steps
        step = start_step
        with ThreadPoolExecutor(1, thread_name_prefix="memtok-read-ahead") as pool:
            while step < end:
                stop, needs_images = self.stretch(step, per_epoch, end)
                part = replace(plan, start_step=step, steps=stop)
                yield from self.run(part, workers if needs_images else None, pool)
                step = stop

    def stretch(self, step: int, per_epoch: int, end: int) -> tuple[int, bool]:
        """Up to which step one way of loading is right, and whether images have to be decoded until then."""
        epoch = step // per_epoch
        rows = self.rows_of([(epoch % self.views, int(index)) for index in self.indices])
        if self.store.kept_flags()[rows].all():
            return min(end, (epoch + 1) * per_epoch), False
        if not self.store.writable(rows).all():
            return end, True  # some are computed every time
        return min(end, max(epoch + 1, self.views) * per_epoch), True

    def keys_of(self, batch: Sequence[Key]) -> list[Key]:
        """(view, index in the image set) of the images of a batch."""
        return [(epoch % self.views, int(self.indices[index])) for epoch, index in batch]

    def rows_of(self, keys: Sequence[Key]) -> Rows:
        """The records of these images."""
        return np.array([view * len(self.images) + index for view, index in keys], dtype=np.int64)

    def run(self, plan: BatchPlan, workers: int | None, pool: ThreadPoolExecutor) -> KeptBatches:
        """The batches of a plan. workers: None where no image is expected to be missing."""
        wanted = (self.missing_of(keys) for keys in map(self.keys_of, plan))
        loaded = None if workers is None else load(self.samples, wanted, workers)
        ahead = map(self.keys_of, plan)
        fetching = self.begin(next(ahead), 0, pool)
        for number, _ in enumerate(plan):
            fetched = fetching()
            following = next(ahead, None)
            if following is not None:
                fetching = self.begin(following, number + 1, pool)
            images: dict[Key, Tensor] = {}
            if loaded is not None:
                pixels, _, indices = next(loaded)
                view = fetched.keys[0][0]  # all of a batch are of one epoch
                images = {(view, index): one for index, one in zip(indices.tolist(), pixels, strict=True)}
            batch = self.completed(fetched, images)
            indices = torch.tensor([index for _, index in fetched.keys])
            labels = torch.from_numpy(self.images.labels[indices.numpy()])
            yield batch, labels if self.device.type == "cpu" else labels.pin_memory(), indices

    def missing_of(self, keys: list[Key]) -> list[Key]:
        """Those of which the trace is missing."""
        return [key for key, there in zip(keys, self.store.usable(self.rows_of(keys)), strict=True) if not there]

    def begin(self, keys: list[Key], number: int, pool: ThreadPoolExecutor) -> Callable[[], Fetched]:
        """Begins to read batch `number`; the function that comes back gives it.

        From main memory or a disk it is read while the batch before is trained on. Where it lies on the GPU, reading is
        a few kernels that are started when the batch is due, by the thread and in the stream that then use it.
        """
        if self.store.memory.type == "cpu":
            return pool.submit(self.fetch, keys, number).result
        return partial(self.fetch, keys, number)

    def fetch(self, keys: list[Key], number: int) -> Fetched:
        """Reads what is kept of a batch."""
        rows = self.rows_of(keys)
        batch = self.room(len(keys), number)
        there = self.store.usable(rows)
        at = np.flatnonzero(there)
        self.store.read(rows[at], batch, at)
        return Fetched(keys, rows, batch, there)

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

    def completed(self, fetched: Fetched, images: dict[Key, Tensor]) -> KeptBatch:
        """The batch with what was missing computed, and kept where it may be."""
        missing = np.flatnonzero(~fetched.there)
        if len(missing):  # may have been written since it was looked for
            late = missing[self.store.usable(fetched.rows[missing])]
            self.store.read(fetched.rows[late], fetched.batch, late)
            missing = np.setdiff1d(missing, late)
        if len(missing):
            # Where the others are computed. What was read lies in pinned memory, and the copy is asynchronous.
            fetched = replace(fetched, batch=fetched.batch.to(self.device, non_blocking=True))
        rows = fetched.rows[missing]
        keep = self.store.writable(rows) & ~self.store.unfit(rows)
        beyond = self.compute(fetched, missing[keep], images, keep=True)
        # Apart from the others, so that these make up the same batches whether the others are kept yet or not.
        rest = np.union1d(missing[~keep], [place for place, _ in beyond]).astype(np.int64)
        exact = self.compute(fetched, rest, images, keep=False)
        self.report(len(exact))
        if not exact:
            return fetched.batch
        batch = KeptBatch({name: values.float() for name, values in fetched.batch.tensors.items()})
        for place, record in exact:
            for name, values in batch.tensors.items():
                values[place] = record.tensors[name]
        return batch

    def compute(
        self, fetched: Fetched, places: Rows, images: dict[Key, Tensor], *, keep: bool
    ) -> list[tuple[int, KeptBatch]]:
        """Runs the trunk on some images of a batch and puts the traces in their places.

        Returns place and trace as it was computed of those that half precision cannot hold.
        """
        beyond: list[tuple[int, KeptBatch]] = []
        for start in range(0, len(places), self.part):
            at = places[start : start + self.part]
            pixels = self.decoded([fetched.keys[place] for place in at], images)
            exact = self.traced(pixels)
            rounded = KeptBatch(
                {name: exact.tensors[name].to(values.dtype) for name, values in fetched.batch.tensors.items()}
            )
            index = sent(torch.from_numpy(at), self.device)
            for name, values in fetched.batch.tensors.items():
                values[index] = rounded.tensors[name]
            rows = fetched.rows[at]
            if keep or not self.tested[rows].all():  # once for each, because this waits for a GPU
                self.fit[rows] = within_range(rounded).cpu().numpy()
                self.tested[rows] = True
            fit = self.fit[rows]
            if keep:
                self.store.write(rows, rounded, [pixel_hash(one) for one in pixels], fit)
            beyond += [(int(at[place]), exact[place]) for place in np.flatnonzero(~fit)]
        return beyond

    def traced(self, pixels: Tensor) -> KeptBatch:
        """The traces of pixels (b, 3, H, W), on the device of the backbone, in the precision that it computes in."""
        images = self.normalise(sent(pixels, self.device))
        with self.autocast():
            trace = self.backbone.trace(images, keep=INPUTS, outputs=True, run=self.layer)
        assert trace.features is not None
        return KeptBatch({"features": trace.features, "inputs": torch.stack(trace.inputs, dim=1)})

    def decoded(self, keys: Sequence[Key], images: dict[Key, Tensor] | None = None) -> Tensor:
        """The pixels (b, 3, H, W) of these keys: those that are at hand, and others read here."""
        at_hand = dict(images or {})
        absent = [key for key in keys if key not in at_hand]
        if absent:
            found = self.samples.__getitems__(absent)
            if not isinstance(found, list):
                raise found.error
            at_hand |= {key: pixels for key, (pixels, _, _) in zip(absent, found, strict=True)}
        return torch.stack([at_hand[key] for key in keys])

    def report(self, beyond: int) -> None:
        """Says once that images are beyond half precision, and once that nothing can be written any more."""
        told = self.store.told
        if beyond and "beyond" not in told:
            told.add("beyond")
            self.notify(
                "kept traces: some images are beyond the range of half precision; they are computed at every step"
            )
        trouble = self.store.trouble
        if trouble and "trouble" not in told:
            told.add("trouble")
            self.notify(
                f"kept traces: no more can be written ({trouble}); {self.store.kept:,} of "
                f"{self.store.manifest.records:,} are kept, the others are computed at every step"
            )


@dataclass(frozen=True)
class Fetched:
    """What was read of a batch. there: (B,) which places are filled."""

    keys: list[Key]
    rows: Rows
    batch: KeptBatch
    there: Flags


def within_range(records: KeptBatch) -> Tensor:
    """(b,) bool: whether all numbers of a record are finite after they were rounded."""
    finite = [values.isfinite().flatten(1).all(dim=1) for values in records.tensors.values()]
    return torch.stack(finite).all(dim=0)


def pixel_hash(pixels: Tensor) -> bytes:
    """8 bytes for the pixels (3, H, W) of a transformed image."""
    return hashlib.blake2b(pixels.contiguous().numpy().tobytes(), digest_size=8).digest()
