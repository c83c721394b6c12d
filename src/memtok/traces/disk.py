"""Traces on disk: a folder that outlives the process, is safe against a kill, and may be read by several at once.

    manifest.json     what the traces are of (manifest.py)
    marks.bin         16 bytes per record: checksum, state, hash of the transformed pixels
    traces-00000.bin  memory-mapped shards of at most about 1 GiB, sparse: what is not written takes no room
    lock              held by the process that writes; others read what is there

A record's data is flushed before its mark is written, so a mark never speaks of data that is not there. Whatever
happens to the disk besides, the checksum, looked at once per process, tells; a record that does not match counts as
missing and is written again.
"""

from __future__ import annotations

import os
import re
import threading
import time
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from memtok.errors import MemtokError
from memtok.files import atomic_write, first_line
from memtok.traces.manifest import MANIFEST, Manifest
from memtok.traces.record import KeptBatch, record_type
from memtok.traces.store import KEPT, UNFIT, Flags, Notify, Rows, Store

MARK = np.dtype([("checksum", "<u4"), ("state", "<u4"), ("pixels", "V8")])
MARKS, LOCK = "marks.bin", "lock"
PARTS = (f".{MARKS}.*.part", f".{MANIFEST}.*.part")  # temporary files of `atomic_write`
OWN = re.compile(rf"traces-\d+\.bin|validation-[0-9a-f]+|{MARKS}|{LOCK}|{MANIFEST}|\.({MARKS}|{MANIFEST})\.[^.]*\.part")
MOST_WAITING = 2  # batches that wait to be written; then training waits for the disk
MANIFEST_SECONDS = 10.0  # that another process may take to write the manifest of a new folder

flush = getattr(os, "fdatasync", os.fsync)


class DiskStore(Store):
    """Traces in a folder. It is made where it is not there; MemtokError if it holds something else."""

    place = "disk"
    memory = torch.device("cpu")

    def __init__(self, folder: Path, manifest: Manifest, notify: Notify) -> None:
        super().__init__(manifest)
        self.folder, self.where, self.notify = folder, str(folder), notify
        self.record = record_type(manifest.tensors)
        self.lock = FileLock(folder / LOCK, thread_local=False)
        self.writes = False
        self.waiting: list[Future[None]] = []
        self.pool: ThreadPoolExecutor | None = None
        self.guard = threading.Lock()  # of the open shards
        self.shards: dict[int, NDArray[np.uint8]] = {}
        # Of this process: records being written; those whose checksum was right; those that turned out damaged.
        self.pending, self.checked, self.damaged = (np.zeros(manifest.records, dtype=bool) for _ in range(3))
        try:
            self.open()
        except BaseException:
            self.lock.release()
            raise
        self.reused = self.kept

    # Opening

    def open(self) -> None:
        """Takes the lock if it is free, and compares or writes the manifest. A refused folder is left as it was."""
        known = (self.folder / MANIFEST).exists()
        try:
            if known:
                self.manifest.check_same(self.folder)
            else:
                self.check_unused()
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=0)
            self.writes = True
        except Timeout:
            self.notify(f"traces in {self.folder}: another run is filling them; this one reads what is there")
        except OSError as error:
            if not known:
                raise MemtokError(
                    f"expected a folder for traces that can be written, found {self.folder}: {first_line(error)}; name "
                    "another",
                    argument="trace_dir",
                ) from error
            self.notify(f"traces in {self.folder} cannot be added to ({first_line(error)}); this run reads them")
        if self.writes:
            self.prepare()
        elif not self.await_manifest():
            self.marks = np.zeros(self.manifest.records, dtype=MARK)  # a folder that never became a store
            return
        self.manifest.check_same(self.folder)  # another process may have written it just now
        self.marks = self.open_marks()

    def check_unused(self) -> None:
        """MemtokError if a folder without manifest has anything that is not of a store."""
        if not self.folder.exists():
            return
        foreign = sorted(path.name for path in self.folder.iterdir() if not OWN.fullmatch(path.name))
        if foreign:
            raise MemtokError(
                f"expected an empty folder for traces, or one with {MANIFEST}, found {foreign[0]!r} in {self.folder}; "
                "name another",
                argument="trace_dir",
            )

    def prepare(self) -> None:
        """Makes a new folder ready, the manifest last; removes what a killed process left of its temporary files.

        The folder is known to be a store, or to have nothing that is not of one.
        """
        for remains in (path for pattern in PARTS for path in self.folder.glob(pattern)):
            remains.unlink(missing_ok=True)
        if (self.folder / MANIFEST).exists():
            return
        # Real zeros, no hole: later there is room for every mark.
        with atomic_write(self.folder / MARKS) as temporary, temporary.open("wb") as stream:
            np.zeros(self.manifest.records, dtype=MARK).tofile(stream)
        self.manifest.write(self.folder)

    def await_manifest(self) -> bool:
        """Whether there is a manifest; the process that has the lock may be about to write it."""
        end = time.monotonic() + MANIFEST_SECONDS
        while not (self.folder / MANIFEST).exists():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def open_marks(self) -> NDArray[Any]:
        """The marks (records,), mapped, so that what another process writes is seen."""
        path, size = self.folder / MARKS, self.manifest.records * MARK.itemsize
        found = path.stat().st_size if path.exists() else 0
        if found < size and not self.writes:
            return np.zeros(self.manifest.records, dtype=MARK)
        if found < size:
            with path.open("ab") as stream:
                stream.write(bytes(size - found))
        if self.writes:
            self.marks_file = os.open(path, os.O_WRONLY)
        return np.memmap(path, dtype=MARK, mode="r", shape=(self.manifest.records,))

    # Reading

    def usable(self, rows: Rows) -> Flags:
        if self.pending[rows].any():
            self.drain()
        found: Flags = (self.marks["state"][rows] == KEPT) & ~self.damaged[rows]
        for place in np.flatnonzero(found):
            found[place] = self.is_whole(int(rows[place]))
        return found

    def is_whole(self, row: int) -> bool:
        """Whether a record that is marked as kept is there; its checksum is verified once."""
        block = self.block(row)
        if block is not None and not self.checked[row]:
            mark = self.marks[row]
            self.checked[row] = checksum(row, mark["pixels"].tobytes(), block) == int(mark["checksum"])
        if block is None or not self.checked[row]:
            self.checked[row], self.damaged[row] = False, True
            return False
        return True

    def unfit(self, rows: Rows) -> Flags:
        found: Flags = self.marks["state"][rows] == UNFIT
        return found

    def read(self, rows: Rows, batch: KeptBatch, at: Rows) -> None:
        targets = {name: values.numpy() for name, values in batch.tensors.items()}
        for row, place in zip(rows, at, strict=True):
            block = self.block(int(row))
            if block is None:
                raise MemtokError(
                    f"expected the traces in {self.folder} to stay while they are used, found a shard cut short; start "
                    "again"
                )
            record = block.view(self.record)[0]
            for name, target in targets.items():
                target[place] = record[name]

    def pixels(self, row: int) -> bytes:
        found: bytes = self.marks["pixels"][row].tobytes()
        return found

    def kept_flags(self) -> Flags:
        self.drain()
        found: Flags = (self.marks["state"] == KEPT) & ~self.damaged
        return found

    def block(self, row: int) -> NDArray[np.uint8] | None:
        """(record bytes,) of a record, mapped; None where its shard ends before it, or is not there."""
        number, place = divmod(row, self.manifest.shard_records)
        path, stride = self.shard_path(number), self.manifest.record_bytes
        try:
            whole = path.stat().st_size // stride  # a mapped page beyond the end of its file would be a bus error
        except OSError:
            return None
        if place >= whole:
            return None
        with self.guard:
            shard = self.shards.get(number)
            if shard is None or place >= len(shard):
                # "c": torch takes writable arrays without a warning; nothing is written through it.
                shard = np.memmap(path, dtype=np.uint8, mode="c", shape=(whole, stride))
                self.shards[number] = shard
        found: NDArray[np.uint8] = shard[place]
        return found

    def shard_path(self, number: int) -> Path:
        """Where the records of a shard lie."""
        return self.folder / f"traces-{number:05d}.bin"

    # Writing

    def writable(self, rows: Rows) -> Flags:
        return super().writable(rows) & (self.writes and self.trouble is None)

    def write(self, rows: Rows, records: KeptBatch, pixels: list[bytes], fit: Flags) -> None:
        marks = np.zeros(len(rows), dtype=MARK)
        marks["state"] = np.where(fit, KEPT, UNFIT)
        blocks: list[NDArray[np.uint8] | None] = []
        packed = np.empty(len(rows), dtype=self.record)
        for name, values in records.tensors.items():
            packed[name] = values.detach().cpu().numpy()  # in one piece from a GPU
        for place, row in enumerate(rows):
            block = packed[place : place + 1].view(np.uint8) if fit[place] else None
            blocks.append(block)
            marks["pixels"][place] = np.void(pixels[place])
            if block is not None:
                marks["checksum"][place] = checksum(int(row), pixels[place], block)
        self.pending[rows] = True
        self.pool = self.pool or ThreadPoolExecutor(1, thread_name_prefix="memtok-traces")
        self.waiting.append(self.pool.submit(self.save, rows.copy(), blocks, marks))
        while len(self.waiting) > MOST_WAITING:
            self.waiting.pop(0).result()

    def save(self, rows: Rows, blocks: list[NDArray[np.uint8] | None], marks: NDArray[Any]) -> None:
        """Writes and flushes the data, shard by shard, then the marks. In a thread of its own."""
        try:
            if self.trouble is None:
                shards = rows // self.manifest.shard_records
                for number in np.unique(shards):
                    places = [place for place in np.flatnonzero(shards == number) if blocks[place] is not None]
                    self.save_shard(int(number), [(int(rows[place]), blocks[place]) for place in places])
                for row, mark in zip(rows, marks, strict=True):
                    write_at(self.marks_file, mark.tobytes(), int(row) * MARK.itemsize)
                self.checked[rows], self.damaged[rows] = True, False
        except OSError as error:
            self.trouble = first_line(error)
        finally:
            self.pending[rows] = False

    def save_shard(self, number: int, records: list[tuple[int, Any]]) -> None:
        """Writes records of one shard and flushes them."""
        if not records:
            return
        manifest = self.manifest
        stride, first = manifest.record_bytes, number * manifest.shard_records
        size = min(manifest.shard_records, manifest.records - first) * stride
        handle = os.open(self.shard_path(number), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if os.fstat(handle).st_size < size:
                os.ftruncate(handle, size)  # sparse
            for row, block in records:
                write_at(handle, block, (row - first) * stride)
            flush(handle)
        finally:
            os.close(handle)

    def drain(self) -> None:
        """Waits until all that was given to `write` is written."""
        for job in list(self.waiting):
            job.result()

    def close(self) -> None:
        self.drain()
        if self.pool is not None:
            self.pool.shutdown()
            self.pool = None
        if self.writes and hasattr(self, "marks_file"):
            with suppress(OSError):  # marks that are lost cost a pass of the trunk, no more
                flush(self.marks_file)
            os.close(self.marks_file)
            del self.marks_file
        self.writes = False
        self.shards.clear()
        self.lock.release()


def checksum(row: int, pixels: bytes, block: NDArray[np.uint8]) -> int:
    """CRC-32 over the number of a record, the hash of its image, and its bytes."""
    return zlib.crc32(block.data, zlib.crc32(row.to_bytes(8, "little") + pixels))


def write_at(handle: int, content: Any, offset: int) -> None:
    """Writes all of `content` at `offset` of an open file; OSError where the disk is full."""
    view = memoryview(content).cast("B")
    while len(view):
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
