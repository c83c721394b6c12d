"""What the tests of kept traces share: pictures in memory, and stores and readers over them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memtok.backbone import Backbone
from memtok.data.sources import ArrayStore, ImageSet
from memtok.data.transforms import training_pixels
from memtok.preprocessing import Preprocessing
from memtok.traces import DiskStore, KeptBatch, Manifest, MemoryStore, Store, TraceReader, describe

COUNT = 10


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


def disk_store(
    folder: Path, manifest: Manifest, records: int | None = None, said: list[str] | None = None
) -> DiskStore:
    """A store in `folder` that may hold so many records, all by default; what it says goes into `said`."""
    store = DiskStore(folder, manifest, (said if said is not None else []).append)
    allow(store, records)
    return store


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
    manifest = store.manifest
    preprocessing = more.pop("preprocessing", Preprocessing.from_dict(manifest.preprocessing))
    transform = training_pixels(preprocessing, manifest.augment, manifest.flip)
    notify = (said if said is not None else []).append
    settings: dict[str, Any] = {"autocast": nullcontext, "part": 64, "notify": notify} | more
    return TraceReader(backbone, preprocessing, images, transform, store, **settings)


def everything(reader: TraceReader, **arguments: Any) -> list[tuple[torch.Tensor, torch.Tensor, list[int]]]:
    """Copies of all batches: inputs, features, indices."""
    settings: dict[str, Any] = {"batch_size": 4, "shuffle": True, "seed": 3} | arguments
    return [
        (batch.inputs.clone(), batch.features.clone(), indices.tolist())
        for batch, _, indices in reader.batches(**settings)
    ]


def records_of(manifest: Manifest, count: int, seed: int = 0) -> tuple[KeptBatch, list[bytes]]:
    """Records with random numbers, and hashes, to write."""
    generator = torch.Generator().manual_seed(seed)
    records = KeptBatch.empty(manifest.tensors, count)
    for values in records.tensors.values():
        values.copy_(torch.randn(values.shape, generator=generator))
    return records, [bytes([seed, index] * 4) for index in range(count)]
