"""What the tests of cached traces share: pictures in memory, and stores and readers over them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memtok.backbone import Backbone
from memtok.data.sources import ArrayStore, ImageSet
from memtok.preprocessing import Preprocessing
from memtok.traces import DiskStore, KeptBatch, Manifest, MemoryStore, Store, TraceReader, describe
from memtok.traces.store import Group

COUNT = 10
ORDER: dict[str, Any] = {"batch_size": 4, "shuffle": True, "seed": 3}


def pictures(count: int = COUNT, seed: int = 0) -> ImageSet:
    """Random grey pictures of 8 x 8 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    return ImageSet(ArrayStore(pixels, "train"), np.arange(count), np.arange(count) % 3)


def manifest_of(
    backbone: Backbone, images: ImageSet, preprocessing: Preprocessing | None = None, **changes: Any
) -> Manifest:
    """Of images that are not varied, unless told otherwise. preprocessing: the backbone's by default."""
    preprocessing = preprocessing or backbone.preprocessing
    settings: dict[str, Any] = {"augment": "none", "flip": False, "seed": 0, "views": 1, "autocast": None}
    settings |= changes
    return describe(backbone, preprocessing, images, **settings)


def disk_store(folder: Path, manifest: Manifest, records: int | None = None) -> DiskStore:
    """A store in `folder` that may hold so many records, all by default."""
    store = DiskStore(folder, manifest)
    allow(store, records)
    return store


def make_folder(folder: Path, manifest: Manifest) -> None:
    """Makes a store on disk without records."""
    store = disk_store(folder, manifest)
    with store.filling([].append) as writable:
        assert writable
    store.close()


def ram_store(manifest: Manifest, records: int | None = None) -> MemoryStore:
    """A store in main memory that may hold so many records, all by default."""
    store = MemoryStore(manifest, torch.device("cpu"))
    allow(store, records)
    return store


def allow(store: Store, records: int | None) -> None:
    """Lets a store hold so many records, all by default."""
    count = store.manifest.records if records is None else records
    store.allow(np.arange(store.manifest.records), count * store.manifest.record_bytes)


def reader_of(
    backbone: Backbone, images: ImageSet, store: Store, said: list[str] | None = None, **more: Any
) -> TraceReader:
    """A reader of images as the manifest of the store varies them."""
    notify = (said if said is not None else []).append
    settings: dict[str, Any] = {"autocast": nullcontext, "part": 64, "notify": notify} | more
    return TraceReader(backbone, images, store, **settings)


def fill(reader: TraceReader, workers: int = 0, **arguments: Any) -> list[tuple[str, int, int]]:
    """One pass for the batches of ORDER, unless told otherwise; what was said of its progress."""
    said: list[tuple[str, int, int]] = []
    plan = reader.plan(**(ORDER | arguments))
    reader.fill(plan, workers, lambda what, done, total: said.append((what, done, total)))
    return said


def read(reader: TraceReader, workers: int = 0, **arguments: Any) -> list[tuple[torch.Tensor, torch.Tensor, list[int]]]:
    """Copies of all batches: inputs, features, indices."""
    return [
        (batch.inputs.clone(), batch.features.clone(), indices.tolist())
        for batch, _, indices in reader.batches(reader.plan(**(ORDER | arguments)), workers)
    ]


def everything(
    reader: TraceReader, workers: int = 0, **arguments: Any
) -> list[tuple[torch.Tensor, torch.Tensor, list[int]]]:
    """The same after a pass, as in a run."""
    fill(reader, workers, **arguments)
    return read(reader, workers, **arguments)


def group_of(manifest: Manifest, rows: list[int], seed: int = 0, fit: list[bool] | None = None) -> Group:
    """Records with random numbers, and hashes, to write."""
    generator = torch.Generator().manual_seed(seed)
    records = KeptBatch.empty(manifest.tensors, len(rows))
    for values in records.tensors.values():
        values.copy_(torch.randn(values.shape, generator=generator))
    pixels = np.frombuffer(b"".join(bytes([seed, index] * 4) for index in range(len(rows))), dtype="V8")
    return Group(np.array(rows), records, pixels, np.array([True] * len(rows) if fit is None else fit))
