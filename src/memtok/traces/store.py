"""Where traces are kept: the common part of all places, and the two that are memory.

A record is the trace of one image in one view; records are numbered as `Manifest.records` says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
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

MISSING, KEPT, UNFIT = 0, 1, 2  # of a record; unfit: its numbers are beyond half precision


class Store(ABC):
    """Traces of the records of a manifest; none are written before `allow` has said which.

    Attributes:
        place: "ram", "gpu" or "disk". allowed: (records,) which may be written. reused: how many were there at first.
        memory: where a batch is put together before it is used: "cpu", or the GPU that holds the records.
        allotted: whether `allow` was called. told: what its user was told already.
    """

    place: str
    where: str
    memory: torch.device

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.allowed: Flags = np.zeros(manifest.records, dtype=bool)
        self.reused = 0
        self.allotted = False
        self.told: set[str] = set()
        self.trouble: str | None = None

    @abstractmethod
    def usable(self, rows: Rows) -> Flags:
        """Which of the records can be read. May read and check them, which brings them nearer."""

    @abstractmethod
    def unfit(self, rows: Rows) -> Flags:
        """Which of the records are known to be beyond half precision: they are computed each time."""

    @abstractmethod
    def read(self, rows: Rows, batch: KeptBatch, at: Rows) -> None:
        """Copies usable records to the places `at` (k,) of a batch.

        The batch lies in `memory`. On a GPU it is asynchronous, in the order of the caller's stream.
        """

    @abstractmethod
    def write(self, rows: Rows, records: KeptBatch, pixels: list[bytes], fit: Flags) -> None:
        """Keeps k records that are missing, on any device.

        pixels: 8 bytes for each, a hash of the transformed image. fit: where False, the record is only marked as unfit.
        """

    @abstractmethod
    def kept_flags(self) -> Flags:
        """Which of all records are kept, by their marks; a damaged one may be among them."""

    @abstractmethod
    def pixels(self, row: int) -> bytes:
        """The hash of the image that a kept record was made from."""

    @property
    def kept(self) -> int:
        """Records that can be read."""
        return int(self.kept_flags().sum())

    def allow(self, rows: Rows, limit: int) -> int:
        """Lets the first of these records be written until the store has `limit` bytes; returns how many are kept then.

        Records that are kept already count, whichever they are, and may be written anew if they turn out damaged. Only
        the first call does this; later ones, of other runs with the same store, count what it came to for their rows.
        """
        if not self.allotted:
            self.allot(rows, limit)
            self.allotted = True
        return int(self.allowed[rows].sum())

    def allot(self, rows: Rows, limit: int) -> None:
        """Sets `allowed`, as `allow` says."""
        there = self.kept_flags()
        room = max(0, limit // self.manifest.record_bytes - int(there.sum()))
        self.allowed = there.copy()
        self.allowed[rows[~there[rows]][:room]] = True

    def writable(self, rows: Rows) -> Flags:
        """Which of the records may be written."""
        found: Flags = self.allowed[rows]
        return found

    @property
    def bytes(self) -> int:
        """What the kept records take."""
        return self.kept * self.manifest.record_bytes

    @abstractmethod
    def close(self) -> None:
        """Ends the use of the store; what was written outlives it if the place does."""


class MemoryStore(Store):
    """Traces in main memory ("ram") or in that of a GPU ("gpu"), gone with the process."""

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        super().__init__(manifest)
        self.place = self.where = "ram" if device.type == "cpu" else "gpu"
        self.memory = device
        self.state = np.zeros(manifest.records, dtype=np.uint8)
        self.hashes = np.zeros(manifest.records, dtype="V8")

    def allot(self, rows: Rows, limit: int) -> None:
        """Takes the memory for these records; MemtokError if it is not there."""
        manifest = self.manifest
        super().allot(rows, limit)
        count = int(self.allowed.sum())
        self.slots = np.cumsum(self.allowed) - 1  # where the record lies
        try:
            self.kept_records = KeptBatch.empty(manifest.tensors, count, self.memory)
        except RuntimeError as error:  # torch's way to say that memory is out
            size = shown_bytes(count * manifest.record_bytes)
            raise MemtokError(
                f"expected {size} of memory on {self.memory} for traces, found less; lower the limit of the traces, or "
                "keep them on disk"
            ) from error

    def usable(self, rows: Rows) -> Flags:
        found: Flags = self.state[rows] == KEPT
        return found

    def unfit(self, rows: Rows) -> Flags:
        found: Flags = self.state[rows] == UNFIT
        return found

    def read(self, rows: Rows, batch: KeptBatch, at: Rows) -> None:
        slots = self.slots[rows]
        on_cpu = self.memory.type == "cpu"
        numbers, places = (sent(torch.from_numpy(part), self.memory) for part in (slots, at))
        for name, kept in self.kept_records.tensors.items():
            if on_cpu:
                # By numpy: another thread may do this ahead, and must not take torch's threads from the training.
                source, target = kept.numpy(), batch.tensors[name].numpy()
                for slot, place in zip(slots, at, strict=True):
                    target[place] = source[slot]
            else:
                batch.tensors[name][places] = kept.index_select(0, numbers)

    def write(self, rows: Rows, records: KeptBatch, pixels: list[bytes], fit: Flags) -> None:
        self.state[rows[~fit]] = UNFIT
        for row, found in zip(rows, pixels, strict=True):
            self.hashes[row] = np.void(found)
        numbers = sent(torch.from_numpy(self.slots[rows[fit]]), self.memory)
        chosen = sent(torch.from_numpy(np.flatnonzero(fit)), records.features.device)
        for name, kept in self.kept_records.tensors.items():
            kept[numbers] = records.tensors[name][chosen].to(self.memory)
        self.state[rows[fit]] = KEPT

    def kept_flags(self) -> Flags:
        found: Flags = self.state == KEPT
        return found

    def pixels(self, row: int) -> bytes:
        found: bytes = self.hashes[row].tobytes()
        return found

    def close(self) -> None:
        pass  # the memory goes with the last reference


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of main memory on `device`, where what is started next may use it.

    To a GPU it goes from pinned memory; from any other, the processor would wait until the GPU has done all that it was
    given before.
    """
    if device.type == "cpu" or not values.numel():
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


Notify = Callable[[str], Any]
"""Receives one line that the user should know."""
