"""Traces on disk: a folder that outlives the process, is safe against a kill, and may be read by several at once.

    manifest.json     what the traces are of (manifest.py)
    traces-00000.bin  shards of some 256 MiB: records, one after the other, and behind them an index of 24 bytes each
    lock              held by the process that writes, as long as its pass takes

A shard is complete or it is not there: it is written under a temporary name, flushed, renamed, and never changed. So a
pass that is killed loses one shard at most. Every record has a checksum, which is verified once per process before it
is read. A record that does not match counts as missing and is written again, into a new shard: later shards win.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from memtok.errors import MemtokError
from memtok.files import first_line, flush_folder
from memtok.traces.manifest import MANIFEST, Manifest
from memtok.traces.record import KeptBatch, record_type
from memtok.traces.store import KEPT, MISSING, UNFIT, Group, Notify, Report, Rows, Store

INDEX = np.dtype([("row", "<i8"), ("pixels", "V8"), ("state", "<u4"), ("checksum", "<u4")])
SHARD_BYTES = 1 << 28  # of records in a shard, at least; a group of records is never split
VERIFIED_AT_ONCE = 256  # records, by threads
LOCK = "lock"
SHARD = re.compile(r"traces-(\d+)\.bin")
REMAINS = re.compile(rf"\.traces-\d+\.bin\.part|\.{MANIFEST}\.[^.]*\.part")  # temporary files of a killed process
UNUSED = re.compile(rf"validation-[0-9a-f]+|{LOCK}|{REMAINS.pattern}")  # what a folder without manifest may hold


class DiskStore(Store):
    """Traces in a folder. It is made where it is not there; MemtokError if it holds something else."""

    place = "disk"
    memory = torch.device("cpu")

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.folder, self.where = folder, str(folder)
        self.lock = FileLock(folder / LOCK, thread_local=False)
        self.record = record_type(manifest.tensors)
        self.shards: dict[int, NDArray[Any]] = {}  # their records, mapped
        self.new: NewShard | None = None
        # Of every record: its line of the index, where it lies, and whether its checksum was verified.
        self.index = np.zeros(manifest.records, dtype=INDEX)
        self.state, self.pixels = self.index["state"], self.index["pixels"]
        self.shard_of, self.place_of = (np.zeros(manifest.records, dtype=np.int32) for _ in range(2))
        self.verified = np.zeros(manifest.records, dtype=bool)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / MANIFEST).exists():
                manifest.check_same(folder)
            else:
                self.check_unused()
                (folder / LOCK).touch()  # fails now where the pass would
        except OSError as error:
            raise MemtokError(
                f"expected a folder for traces that can be written, found {folder}: {first_line(error)}; name another",
                argument="trace_dir",
            ) from error
        self.open_shards()

    def check_unused(self) -> None:
        """MemtokError if a folder without manifest has anything that is not of a store."""
        foreign = sorted(path.name for path in self.folder.iterdir() if not UNUSED.fullmatch(path.name))
        if foreign:
            raise MemtokError(
                f"expected an empty folder for traces, or one with {MANIFEST}, found {foreign[0]!r} in {self.folder}; "
                "name another",
                argument="trace_dir",
            )

    def shard_path(self, number: int) -> Path:
        """Where a shard lies."""
        return self.folder / f"traces-{number:05d}.bin"

    # Reading

    def open_shards(self) -> None:
        """Opens the shards that are there and not open yet, in their order."""
        names = [SHARD.fullmatch(path.name) for path in self.folder.iterdir()]
        for number in sorted({int(name[1]) for name in names if name} - self.shards.keys()):
            self.open_shard(number)

    def open_shard(self, number: int) -> Rows:
        """Maps a shard and takes over its index; returns its records. One that was cut short has none."""
        path, size = self.shard_path(number), self.record.itemsize
        count, rest = divmod(path.stat().st_size, size + INDEX.itemsize)
        count = 0 if rest else count
        self.shards[number] = np.memmap(path, self.record, mode="r", shape=(count,)) if count else np.empty(0)
        index = np.fromfile(path, INDEX, count, offset=count * size)
        places = np.flatnonzero(  # a line that is damaged may name anything
            (index["row"] >= 0) & (index["row"] < self.manifest.records) & np.isin(index["state"], (KEPT, UNFIT))
        )
        rows: Rows = index["row"][places]
        self.index[rows], self.shard_of[rows], self.place_of[rows] = index[places], number, places
        self.verified[rows] = False
        return rows

    def verify(self, rows: Rows, report: Report) -> None:
        rows = rows[(self.state[rows] != MISSING) & ~self.verified[rows]]
        with ThreadPoolExecutor() as pool:  # reading and zlib leave Python's lock to others
            for start in range(0, len(rows), VERIFIED_AT_ONCE):
                part = rows[start : start + VERIFIED_AT_ONCE]
                right = np.fromiter(pool.map(self.is_right, part.tolist()), dtype=bool)
                self.state[part[~right]] = MISSING
                self.verified[part] = True
                report(start + len(part), len(rows))

    def is_right(self, row: int) -> bool:
        """Whether a record matches its checksum."""
        shard, place = self.shards[int(self.shard_of[row])], int(self.place_of[row])
        return checksum(self.index[row], shard[place : place + 1]) == int(self.index["checksum"][row])

    def read(self, rows: Rows, batch: KeptBatch, at: Rows) -> None:
        targets = {name: values.numpy() for name, values in batch.tensors.items()}
        for row, place in zip(rows.tolist(), at.tolist(), strict=True):
            shard, source = self.shards[int(self.shard_of[row])], int(self.place_of[row])
            for name, target in targets.items():
                target[place] = shard[name][source]

    # Writing

    @contextmanager
    def filling(self, notify: Notify) -> Iterator[bool]:
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            notify(f"traces in {self.folder}: another run is caching them; this one waits for it")
            self.lock.acquire()
        except OSError as error:
            notify(f"traces in {self.folder} cannot be added to ({first_line(error)}); this run reads them")
        try:
            if self.lock.is_locked:
                self.prepare()
            yield self.lock.is_locked
            self.finish_shard()
        finally:
            self.discard_shard()
            self.lock.release()

    def prepare(self) -> None:
        """Writes the manifest, or compares it; removes what a killed process left; opens what another one wrote."""
        for path in self.folder.iterdir():
            if REMAINS.fullmatch(path.name):
                path.unlink(missing_ok=True)
        if (self.folder / MANIFEST).exists():  # another process may have written it just now
            self.manifest.check_same(self.folder)
        else:
            self.manifest.write(self.folder)
        self.open_shards()

    def write(self, group: Group) -> None:
        try:
            if self.new is None:
                number = max(self.shards, default=-1) + 1
                self.new = NewShard(number, self.shard_path(number))
            self.new.append(group, self.record)
            if self.new.bytes >= SHARD_BYTES:
                self.finish_shard()
        except OSError as error:
            self.trouble = first_line(error)

    def finish_shard(self) -> None:
        """Completes the shard that is being written, if there is one, and opens it."""
        if self.new is None or self.trouble is not None:
            return
        try:
            self.new.finish()
            self.verified[self.open_shard(self.new.number)] = True
            self.new = None
        except OSError as error:
            self.trouble = first_line(error)

    def discard_shard(self) -> None:
        """Removes the shard that is being written, if there is one."""
        if self.new is not None:
            self.new.discard()
            self.new = None

    def close(self) -> None:
        self.shards.clear()


class NewShard:
    """A shard under its temporary name. OSError where it cannot be written."""

    def __init__(self, number: int, path: Path) -> None:
        self.number, self.path = number, path
        self.temporary = path.with_name(f".{path.name}.part")
        self.stream = self.temporary.open("wb")
        self.index: list[NDArray[Any]] = []
        self.bytes = 0

    def append(self, group: Group, record: np.dtype[Any]) -> None:
        """Adds the records of a group."""
        records, lines = np.empty(len(group.rows), dtype=record), np.zeros(len(group.rows), dtype=INDEX)
        for name, values in group.records.tensors.items():
            records[name] = values.numpy()
        lines["row"], lines["pixels"], lines["state"] = group.rows, group.pixels, group.state
        for place, line in enumerate(lines):
            lines["checksum"][place] = checksum(line, records[place : place + 1])
        self.stream.write(records.view(np.uint8).data)
        self.index.append(lines)
        self.bytes += records.nbytes

    def finish(self) -> None:
        """Writes the index, flushes all to the disk, and gives the shard its name."""
        self.stream.write(np.concatenate(self.index).view(np.uint8).data)
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        os.replace(self.temporary, self.path)
        flush_folder(self.path.parent)

    def discard(self) -> None:
        """Removes the temporary file."""
        with suppress(OSError):  # of a full disk, again
            self.stream.close()
        self.temporary.unlink(missing_ok=True)


def checksum(line: Any, record: NDArray[Any]) -> int:
    """CRC-32 over a line of the index, but for the checksum in it, and the bytes of its record."""
    return zlib.crc32(record.view(np.uint8).data, zlib.crc32(line.tobytes()[: -INDEX["checksum"].itemsize]))
