"""Where traces are cached: what all places have in common, and the two that are memory.

A record is the trace of one image in one view; records are numbered as `Manifest.records` says. `allow` decides once
which of them a store may hold. One pass before training writes those that are missing (`filling`, `write`); after it
they are only read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memtok.display import shown_bytes
from memtok.errors import MemtokError
from memtok.traces.manifest import Manifest
from memtok.traces.record import KeptBatch

Rows = NDArray[np.int64]
"""Numbers of records, (k,)."""

Flags = NDArray[np.bool_]
"""One per row, (k,)."""

Notify = Callable[[str], Any]
"""Receives one line that the user should know."""

Report = Callable[[int, int], Any]
"""Receives how many records are done, and of how many."""

MISSING, KEPT, UNFIT = 0, 1, 2  # of a record; unfit: beyond the range of half precision, so computed at every step


@dataclass(frozen=True)
class Group:
    """Records that were computed together: their numbers, tensors in the precision of the store, hashes of the images.

    pixels: (k,) of 8 bytes. fit: (k,) whether all numbers of a record are within its precision.
    """

    rows: Rows
    records: KeptBatch
    pixels: NDArray[Any]
    fit: Flags

    @property
    def state(self) -> NDArray[np.uint8]:
        """(k,) KEPT or UNFIT."""
        return np.where(self.fit, KEPT, UNFIT).astype(np.uint8)


class Store(ABC):
    """Traces of the records of a manifest.

    Attributes:
        place: "ram", "gpu" or "disk". where: the folder on disk, else the place.
        memory: where a batch is put together before it is used: "cpu", or the GPU that holds the records.
        state: (records,) MISSING, KEPT or UNFIT. pixels: (records,) 8 bytes, the hash of the transformed image.
        allowed: (records,) which ones it may hold; None before `allow`.
        trouble: why nothing can be written any more, None if it can. told: what the user was told already.
    """

    place: str
    where: str
    memory: torch.device

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.state: NDArray[Any] = np.zeros(manifest.records, dtype=np.uint8)
        self.pixels: NDArray[Any] = np.zeros(manifest.records, dtype="V8")
        self.allowed: Flags | None = None
        self.trouble: str | None = None
        self.told: set[str] = set()

    def usable(self, rows: Rows) -> Flags:
        """Which of the records can be read."""
        found: Flags = self.state[rows] == KEPT
        return found

    def missing(self, rows: Rows) -> Rows:
        """Those of the records that are not there and may be written."""
        assert self.allowed is not None
        missing: Rows = rows[(self.state[rows] == MISSING) & self.allowed[rows]]
        return missing

    @property
    def kept(self) -> int:
        """Records that can be read."""
        return int((self.state == KEPT).sum())

    @property
    def bytes(self) -> int:
        """What the kept records take."""
        return self.kept * self.manifest.record_bytes

    def allow(self, rows: Rows, limit: int) -> int:
        """Lets the first of these records be written until the store has `limit` bytes; returns how many it may hold.

        Records that are there already count, whichever they are, and may be written anew if they turn out damaged. Only
        the first call does this; later ones, of other runs with the same store, count what it came to for their rows.
        """
        if self.allowed is None:
            there: Flags = self.state != MISSING
            room = max(0, limit // self.manifest.record_bytes - int(there.sum()))
            self.allowed = there.copy()
            self.allowed[rows[~there[rows]][:room]] = True
        return int(self.allowed[rows].sum())

    @abstractmethod
    def verify(self, rows: Rows, report: Report) -> None:
        """Compares these records with their checksums, once per process; damaged ones are missing from then on."""

    @contextmanager
    def filling(self, notify: Notify) -> Iterator[bool]:
        """A block in which records are written; gives whether they can be. Waits while another process is in one."""
        yield True

    @abstractmethod
    def write(self, group: Group) -> None:
        """Keeps missing records, in a block of `filling`. Their tensors lie in `memory`."""

    @abstractmethod
    def read(self, rows: Rows, batch: KeptBatch, at: Rows) -> None:
        """Copies usable records to the places `at` (k,) of a batch.

        The batch lies in `memory`. On a GPU it is asynchronous, in the order of the caller's stream.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends the use of the store; what was written outlives it if the place does."""


class MemoryStore(Store):
    """Traces in main memory ("ram") or in that of a GPU ("gpu"), gone with the process."""

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        super().__init__(manifest)
        self.place = self.where = "ram" if device.type == "cpu" else "gpu"
        self.memory = device

    def allow(self, rows: Rows, limit: int) -> int:
        first = self.allowed is None
        count = super().allow(rows, limit)
        if first:
            self.allocate()
        return count

    def allocate(self) -> None:
        """Takes the memory for all records that it may hold; MemtokError if there is less."""
        assert self.allowed is not None
        count = int(self.allowed.sum())
        self.slots = np.cumsum(self.allowed) - 1  # where the record lies
        try:
            self.records = KeptBatch.empty(self.manifest.tensors, count, self.memory)
        except RuntimeError as error:  # torch's way to say that memory is out
            size = shown_bytes(count * self.manifest.record_bytes)
            raise MemtokError(
                f"expected {size} of memory on {self.memory} for traces, found less; lower the limit of the traces, or "
                "keep them on disk"
            ) from error

    def verify(self, rows: Rows, report: Report) -> None:
        """Memory is trusted."""

    def write(self, group: Group) -> None:
        slots = torch.from_numpy(self.slots[group.rows]).to(self.memory)
        for name, values in self.records.tensors.items():
            values[slots] = group.records.tensors[name]
        self.pixels[group.rows] = group.pixels
        self.state[group.rows] = group.state

    def read(self, rows: Rows, batch: KeptBatch, at: Rows) -> None:
        slots = self.slots[rows]
        if self.memory.type == "cpu":
            # By numpy: another thread may do this ahead, and must not take torch's threads from the training.
            for name, values in self.records.tensors.items():
                source, target = values.numpy(), batch.tensors[name].numpy()
                for slot, place in zip(slots, at, strict=True):
                    target[place] = source[slot]
            return
        numbers, places = (sent(torch.from_numpy(part), self.memory) for part in (slots, at))
        for name, values in self.records.tensors.items():
            batch.tensors[name][places] = values.index_select(0, numbers)

    def close(self) -> None:
        """The memory goes with the last reference."""


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of main memory on `device`, where what is started next may use it.

    To a GPU it goes from pinned memory; from any other, the processor would wait until the GPU has done all that it was
    given before.
    """
    if device.type == "cpu" or not values.numel():
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
