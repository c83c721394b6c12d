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
from filelock import FileLock

from memtok.backbone import Backbone
from memtok.data.sources import ImageSet
from memtok.errors import MemtokError
from memtok.traces import DiskStore, KeptBatch, Manifest, MemoryStore, Store, disk
from memtok.traces.sizes import default_limit, free_memory, taken_bytes
from memtok.traces.store import UNFIT, Notify
from tests.tiny import tiny_backbone
from tests.traces.helpers_traces import disk_store, group_of, manifest_of, pictures, ram_store

ALL = np.arange(10)
INDEX = disk.INDEX.itemsize


@pytest.fixture
def manifest(backbone: Backbone, images: ImageSet) -> Manifest:
    """Ten records."""
    return manifest_of(backbone, images)


@pytest.fixture(autouse=True)
def small_shards(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four records."""
    monkeypatch.setattr(disk, "SHARD_BYTES", 4 * manifest.record_bytes)


def put(
    store: Store, rows: list[int], seed: int = 0, fit: list[bool] | None = None, notify: Notify = [].append
) -> KeptBatch:
    """Writes random records, one group each, in a pass of their own; returns them."""
    group = group_of(store.manifest, rows, seed, fit)
    with store.filling(notify) as writable:
        assert writable
        for place in range(len(rows)):
            one = slice(place, place + 1)
            store.write(replace(
                group, rows=group.rows[one], records=group.records[one], pixels=group.pixels[one], fit=group.fit[one],
            ))  # fmt: skip
    return group.records


def got(store: Store, rows: list[int]) -> KeptBatch:
    """Reads records."""
    batch = KeptBatch.empty(store.manifest.tensors, len(rows))
    store.read(np.array(rows), batch, np.arange(len(rows)))
    return batch


def same(one: KeptBatch, other: KeptBatch) -> bool:
    return all(torch.equal(values, other.tensors[name]) for name, values in one.tensors.items())


def there(store: Store) -> list[int]:
    """The records that can be read, and are as they were written."""
    store.verify(np.arange(store.manifest.records), lambda done, total: None)
    return np.flatnonzero(store.usable(np.arange(store.manifest.records))).tolist()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, offset: int) -> None:
    """Changes one bit."""
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte[0] ^ 1]))


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
    assert store.pixels[7].tobytes() == bytes([1, 0] * 4)
    assert store.missing(ALL).tolist() == [1, 2, 3, 5, 6, 8]


def test_a_pass_that_fails_leaves_the_store_open_to_the_next(store: Store) -> None:
    def fail() -> None:
        with store.filling([].append):
            store.write(group_of(store.manifest, [1]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    written = put(store, [1, 2], seed=3)
    assert there(store) == [1, 2]
    assert same(got(store, [1, 2]), written)


def test_records_beyond_half_precision_are_marked_and_not_kept(store: Store) -> None:
    put(store, [3, 5], fit=[False, True])
    assert there(store) == [5]
    assert np.flatnonzero(store.state == UNFIT).tolist() == [3]
    assert 3 not in store.missing(ALL)


def test_limit(manifest: Manifest, tmp_path: Path) -> None:
    chosen = np.array([2, 5, 6, 8])
    for store in (ram_store(manifest, 3), disk_store(tmp_path / "a", manifest, 3)):
        assert store.missing(ALL).tolist() == [0, 1, 2]
        store.close()
    put(store, [1], seed=4)
    store = DiskStore(tmp_path / "a", manifest)
    assert store.allow(chosen, 3 * manifest.record_bytes) == 2  # beside the one that is there
    assert store.missing(ALL).tolist() == [2, 5]
    assert store.allow(chosen[1:], 10**9) == 1  # another run with this store gets what it has
    store = DiskStore(tmp_path / "a", manifest)
    assert store.allow(chosen, 0) == 0
    assert there(store) == [1]  # what is there stays
    memory = MemoryStore(manifest, torch.device("cpu"))
    assert memory.allow(chosen, 10**9) == 4  # memory for these four, wherever they are numbered
    assert len(memory.records) == 4
    assert same(put(memory, [8, 2], seed=3), got(memory, [8, 2]))


def test_more_memory_than_there_is(manifest: Manifest) -> None:
    huge = replace(manifest, images=2**20, tensors={"features": ("float32", (2**28,))})
    with pytest.raises(MemtokError, match="of memory on cpu for traces, found less"):
        ram_store(huge)


@pytest.mark.twice
def test_disk_is_found_again(manifest: Manifest, tmp_path: Path) -> None:
    store = disk_store(tmp_path, manifest)
    written = put(store, [0, 1, 2, 3, 9], seed=5)
    store.close()
    assert names(tmp_path) == ["lock", "manifest.json", "traces-00000.bin", "traces-00001.bin"]
    sizes = [(tmp_path / f"traces-0000{number}.bin").stat().st_size for number in (0, 1)]
    assert sizes == [count * (manifest.record_bytes + INDEX) for count in (4, 1)]
    again = disk_store(tmp_path, manifest)
    assert again.kept == 5
    assert there(again) == [0, 1, 2, 3, 9]
    assert same(got(again, [0, 1, 2, 3, 9]), written)
    again.close()


def test_only_what_is_read_is_verified_and_once(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(disk_store(tmp_path, manifest), list(range(10)))
    looked: list[int] = []
    right = DiskStore.is_right
    monkeypatch.setattr(DiskStore, "is_right", lambda store, row: (looked.append(row), right(store, row))[1])
    again = disk_store(tmp_path, manifest)
    done: list[tuple[int, int]] = []
    for rows in ([1, 2, 3], [3, 4]):
        again.verify(np.array(rows), lambda *counts: done.append(counts))
    assert sorted(looked) == [1, 2, 3, 4]
    assert done == [(3, 3), (1, 1)]
    again.close()


@pytest.mark.parametrize("place", ["features", "inputs", "index"])
def test_a_damaged_record_counts_as_missing_and_is_written_again(
    manifest: Manifest, tmp_path: Path, place: str
) -> None:
    store = disk_store(tmp_path, manifest)
    put(store, [4, 5, 6, 7])
    store.close()
    record, features = manifest.record_bytes, 4 * manifest.tensors["features"][1][0]
    offsets = {"features": record + 5, "inputs": record + features + 100, "index": 4 * record + INDEX}
    damaged = range(INDEX) if place == "index" else range(1)
    for byte in damaged:  # of the index: row, hash, state and checksum
        path = tmp_path / "traces-00000.bin"
        flip(path, offsets[place] + byte)
        again = disk_store(tmp_path, manifest)
        assert {6, 7} <= set(there(again)) <= {4, 6, 7}, byte  # the line may name record 4 now, which is missing then
        assert 5 in again.missing(ALL)
        again.close()
        if byte != damaged[-1]:
            flip(path, offsets[place] + byte)
    again = disk_store(tmp_path, manifest)
    assert there(again) == [4, 6, 7]
    written = put(again, [5], seed=9)
    assert there(again) == [4, 5, 6, 7]
    again.close()
    third = disk_store(tmp_path, manifest)
    assert there(third) == [4, 5, 6, 7]
    assert same(got(third, [5]), written)
    third.close()


def test_records_that_changed_places_are_noticed(manifest: Manifest, tmp_path: Path) -> None:
    store = disk_store(tmp_path, manifest)
    put(store, [0, 1])
    store.close()
    size = manifest.record_bytes
    with (tmp_path / "traces-00000.bin").open("r+b") as stream:
        both = stream.read(2 * size)
        stream.seek(0)
        stream.write(both[size:] + both[:size])
    again = disk_store(tmp_path, manifest)
    assert there(again) == []
    again.close()


@pytest.mark.parametrize("size", [0, 10, 2 * 2304, 3 * 2304 + 24])
def test_a_shard_that_was_cut_short_is_not_there(manifest: Manifest, tmp_path: Path, size: int) -> None:
    store = disk_store(tmp_path, manifest)
    put(store, [0, 1, 2, 3, 4, 5])
    store.close()
    os.truncate(tmp_path / "traces-00000.bin", size)
    again = disk_store(tmp_path, manifest)
    assert there(again) == [4, 5]
    written = put(again, [0, 1, 2, 3], seed=3)
    assert same(got(again, [0, 1, 2, 3]), written)
    again.close()
    third = disk_store(tmp_path, manifest)
    assert there(third) == [0, 1, 2, 3, 4, 5]
    assert same(got(third, [0, 1, 2, 3]), written)
    third.close()


def test_a_full_disk_stops_the_writing(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = disk_store(tmp_path, manifest)
    put(store, [0, 1, 2, 3])

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk.os, "fsync", full)
    put(store, [4, 5])
    assert store.trouble == "No space left on device"
    assert there(store) == [0, 1, 2, 3]
    assert names(tmp_path) == ["lock", "manifest.json", "traces-00000.bin"]
    store.close()


def test_no_shard_before_its_data(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order: all data under a temporary name, the flush, then the name."""
    store = disk_store(tmp_path, manifest)
    done: list[Any] = []
    fsync, rename = os.fsync, os.replace

    def flushed(handle: int) -> None:
        fsync(handle)
        done.append(os.fstat(handle).st_size)

    monkeypatch.setattr(disk.os, "fsync", flushed)
    monkeypatch.setattr(disk.os, "replace", lambda *paths: (done.append(paths[1].name), rename(*paths)))
    with store.filling([].append):
        done.clear()
        store.write(group_of(manifest, [0, 1, 2]))
        assert names(tmp_path) == [".traces-00000.bin.part", "lock", "manifest.json"]
        assert done == []
        store.write(group_of(manifest, [3]))
        assert done[:2] == [4 * (manifest.record_bytes + INDEX), "traces-00000.bin"]
    store.close()


def test_a_pass_waits_for_that_of_another_process(manifest: Manifest, tmp_path: Path) -> None:
    first = disk_store(tmp_path, manifest)
    put(first, [0, 1])
    said: list[str] = []
    other = FileLock(tmp_path / disk.LOCK)

    def tell(line: str) -> None:
        said.append(line)
        first.open_shards()
        new = disk.NewShard(7, first.shard_path(7))
        new.append(group_of(manifest, [2], seed=7), first.record)
        new.finish()
        other.release()

    second = disk_store(tmp_path, manifest)
    assert there(second) == [0, 1]
    with other:
        written = put(second, [5], notify=tell)
    assert said == [f"traces in {tmp_path}: another run is caching them; this one waits for it"]
    assert there(second) == [0, 1, 2, 5]  # what the other one wrote meanwhile as well
    assert same(got(second, [2]), group_of(manifest, [2], seed=7).records)
    assert same(got(second, [5]), written)
    with first.filling([].append):
        assert there(first) == [0, 1, 2, 5]


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
    again = disk_store(tmp_path, manifest)
    with again.filling(said.append) as writable:
        assert not writable
    assert said == [f"traces in {tmp_path} cannot be added to (Permission denied); this run reads them"]
    assert there(again) == [2]


def write_until_killed(folder: Path, manifest: Manifest, last: int) -> None:
    """Writes record after record, and is killed after record `last`."""
    store = disk_store(folder, manifest)
    with store.filling([].append) as writable:
        assert writable
        for row in range(last + 1):
            store.write(group_of(manifest, [row], row % 200))
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.twice
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of forking a process with threads
@pytest.mark.parametrize("last", [0, 40, 299, 1000])
def test_killed_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    manifest = manifest_of(tiny_backbone(), pictures(20_000))
    monkeypatch.setattr(disk, "SHARD_BYTES", 300 * manifest.record_bytes)
    child = os.fork()
    if child == 0:
        try:
            write_until_killed(tmp_path, manifest, last)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    store = disk_store(tmp_path, manifest)
    found = there(store)
    assert found == list(range((last + 1) // 300 * 300))  # whole shards
    for row in found[-3:]:
        assert same(got(store, [row]), group_of(manifest, [row], row % 200).records)
    written = put(store, [19_999])  # and it goes on: the lock went with the process
    assert there(store) == [*found, 19_999]
    assert same(got(store, [19_999]), written)
    assert not list(tmp_path.glob(".*"))
    store.close()


def test_limits_by_default(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert 0 < default_limit("ram", None, cpu) <= free_memory()
    one, more = default_limit("disk", tmp_path, cpu), default_limit("disk", tmp_path, cpu, taken=10**15)
    assert one > 0
    assert more >= 5 * 10**14
    assert taken_bytes(tmp_path / "not" / "yet") == 0
