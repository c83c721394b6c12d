"""What is written is read again, whatever happens in between: kills, damage, full disks, other processes."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memtok.backbone import Backbone
from memtok.data.sources import ImageSet
from memtok.errors import MemtokError
from memtok.traces import DiskStore, KeptBatch, Manifest, MemoryStore, Store, disk
from memtok.traces.sizes import default_limit, free_memory, taken_bytes
from tests.tiny import tiny_backbone
from tests.traces.helpers_traces import disk_store, manifest_of, pictures, ram_store, records_of


@pytest.fixture
def manifest(backbone: Backbone, images: ImageSet) -> Manifest:
    """Ten records in shards of four."""
    return replace(manifest_of(backbone, images), shard_records=4)


def put(store: Store, rows: list[int], seed: int = 0, fit: list[bool] | None = None) -> KeptBatch:
    """Writes random records; returns them."""
    records, hashes = records_of(store.manifest, len(rows), seed)
    store.write(np.array(rows), records, hashes, np.array(fit if fit is not None else [True] * len(rows)))
    return records


def got(store: Store, rows: list[int]) -> KeptBatch:
    """Reads records."""
    batch = KeptBatch.empty(store.manifest.tensors, len(rows))
    store.read(np.array(rows), batch, np.arange(len(rows)))
    return batch


def same(one: KeptBatch, other: KeptBatch) -> bool:
    return all(torch.equal(values, other.tensors[name]) for name, values in one.tensors.items())


def there(store: Store) -> list[int]:
    """The records that can be read."""
    return np.flatnonzero(store.usable(np.arange(store.manifest.records))).tolist()


@pytest.fixture(params=["ram", "disk"])
def store(request: pytest.FixtureRequest, manifest: Manifest, tmp_path: Path) -> Iterator[Store]:
    made = ram_store(manifest) if request.param == "ram" else disk_store(tmp_path / "traces", manifest)
    yield made
    made.close()


def test_round_trip(store: Store) -> None:
    assert there(store) == []
    written = put(store, [7, 0, 4], seed=1)
    more = put(store, [9], seed=2)
    assert there(store) == [0, 4, 7, 9]
    assert same(got(store, [7, 0, 4]), written)
    assert same(got(store, [9]), more)
    assert same(got(store, [4, 0, 7]), written[[2, 1, 0]])
    assert store.kept == 4
    assert store.bytes == 4 * store.manifest.record_bytes
    assert store.pixels(7) == bytes([1, 0] * 4)


def test_records_beyond_half_precision_are_marked_and_not_kept(store: Store) -> None:
    put(store, [3, 5], fit=[False, True])
    assert there(store) == [5]
    assert store.unfit(np.arange(10)).tolist() == [row == 3 for row in range(10)]


def test_limit(backbone: Backbone, manifest: Manifest, tmp_path: Path) -> None:
    for store in (ram_store(manifest, 3), disk_store(tmp_path / "a", manifest, 3)):
        assert store.writable(np.arange(10)).tolist() == [row < 3 for row in range(10)]
        chosen = np.array([2, 5, 6, 8])
        if store.place == "disk":
            put(store, [5], seed=4)
            store.close()
            store = DiskStore(tmp_path / "a", manifest, [].append)
            assert store.allow(chosen, 2 * manifest.record_bytes) == 2
            assert store.writable(np.arange(10)).nonzero()[0].tolist() == [2, 5]
            assert store.allow(chosen[1:], 10**9) == 1  # another run with this store gets what it has
            store.close()
            store = DiskStore(tmp_path / "a", manifest, [].append)
            assert store.allow(chosen, 0) == 1  # what is there stays
        store.close()
    store = MemoryStore(manifest, torch.device("cpu"))
    assert store.allow(chosen, 10**9) == 4  # memory for these four, wherever they are numbered
    assert len(store.kept_records) == 4
    written = put(store, [8, 2], seed=3)
    assert same(got(store, [8, 2]), written)


def test_more_memory_than_there_is(manifest: Manifest) -> None:
    huge = replace(manifest, images=2**20, tensors={"features": ("float32", (2**28,))})
    with pytest.raises(MemtokError, match="of memory on cpu for traces, found less"):
        ram_store(huge)


@pytest.mark.twice
def test_disk_is_found_again(manifest: Manifest, tmp_path: Path) -> None:
    store = disk_store(tmp_path, manifest)
    written = put(store, [0, 3, 9], seed=5)
    store.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["lock", "manifest.json", "marks.bin", "traces-00000.bin", "traces-00002.bin"]
    again = disk_store(tmp_path, manifest)
    assert again.reused == 3
    assert there(again) == [0, 3, 9]
    assert same(got(again, [0, 3, 9]), written)
    again.close()


def test_shards_are_sparse(backbone: Backbone, tmp_path: Path) -> None:
    manifest = manifest_of(backbone, pictures(50_000))
    store = disk_store(tmp_path, manifest)
    put(store, [49_999])
    store.close()
    assert (tmp_path / "traces-00000.bin").stat().st_size == 50_000 * manifest.record_bytes
    assert taken_bytes(tmp_path) < 2_000_000


@pytest.mark.parametrize("place", ["features", "inputs"])
def test_a_damaged_record_counts_as_missing(manifest: Manifest, tmp_path: Path, place: str) -> None:
    store = disk_store(tmp_path, manifest)
    put(store, [4, 5, 6])
    store.close()
    offset = manifest.record_bytes + (5 if place == "features" else 4 * manifest.tensors["features"][1][0] + 100)
    with (tmp_path / "traces-00001.bin").open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte[0] ^ 1]))
    again = disk_store(tmp_path, manifest)
    assert there(again) == [4, 6]
    assert again.writable(np.array([5]))[0]
    written = put(again, [5], seed=9)
    assert there(again) == [4, 5, 6]
    again.close()
    third = disk_store(tmp_path, manifest)
    assert there(third) == [4, 5, 6]
    assert same(got(third, [5]), written)
    third.close()


def test_a_damaged_mark_counts_as_missing(manifest: Manifest, tmp_path: Path) -> None:
    store = disk_store(tmp_path, manifest)
    put(store, [4, 5])
    store.close()
    for field in ("checksum", "pixels"):
        with (tmp_path / disk.MARKS).open("r+b") as stream:
            stream.seek(5 * disk.MARK.itemsize + disk.MARK.fields[field][1])
            stream.write(b"\x77")
        again = disk_store(tmp_path, manifest)
        assert there(again) == [4], field
        put(again, [5])
        again.close()


def test_records_that_changed_places_are_noticed(manifest: Manifest, tmp_path: Path) -> None:
    store = disk_store(tmp_path, manifest)
    put(store, [0, 1])
    store.close()
    for name, size in ((disk.MARKS, disk.MARK.itemsize), ("traces-00000.bin", manifest.record_bytes)):
        with (tmp_path / name).open("r+b") as stream:
            both = stream.read(2 * size)
            stream.seek(0)
            stream.write(both[size:] + both[:size])
    again = disk_store(tmp_path, manifest)
    assert there(again) == []
    again.close()


def test_a_truncated_shard(manifest: Manifest, tmp_path: Path) -> None:
    store = disk_store(tmp_path, manifest)
    put(store, [4, 5, 6, 7])
    assert there(store) == [4, 5, 6, 7]
    path = tmp_path / "traces-00001.bin"
    os.truncate(path, 2 * manifest.record_bytes + 10)
    assert there(store) == [4, 5]  # even while it is open, and mapped
    store.close()
    path.unlink()
    again = disk_store(tmp_path, manifest)
    assert there(again) == []
    written = put(again, [7], seed=3)
    assert there(again) == [7]
    assert same(got(again, [7]), written)
    again.close()


def test_truncated_marks(manifest: Manifest, tmp_path: Path) -> None:
    store = disk_store(tmp_path, manifest)
    put(store, [1, 8])
    store.close()
    os.truncate(tmp_path / disk.MARKS, 5 * disk.MARK.itemsize)
    again = disk_store(tmp_path, manifest)
    assert there(again) == [1]
    again.close()


def test_a_full_disk_stops_the_writing(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = disk_store(tmp_path, manifest)
    put(store, [1])
    store.drain()
    real = os.pwrite

    def full(handle: int, content: Any, offset: int) -> int:
        if len(content) > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, content, offset)

    monkeypatch.setattr(disk.os, "pwrite", full)
    put(store, [2, 3])
    assert there(store) == [1]
    assert store.trouble == "No space left on device"
    assert not store.writable(np.arange(10)).any()
    monkeypatch.undo()
    put(store, [4])  # ignored
    assert there(store) == [1]
    store.close()


def test_no_mark_before_its_data(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of writes: all data, its flush, then the marks."""
    store = disk_store(tmp_path, manifest)
    done: list[str] = []
    real = disk.write_at
    monkeypatch.setattr(
        disk, "write_at", lambda handle, content, at: (done.append(f"write {len(content)}"), real(handle, content, at))
    )
    monkeypatch.setattr(disk, "flush", lambda handle: done.append("flush"))
    put(store, [0, 1, 9])
    store.drain()
    data, mark = f"write {manifest.record_bytes}", f"write {disk.MARK.itemsize}"
    assert done == [data, data, "flush", data, "flush", mark, mark, mark]
    store.close()


def test_the_second_process_reads_and_writes_nothing(manifest: Manifest, tmp_path: Path) -> None:
    first = disk_store(tmp_path, manifest)
    written = put(first, [0, 1])
    first.drain()
    said: list[str] = []
    second = disk_store(tmp_path, manifest, said=said)
    assert said == [f"traces in {tmp_path}: another run is filling them; this one reads what is there"]
    assert there(second) == [0, 1]
    assert not second.writable(np.arange(10)).any()
    more = put(first, [5])  # seen as it comes
    first.drain()
    assert there(second) == [0, 1, 5]
    assert same(got(second, [0, 1]), written)
    assert same(got(second, [5]), more)
    first.close()
    second.close()
    third = disk_store(tmp_path, manifest, said=said)
    assert third.writable(np.arange(10)).all()
    third.close()


def test_a_folder_that_cannot_be_written_is_read(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = disk_store(tmp_path, manifest)
    put(store, [2])
    store.close()

    def denied(self: Any, timeout: float = 0) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(disk.FileLock, "acquire", denied)  # root may write anywhere
    said: list[str] = []
    again = disk_store(tmp_path, manifest, said=said)
    assert said == [f"traces in {tmp_path} cannot be added to (Permission denied); this run reads them"]
    assert there(again) == [2]
    again.close()


def write_until_killed(folder: Path, manifest: Manifest, last: int) -> None:
    """Writes record after record, and is killed with record `last` on its way to the disk in another thread."""
    store = disk_store(folder, manifest)
    for row in range(last + 1):
        records, hashes = records_of(manifest, 1, row % 200)
        store.write(np.array([row]), records, hashes, np.array([True]))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.twice
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of forking a process with threads
@pytest.mark.parametrize("last", [0, 40, 299, 1000])
def test_killed_while_writing(tmp_path: Path, last: int) -> None:
    manifest = replace(manifest_of(tiny_backbone(), pictures(20_000)), shard_records=300)
    child = os.fork()
    if child == 0:
        try:
            write_until_killed(tmp_path, manifest, last)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    store = disk_store(tmp_path, manifest)  # the lock went with the process
    found = there(store)
    assert found == list(range(len(found)))  # one after the other, none lost in between
    assert len(found) <= last + 1
    assert len(found) == store.reused
    for row in found[-3:]:
        assert same(got(store, [row]), records_of(manifest, 1, row % 200)[0])
    written = put(store, [19_999])
    assert there(store)[-1] == 19_999  # and it goes on
    assert same(got(store, [19_999]), written)
    store.close()


def test_limits_by_default(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert 0 < default_limit("ram", None, cpu) <= free_memory()
    deep = tmp_path / "not" / "yet"
    one, more = default_limit("disk", deep, cpu), default_limit("disk", deep, cpu, taken=10**15)
    assert one > 0
    assert more >= 5 * 10**14
