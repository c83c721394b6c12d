"""Kept traces: the trunk's features of each image in all layers, cached in memory, on a GPU or on disk.

The trunk is frozen, so its trace of an image is always the same: one pass before training caches it, and all epochs,
runs and tasks read it instead of running the trunk again.
"""

from __future__ import annotations

from memtok.display import shown_bytes
from memtok.traces.disk import DiskStore
from memtok.traces.manifest import Manifest, describe
from memtok.traces.opened import OpenStores
from memtok.traces.reader import TraceReader
from memtok.traces.record import NO_NEEDS, KeptBatch, Needs
from memtok.traces.sizes import default_limit
from memtok.traces.store import MemoryStore, Store

__all__ = [
    "NO_NEEDS",
    "DiskStore",
    "KeptBatch",
    "Manifest",
    "MemoryStore",
    "Needs",
    "OpenStores",
    "Store",
    "TraceReader",
    "default_limit",
    "describe",
    "shown_bytes",
]
