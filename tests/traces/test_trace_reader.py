"""One pass before training, then batches: the order of the loader, the numbers of the trunk, nothing computed twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memtok.backbone import Backbone
from memtok.data import batches, training_transform
from memtok.data.sources import ArrayStore, ImageSet
from memtok.errors import MemtokError
from memtok.traces import Store, disk
from memtok.traces.store import UNFIT
from tests.tiny import tiny_backbone
from tests.traces.helpers_traces import (
    ORDER,
    disk_store,
    everything,
    fill,
    manifest_of,
    pictures,
    ram_store,
    read,
    reader_of,
)

Seen = list[tuple[torch.Tensor, torch.Tensor, list[int]]]


def equal(one: Seen, other: Seen) -> bool:
    """Whether two lists of batches hold the same bytes in the same order."""
    return len(one) == len(other) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2] for a, b in zip(one, other, strict=True)
    )


def close(one: Seen, other: Seen) -> None:
    """Fails unless the numbers are the same to what another batch of the trunk makes of them."""
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a[0].float(), b[0].float(), rtol=2e-3, atol=1e-4)
        torch.testing.assert_close(a[1], b[1], rtol=2e-3, atol=1e-4)
        assert a[2] == b[2]


class Counted:
    """A backbone that counts the images that its trunk ran on; raises at image number `stop`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop: int | None = None) -> None:
        self.images, self.stop = 0, stop
        original = Backbone.trace

        def trace(backbone: Backbone, images: torch.Tensor, **more: Any) -> Any:
            if self.stop is not None and self.images + len(images) > self.stop:
                raise KeyboardInterrupt
            self.images += len(images)
            return original(backbone, images, **more)

        monkeypatch.setattr(Backbone, "trace", trace)


class CountedStore(ArrayStore):
    """Pictures in memory that count how often one is read."""

    reads = 0

    def read(self, position: int) -> Any:
        type(self).reads += 1
        return super().read(position)


def counted(images: ImageSet) -> ImageSet:
    assert isinstance(images.store, ArrayStore)
    CountedStore.reads = 0
    return ImageSet(CountedStore(images.store.pixels, "train"), images.positions, images.labels)


@pytest.mark.parametrize("augment", ["none", "crop"])
@pytest.mark.parametrize("place", ["ram", "disk"])
def test_traces_are_those_of_the_images_in_the_order_of_the_loader(
    backbone: Backbone, images: ImageSet, tmp_path: Path, place: str, augment: str
) -> None:
    views = 1 if augment == "none" else 2
    manifest = manifest_of(backbone, images, augment=augment, views=views, seed=3)
    store = ram_store(manifest) if place == "ram" else disk_store(tmp_path, manifest)
    found = everything(reader_of(backbone, images, store), steps=15)
    store.close()
    transform = training_transform(backbone.preprocessing, augment, flip=False)
    live = list(batches(images, transform, batch_size=4, shuffle=True, seed=3, steps=15))
    assert [indices for _, _, indices in found] == [indices.tolist() for _, _, indices in live]
    for step, (inputs, features, _) in enumerate(found[: 3 * views]):
        # Epoch e shows view e % views: what the loader shows in that epoch.
        trace = backbone.trace(live[step][0], keep="inputs", outputs=True)
        assert trace.features is not None
        torch.testing.assert_close(inputs.float(), torch.stack(trace.inputs, dim=1), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(features, trace.features, rtol=1e-5, atol=1e-5)
    by_record: dict[tuple[int, int], torch.Tensor] = {}
    for step, (inputs, _, indices) in enumerate(found):
        for one, index in zip(inputs, indices, strict=True):
            assert torch.equal(by_record.setdefault((step // 3 % views, index), one), one)
    assert len(by_record) == 10 * views


def test_images_are_normalised_as_the_task_says(backbone: Backbone, images: ImageSet) -> None:
    """A task may have another normalisation than the backbone; the trunk then runs on what a live run gives it."""
    own = replace(backbone.preprocessing, mean=(0.1, 0.2, 0.3), std=(0.4, 0.3, 0.2))
    store = ram_store(manifest_of(backbone, images, own))
    found = everything(reader_of(backbone, images, store), steps=3)
    live = batches(images, training_transform(own, "none"), batch_size=4, shuffle=True, seed=3)
    for (inputs, features, _), (wanted, _, _) in zip(found, live, strict=True):
        trace = backbone.trace(wanted, keep="inputs", outputs=True)
        assert trace.features is not None
        torch.testing.assert_close(inputs.float(), torch.stack(trace.inputs, dim=1), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(features, trace.features, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_computed_or_decoded_twice(
    backbone: Backbone, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    images, trunk = counted(images), Counted(monkeypatch)
    manifest = manifest_of(backbone, images)
    store = disk_store(tmp_path, manifest)
    reader = reader_of(backbone, images, store)
    fill(reader, workers, steps=9)
    assert trunk.images == store.kept == 10
    assert CountedStore.reads == (0 if workers else 10)  # in other processes
    first = read(reader, workers, steps=9)
    store.close()

    def refuse(*_: Any) -> None:
        raise AssertionError("images were asked for")

    monkeypatch.setattr("memtok.traces.reader.load", refuse)
    store = disk_store(tmp_path, manifest)
    again = everything(reader_of(backbone, images, store), workers, steps=9)
    assert trunk.images == 10
    assert equal(first, again)
    store.close()


def test_only_what_the_steps_come_to_is_computed(
    backbone: Backbone, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, trunk = counted(images), Counted(monkeypatch)
    store = ram_store(manifest_of(backbone, images, augment="crop", views=3))
    reader = reader_of(backbone, images, store)
    for steps, start, records in ((2, 0, 8), (2, 0, 8), (4, 1, 14), (3, 3, 14), (6, 5, 16), (9, 6, 26), (40, 9, 30)):
        everything(reader, start_step=start, steps=steps)  # three steps are an epoch of ten
        assert (trunk.images, CountedStore.reads, store.kept) == (records, records, records)


def test_progress_is_told(backbone: Backbone, images: ImageSet, tmp_path: Path) -> None:
    manifest = manifest_of(backbone, images)
    first, second = (
        fill(reader_of(backbone, images, disk_store(tmp_path, manifest), part=4), steps=3) for _ in range(2)
    )
    assert first == [("caching traces", done, 10) for done in (0, 4, 8, 10)]
    assert second == [("checking traces", 10, 10)]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(backbone: Backbone, images: ImageSet, workers: int) -> None:
    manifest = manifest_of(backbone, images, augment="crop", views=2)
    for records in (None, 6):
        expected = everything(reader_of(backbone, images, ram_store(manifest, records)), steps=12)
        found = everything(reader_of(backbone, images, ram_store(manifest, records)), workers, steps=12)
        assert equal(found, expected)


@pytest.mark.parametrize("stop", [3, 6, 13, 19])
def test_a_pass_that_was_stopped_goes_on_at_the_first_missing_shard(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Groups of three records in shards of two groups: the numbers are those of a pass that nobody stopped."""
    backbone = tiny_backbone()
    manifest = manifest_of(backbone, images, augment="crop", views=2)
    monkeypatch.setattr(disk, "SHARD_BYTES", 5 * manifest.record_bytes)
    expected = everything(reader_of(backbone, images, ram_store(manifest), part=3), steps=6)
    store = disk_store(tmp_path, manifest)
    with monkeypatch.context() as patch:
        trunk = Counted(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            fill(reader_of(backbone, images, store, part=3), steps=6)
    whole = trunk.images // 6 * 6
    store.close()
    trunk = Counted(monkeypatch)
    again = disk_store(tmp_path, manifest)
    assert again.kept == whole
    found = everything(reader_of(backbone, images, again, part=3), steps=6)
    assert trunk.images == 20 - whole
    assert equal(found, expected)
    again.close()


@pytest.mark.parametrize("place", ["ram", "disk"])
def test_beyond_the_limit_images_are_computed_each_time(
    backbone: Backbone, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    manifest = manifest_of(backbone, images)
    expected = everything(reader_of(backbone, images, ram_store(manifest)), steps=9)
    trunk = Counted(monkeypatch)
    store: Store = ram_store(manifest, 6) if place == "ram" else disk_store(tmp_path, manifest, 6)
    reader = reader_of(backbone, images, store)
    built = everything(reader, steps=9)
    assert store.kept == 6
    assert trunk.images == 6 + 3 * 4
    reused = everything(reader, 1, steps=9)
    assert trunk.images == 6 + 6 * 4
    assert equal(built, reused)
    close(built, expected)  # though the trunk runs on other batches
    store.close()


@pytest.mark.parametrize("records", [10, 6])
@pytest.mark.parametrize("place", ["ram", "disk"])
def test_beyond_half_precision_images_stay_exact(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, records: int
) -> None:
    """A norm with a huge weight takes the inputs of attention of some images beyond the range of float16."""
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.vit.blocks[1].norm1.weight.fill_(23_000.0)
    manifest = manifest_of(backbone, images)
    said: list[str] = []
    store: Store = ram_store(manifest, records) if place == "ram" else disk_store(tmp_path, manifest, records)
    reader = reader_of(backbone, images, store, said)
    first = everything(reader, steps=9)
    assert np.flatnonzero(store.state == UNFIT).tolist() == [4, 5]
    assert store.kept == records - 2
    trunk = Counted(monkeypatch)
    assert equal(first, everything(reader, steps=9))
    assert trunk.images == 3 * (10 - store.kept)  # nobody tries to keep them again
    assert said == ["kept traces: some images are beyond the range of half precision; they are computed at every step"]
    assert all(inputs.isfinite().all() for inputs, _, _ in first)
    exact = {index for inputs, _, found in first for one, index in zip(inputs, found, strict=True) if one.max() > 65504}
    exact |= {
        index for inputs, _, found in first for one, index in zip(inputs, found, strict=True) if one.min() < -65504
    }
    assert exact == {4, 5}
    for inputs, _, found in first:  # the others of their batches are rounded all the same
        for one, index in zip(inputs, found, strict=True):
            assert torch.equal(one.float(), one.half().float()) == (index not in exact)
    store.close()


def test_a_full_disk_is_said_once_and_training_goes_on(
    backbone: Backbone, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(backbone, images)
    expected = everything(reader_of(backbone, images, ram_store(manifest)), steps=6)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    said: list[str] = []
    store = disk_store(tmp_path, manifest)
    monkeypatch.setattr(disk.NewShard, "append", full)
    for _ in range(2):
        found = everything(reader_of(backbone, images, store, said, part=4), steps=6)
        close(found, expected)
    store.close()
    assert len(said) == 1
    assert "no more can be written (No space left on device); 0 of 10 are kept" in said[0]


def test_a_damaged_record_is_computed_again(
    backbone: Backbone, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(backbone, images)
    store = disk_store(tmp_path, manifest)
    expected = everything(reader_of(backbone, images, store), steps=6)
    store.close()
    with (tmp_path / "traces-00000.bin").open("r+b") as stream:
        stream.seek(3 * manifest.record_bytes + 1000)
        stream.write(b"damage")
    trunk = Counted(monkeypatch)
    for _ in range(2):  # the second time it is there
        store = disk_store(tmp_path, manifest)
        found = everything(reader_of(backbone, images, store), steps=6)
        store.close()
        assert trunk.images == 1
        close(found, expected)


def test_what_another_process_cached_meanwhile_is_not_computed_again(
    backbone: Backbone, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(backbone, images)
    first, second = disk_store(tmp_path, manifest), disk_store(tmp_path, manifest)
    one, two = reader_of(backbone, images, first), reader_of(backbone, images, second)
    expected = everything(one, steps=3)
    trunk = Counted(monkeypatch)
    assert equal(everything(two, steps=3), expected)
    assert trunk.images == 0
    first.close()
    second.close()


def test_changed_pictures_are_noticed(backbone: Backbone, tmp_path: Path) -> None:
    images = pictures()
    manifest = manifest_of(backbone, images)
    store = disk_store(tmp_path, manifest)
    fill(reader_of(backbone, images, store), steps=3)
    store.close()
    changed = pictures()
    assert isinstance(changed.store, ArrayStore)
    changed.store.pixels[4] = 255 - changed.store.pixels[4]
    store = disk_store(tmp_path, manifest)
    reader_of(backbone, images, store).check_content()
    with pytest.raises(MemtokError, match="expected image 'train/4' as it was when its trace was kept") as caught:
        reader_of(backbone, changed, store).check_content()
    assert "\n" not in str(caught.value)
    store.close()


def test_only_some_of_the_images(backbone: Backbone, images: ImageSet) -> None:
    """Validation looks at a part; its traces are numbered as those of the whole, so that another part finds them."""
    store = ram_store(manifest_of(backbone, images))
    chosen = np.array([1, 4, 8])
    reader = reader_of(backbone, images, store, indices=chosen)
    arguments: dict[str, Any] = {"batch_size": 2, "shuffle": False}
    found = everything(reader, **arguments)
    assert [indices for _, _, indices in found] == [[1, 4], [8]]
    assert np.flatnonzero(store.usable(np.arange(10))).tolist() == [1, 4, 8]
    labels = torch.cat([labels for _, labels, _ in reader.batches(reader.plan(**arguments), 0)])
    assert labels.tolist() == images.labels[chosen].tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(
    backbone: Backbone, images: ImageSet, tmp_path: Path, workers: int
) -> None:
    from memtok.data.sources import FileStore

    (tmp_path / "bad.png").write_bytes(b"no picture")
    images = ImageSet(FileStore(tmp_path, ["bad.png"]), np.arange(1), np.zeros(1, dtype=np.int64))
    reader = reader_of(backbone, images, ram_store(manifest_of(backbone, images)))
    for work in (fill, read):
        with pytest.raises(MemtokError, match=r"bad\.png"):
            work(reader, workers)


def test_parts_of_a_batch(backbone: Backbone, images: ImageSet) -> None:
    reader = reader_of(backbone, images, ram_store(manifest_of(backbone, images)))
    batch, _, _ = next(reader.batches(reader.plan(**(ORDER | {"batch_size": 10})), 0))
    parts = batch.to(torch.device("cpu")).tensor_split(3)
    assert [len(part) for part in parts] == [4, 3, 3]
    assert torch.equal(torch.cat([part.inputs for part in parts]), batch.inputs)
    assert torch.equal(torch.cat([part.features for part in parts]), batch.features)
    trace = parts[1].trace(torch.float32)
    assert [tuple(layer.shape) for layer in trace.inputs] == [(3, 17, 32)] * 2
