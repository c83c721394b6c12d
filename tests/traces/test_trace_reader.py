"""Batches of traces: the order of the loader, the numbers of the trunk, and nothing computed or decoded twice."""

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
from memtok.traces import KeptBatch, Store, disk
from memtok.traces import reader as reader_module
from tests.tiny import tiny_backbone
from tests.traces.helpers_traces import disk_store, everything, manifest_of, pictures, ram_store, reader_of

Seen = list[tuple[torch.Tensor, torch.Tensor, list[int]]]


def equal(one: Seen, other: Seen) -> bool:
    """Whether two lists of batches hold the same bytes in the same order."""
    return len(one) == len(other) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2] for a, b in zip(one, other, strict=True)
    )


class Counted:
    """A backbone that counts the images that its trunk ran on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = 0
        original = Backbone.trace

        def trace(backbone: Backbone, images: torch.Tensor, **more: Any) -> Any:
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
    for step, (inputs, features, indices) in enumerate(found):
        # Epoch e shows view e % views: what the loader shows in that epoch.
        wanted = live[step][0] if step < 3 * views else None
        if wanted is None:
            continue
        trace = backbone.trace(wanted, keep="inputs", outputs=True)
        assert trace.features is not None
        torch.testing.assert_close(inputs.float(), torch.stack(trace.inputs, dim=1), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(features, trace.features, rtol=1e-5, atol=1e-5)
        del indices
    by_record = {}
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


def test_a_store_of_another_preprocessing_is_refused(backbone: Backbone, images: ImageSet) -> None:
    own = replace(backbone.preprocessing, mean=(0.1, 0.2, 0.3))
    store = ram_store(manifest_of(backbone, images))
    with pytest.raises(
        MemtokError, match=r"expected traces of the task's preprocessing in ram, found mean .*; "
    ) as caught:
        reader_of(backbone, images, store, preprocessing=own)
    assert "\n" not in str(caught.value)


def test_nothing_is_computed_or_decoded_twice(
    backbone: Backbone, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, trunk = counted(images), Counted(monkeypatch)
    manifest = manifest_of(backbone, images)
    store = disk_store(tmp_path, manifest)
    first = everything(reader_of(backbone, images, store), steps=9)
    assert (trunk.images, CountedStore.reads) == (10, 10)
    store.close()
    store = disk_store(tmp_path, manifest)
    again = everything(reader_of(backbone, images, store), steps=9, workers=2)
    assert (trunk.images, CountedStore.reads) == (10, 10)
    assert equal(first, again)
    store.close()


def test_only_what_is_missing_is_computed(
    backbone: Backbone, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, trunk = counted(images), Counted(monkeypatch)
    store = ram_store(manifest_of(backbone, images))
    reader = reader_of(backbone, images, store)
    everything(reader, steps=2)
    assert (trunk.images, CountedStore.reads, store.kept) == (8, 8, 8)
    everything(reader, start_step=1, steps=6)
    assert (trunk.images, CountedStore.reads, store.kept) == (10, 10, 10)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(backbone: Backbone, images: ImageSet, workers: int) -> None:
    expected = everything(
        reader_of(backbone, images, ram_store(manifest_of(backbone, images, augment="crop", views=2))), steps=12
    )
    store = ram_store(manifest_of(backbone, images, augment="crop", views=2))
    assert equal(everything(reader_of(backbone, images, store), steps=12, workers=workers), expected)


def test_no_worker_starts_where_all_is_there(
    backbone: Backbone, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ram_store(manifest_of(backbone, images))
    reader = reader_of(backbone, images, store)
    expected = everything(reader, steps=6)

    def refuse(*_: Any) -> None:
        raise AssertionError("images were asked for")

    monkeypatch.setattr("memtok.traces.reader.load", refuse)
    assert equal(everything(reader, steps=6, workers=2), expected)


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
    assert trunk.images == 10 + 2 * 4
    reused = everything(reader, steps=9, workers=1)
    assert equal(built, reused)  # though the trunk now runs on other batches
    for one, other in zip(built, expected, strict=True):
        torch.testing.assert_close(one[0].float(), other[0].float(), rtol=2e-3, atol=1e-4)
    store.close()


@pytest.mark.parametrize("place", ["ram", "disk"])
def test_the_range_of_a_trace_is_looked_at_once(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """On a GPU the training waits for it; in later epochs it is known of every image, and none becomes infinite."""
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.vit.blocks[1].norm1.weight.fill_(23_000.0)  # beyond for images 4 and 5
    manifest = manifest_of(backbone, images)
    looked: list[int] = []
    original = reader_module.within_range

    def within_range(records: KeptBatch) -> torch.Tensor:
        looked.append(len(records))
        return original(records)

    monkeypatch.setattr(reader_module, "within_range", within_range)
    store: Store = ram_store(manifest, 5) if place == "ram" else disk_store(tmp_path, manifest, 5)
    reader = reader_of(backbone, images, store)
    everything(reader, steps=3)
    assert sum(looked) >= 10
    looked.clear()
    later = everything(reader, start_step=3, steps=9)
    assert looked == []
    assert all(inputs.isfinite().all() for inputs, _, _ in later)
    exact = {index for inputs, _, found in later for row, index in enumerate(found) if inputs[row].abs().max() > 65504}
    assert exact == {4, 5}
    store.close()


def test_beyond_half_precision_images_stay_exact(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm with a huge weight takes the inputs of attention beyond the range of float16."""
    backbone = tiny_backbone()
    with torch.no_grad():
        backbone.vit.blocks[1].norm1.weight.fill_(25_000.0)
    manifest = manifest_of(backbone, images)
    said: list[str] = []
    store = ram_store(manifest)
    reader = reader_of(backbone, images, store, said)
    first = everything(reader, steps=9)
    unfit = store.unfit(np.arange(10)).sum()
    assert unfit > 0
    assert store.kept == 10 - unfit
    trunk = Counted(monkeypatch)
    assert equal(first, everything(reader, steps=9))
    assert trunk.images == 3 * unfit  # once each: nobody tries to keep them again
    assert said == ["kept traces: some images are beyond the range of half precision; they are computed at every step"]
    assert any(inputs.dtype == torch.float32 and inputs.abs().max() > 65504 for inputs, _, _ in first)
    assert all(inputs.isfinite().all() for inputs, _, _ in first)


def test_a_full_disk_is_said_once_and_training_goes_on(
    backbone: Backbone, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(backbone, images)
    expected = everything(reader_of(backbone, images, ram_store(manifest)), steps=6)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    said: list[str] = []
    store = disk_store(tmp_path, manifest)
    monkeypatch.setattr(disk.os, "pwrite", full)
    found = everything(reader_of(backbone, images, store, said), steps=6)
    store.close()
    assert len(said) == 1
    assert "no more can be written (No space left on device); 0 of 10 are kept" in said[0]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one[0].float(), other[0].float(), rtol=2e-3, atol=1e-4)


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
    for computed in (1, 1):
        store = disk_store(tmp_path, manifest)
        found = everything(reader_of(backbone, images, store), steps=6)
        store.close()
        assert trunk.images == computed
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one[0].float(), other[0].float(), rtol=2e-3, atol=1e-4)


def test_two_at_once(backbone: Backbone, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one reads what the first one has, computes the rest, and writes nothing."""
    manifest = manifest_of(backbone, images)
    first, second = disk_store(tmp_path, manifest), disk_store(tmp_path, manifest)
    one, two = reader_of(backbone, images, first), reader_of(backbone, images, second)
    everything(one, steps=2)
    first.drain()
    trunk = Counted(monkeypatch)
    found = everything(two, steps=3)
    assert trunk.images == 2
    assert second.kept == 8
    expected = everything(one, steps=3)
    first.drain()
    assert equal(everything(two, steps=3), expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a[0].float(), b[0].float(), rtol=2e-3, atol=1e-4)
    first.close()
    second.close()


def test_changed_pictures_are_noticed(backbone: Backbone, tmp_path: Path) -> None:
    images = pictures()
    manifest = manifest_of(backbone, images)
    store = disk_store(tmp_path, manifest)
    everything(reader_of(backbone, images, store), steps=3)
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
    found = everything(reader, batch_size=2, shuffle=False)
    assert [indices for _, _, indices in found] == [[1, 4], [8]]
    assert np.flatnonzero(store.usable(np.arange(10))).tolist() == [1, 4, 8]
    labels = torch.cat([labels for _, labels, _ in reader.batches(batch_size=2)])
    assert labels.tolist() == images.labels[chosen].tolist()


def test_an_image_that_cannot_be_read_is_named(backbone: Backbone, tmp_path: Path) -> None:
    from memtok.data.sources import FileStore

    (tmp_path / "bad.png").write_bytes(b"no picture")
    images = ImageSet(FileStore(tmp_path, ["bad.png"]), np.arange(1), np.zeros(1, dtype=np.int64))
    for workers in (0, 1):
        reader = reader_of(backbone, images, ram_store(manifest_of(backbone, images)))
        with pytest.raises(MemtokError, match=r"bad\.png"):
            everything(reader, workers=workers)


def test_parts_of_a_batch(backbone: Backbone, images: ImageSet) -> None:
    reader = reader_of(backbone, images, ram_store(manifest_of(backbone, images)))
    batch, _, _ = next(reader.batches(batch_size=10))
    parts = batch.to(torch.device("cpu")).tensor_split(3)
    assert [len(part) for part in parts] == [4, 3, 3]
    assert torch.equal(torch.cat([part.inputs for part in parts]), batch.inputs)
    assert torch.equal(torch.cat([part.features for part in parts]), batch.features)
    trace = parts[1].trace(torch.float32)
    assert [tuple(layer.shape) for layer in trace.inputs] == [(3, 17, 32)] * 2
