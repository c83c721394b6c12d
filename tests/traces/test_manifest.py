"""Traces of something else are refused, by the name of what differs."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from memtok.backbone import Backbone
from memtok.data import from_dataset
from memtok.data.sources import FileStore, ImageSet
from memtok.errors import MemtokError
from memtok.levels import STATISTICS
from memtok.traces import Manifest
from memtok.traces.manifest import MANIFEST, minor, spread, weights_digest
from memtok.traces.record import Needs, of_tensors, record_type, trace_tensors
from tests.clocks import with_the_old_time
from tests.tiny import tiny_backbone
from tests.traces.helpers_traces import disk_store, make_folder, manifest_of, pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "traces"


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, dict):
        return value | {"image_size": [64, 64]}
    return "other"


@pytest.mark.parametrize("name", [field.name for field in fields(Manifest)])
def test_any_difference_is_refused_by_name(backbone: Backbone, images: ImageSet, folder: Path, name: str) -> None:
    manifest = manifest_of(backbone, images, augment="crop", flip=True, views=2)
    make_folder(folder, manifest)
    disk_store(folder, manifest).close()  # the same one is taken
    content = json.loads((folder / MANIFEST).read_text())
    content[name] = changed(content[name])
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(MemtokError, match=name) as caught:
        disk_store(folder, manifest)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("expected ")
    assert "name another folder, or delete it" in line
    if name == "preprocessing":  # of a table, only what differs
        assert "preprocessing.image_size [" in line
        assert "mean" not in line
    content = asdict(manifest)
    (folder / MANIFEST).write_text(json.dumps(content))
    make_folder(folder, manifest)  # the lock was given back


def test_a_missing_or_an_extra_field_is_refused(backbone: Backbone, images: ImageSet, folder: Path) -> None:
    manifest = manifest_of(backbone, images)
    make_folder(folder, manifest)
    for content in (asdict(manifest) | {"colour": 1}, {"format": 2}, asdict(manifest) | {"format": 1}, {}):
        (folder / MANIFEST).write_text(json.dumps(content))
        with pytest.raises(MemtokError, match="expected traces"):
            disk_store(folder, manifest)
    for text in ("", "[]", "{"):
        (folder / MANIFEST).write_text(text)
        with pytest.raises(MemtokError, match=r"expected a manifest of kept traces"):
            disk_store(folder, manifest)


def test_traces_of_an_earlier_format_are_refused(backbone: Backbone, images: ImageSet, folder: Path) -> None:
    """Up to format 2 the trunk's input was normalised as the backbone says, whatever the task said."""
    manifest = manifest_of(backbone, images)
    make_folder(folder, manifest)
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest) | {"format": 2}))
    with pytest.raises(
        MemtokError, match=r"expected traces of format 6 in .*, found format 2; name another folder, or"
    ):
        disk_store(folder, manifest)
    assert replace(manifest, format=2).digest != manifest.digest  # so that in the cache it is another folder


def test_what_decides_the_numbers_is_in_the_manifest(backbone: Backbone, images: ImageSet) -> None:
    base = manifest_of(backbone, images, augment="crop", views=2)
    others = [
        manifest_of(tiny_backbone(seed=1), images, augment="crop", views=2),
        manifest_of(backbone, pictures(seed=1), augment="crop", views=2),
        manifest_of(backbone, images.select(np.arange(9)), augment="crop", views=2),
        manifest_of(backbone, images.select(np.arange(10)[::-1]), augment="crop", views=2),
        manifest_of(backbone, images, augment="crop", views=3),
        manifest_of(backbone, images, augment="crop", views=2, seed=1),
        manifest_of(backbone, images, augment="crop", views=2, flip=True),
        manifest_of(backbone, images, augment="inception", views=2),
        manifest_of(backbone, images, augment="none"),
        manifest_of(backbone, images, augment="crop", views=2, autocast="bf16"),
    ]
    assert len({base.digest, *(manifest.digest for manifest in others)}) == 1 + len(others)
    assert base.digest == manifest_of(backbone, images, augment="crop", views=2).digest


def test_weights_that_were_rounded_are_others(images: ImageSet) -> None:
    """A backbone keeps the fingerprint of its checkpoint; what it computes with may have been rounded since."""
    backbone = tiny_backbone()
    manifest = manifest_of(backbone, images)
    rounded = copy.deepcopy(backbone).to(torch.bfloat16).to(torch.float32)
    assert rounded.fingerprint == backbone.fingerprint
    assert manifest_of(rounded, images) == replace(manifest, weights=weights_digest(rounded)) != manifest
    assert manifest_of(copy.deepcopy(backbone).to(torch.float64).to(torch.float32), images) == manifest
    backbone.to(torch.bfloat16).to(torch.float32)  # in place, after its digest was taken
    assert manifest_of(backbone, images) == manifest_of(rounded, images)


def test_the_head_is_no_part_of_the_weights() -> None:
    """The same trunk with another classifier leaves the same traces."""
    backbone = tiny_backbone()
    before = weights_digest(backbone)
    with torch.no_grad():
        backbone.vit.head.weight.add_(1)
    assert weights_digest(backbone) == before


def test_large_weights_are_looked_at_here_and_there() -> None:
    backbone = tiny_backbone(embed_dim=264, num_heads=2, depth=7)  # a projection of 264 x 264 is more than SMALL
    before, noticed = weights_digest(backbone), []
    for layer in range(7):
        weight = backbone.vit.blocks[layer].attn.proj.weight
        with torch.no_grad():
            kept = weight.clone()
            weight[100, 100] += 1
            noticed.append(weights_digest(backbone) != before)
            weight.copy_(kept)
    assert noticed == [layer in (0, 3, 6) for layer in range(7)]


def test_versions_without_the_patch(backbone: Backbone, images: ImageSet) -> None:
    assert minor("2.15.0+cu132") == "2.15"
    manifest = manifest_of(backbone, images)
    assert torch.__version__.startswith(f"{manifest.torch}.")
    assert timm.__version__.startswith(f"{manifest.timm}.")


def test_without_augmentation_nothing_is_drawn(backbone: Backbone, images: ImageSet) -> None:
    one = manifest_of(backbone, images)
    assert one == manifest_of(backbone, images, seed=5, views=7, flip=True)
    assert (one.seed, one.views, one.flip) == (None, 1, False)


def test_labels_do_not_count(backbone: Backbone, images: ImageSet) -> None:
    """Another task on the same images finds its traces."""
    other = ImageSet(images.store, images.positions, (images.labels + 1) % 3)
    assert manifest_of(backbone, images) == manifest_of(backbone, other)


def test_sizes() -> None:
    # ViT-B/32 at 224 px: 12 layers, 50 tokens, 768 wide.
    tensors: Any = {"features": ("float32", (768,)), "inputs": ("float16", (12, 50, 768))}
    assert record_type(tensors).itemsize == 12 * 50 * 768 * 2 + 768 * 4 == 924_672
    tensors["statistics"] = ("float32", (3, 2, 768))  # one more, as it is described
    assert record_type(tensors).itemsize == 924_672 + 3 * 2 * 768 * 4


@pytest.mark.parametrize("changes", [{}, {"reg_tokens": 2, "class_token": True}, {"patch_size": 16}])
def test_shape_is_that_of_a_trace(changes: dict[str, Any]) -> None:
    backbone = tiny_backbone(**changes)
    needs = Needs(inputs=True, statistics=frozenset(STATISTICS))
    trace = backbone.trace(torch.zeros(3, 3, 32, 32), keep="inputs", reads=needs.reads(backbone))
    assert trace.features is not None
    features = {"features": ("float32", trace.features.shape[1:])}
    inputs = {"inputs": ("float16", torch.stack(trace.inputs, dim=1).shape[1:])}
    statistics = {f"statistics.{name}": ("float16", one.shape[1:]) for name, one in trace.statistics.items()}
    assert {one.shape[1] for one in trace.statistics.values()} == {backbone.depth + 1}
    assert trace_tensors(backbone, needs) == features | inputs | statistics
    assert trace_tensors(backbone) == features | inputs
    some = Needs(inputs=False, statistics=frozenset(["mean"]))
    assert trace_tensors(backbone, some) == features | {"statistics.mean": statistics["statistics.mean"]}
    assert of_tensors(trace_tensors(backbone, needs)) == needs


def test_files_are_known_by_their_bytes(backbone: Backbone, tmp_path: Path) -> None:
    from PIL import Image

    for index in range(3):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index}.bmp")
    images = ImageSet(FileStore(tmp_path, [f"{index}.bmp" for index in range(3)]), np.arange(3), np.zeros(3, np.int64))
    before = manifest_of(backbone, images)
    assert manifest_of(backbone, images) == before
    status = (tmp_path / "1.bmp").stat()
    os.utime(tmp_path / "1.bmp", (0, 0))
    assert manifest_of(backbone, images) == before
    Image.new("RGB", (8, 8), (7, 7, 0)).save(tmp_path / "1.bmp")
    with_the_old_time(tmp_path / "1.bmp", status)
    assert (tmp_path / "1.bmp").stat().st_size == status.st_size
    after = manifest_of(backbone, images)
    assert replace(after, content=before.content) == before
    assert after.content != before.content


class Items(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """A torch Dataset of grey pictures, `level` bright."""

    classes = ("a", "b")

    def __init__(self, level: int) -> None:
        self.level = level

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 8, 8), self.level + index, dtype=torch.uint8), index % 2


def test_somebodys_data_set_is_known_by_a_few_of_its_pictures(backbone: Backbone) -> None:
    one, same, other = (from_dataset(Items(level), flip=False).train for level in (1, 1, 2))
    assert manifest_of(backbone, one) == manifest_of(backbone, same)
    assert manifest_of(backbone, one) != manifest_of(backbone, other)


def test_spread() -> None:
    assert spread(0) == []
    assert spread(1) == [0]
    assert spread(3) == [0, 1, 2]
    found = spread(1000)
    assert (len(found), found[0], found[-1]) == (16, 0, 999)


FOREIGN = {
    "a file": {"photo.png": "x"},
    "a folder": {"cats/1.png": "x"},
    "a download": {"letter.txt": "x", ".movie.mkv.part": "half of it", ".marks.bin.old.part": "x"},
    "only a download": {".movie.mkv.part": "half of it"},
    "nearly a store": {"traces-of-cats.txt": "x", "lock": ""},
    "shards of nobody knows what": {"traces-00000.bin": "x", "lock": ""},
    "another manifest": {"manifest.json": '{"name": "a web page"}', ".index.html.part": "x", "lock": "theirs"},
    "no manifest": {"manifest.json": "<html>", ".manifest.json.x.part": "x"},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_of_something_else_is_left_as_it_was(
    backbone: Backbone, images: ImageSet, folder: Path, files: dict[str, str]
) -> None:
    """Refused in one line, and nothing is deleted, changed or added: no lock either."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with pytest.raises(MemtokError, match=r"expected (an empty folder for traces|a manifest|traces of)"):
        disk_store(folder, manifest_of(backbone, images))
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == files


def test_nothing_is_added_to_the_folder_of_other_traces(backbone: Backbone, images: ImageSet, folder: Path) -> None:
    make_folder(folder, manifest_of(backbone, images))
    (folder / "lock").unlink(missing_ok=True)
    (folder / ".traces-00000.bin.part").write_text("x")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(MemtokError, match="expected traces with backbone"):
        disk_store(folder, manifest_of(tiny_backbone(seed=1), images))
    assert sorted(path.name for path in folder.iterdir()) == before


def test_only_own_remains_are_removed(backbone: Backbone, images: ImageSet, folder: Path) -> None:
    """What a killed process left of its temporary files goes; files that somebody put into a store stay."""
    manifest = manifest_of(backbone, images)
    folder.mkdir()
    remains = [folder / name for name in (".traces-00000.bin.part", ".manifest.json.x1.part")]
    for path in remains:
        path.write_text("x")
    make_folder(folder, manifest)  # a folder that did not become a store yet
    assert not any(path.exists() for path in remains)
    theirs = folder / ".movie.mkv.part"
    for path in (*remains, theirs):
        path.write_text("x")
    make_folder(folder, manifest)
    assert not any(path.exists() for path in remains)
    assert theirs.read_text() == "x"


def test_a_folder_that_cannot_be_made_is_one_line(backbone: Backbone, images: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MemtokError, match="expected a folder for traces that can be written"):
        disk_store(tmp_path / "file" / "traces", manifest_of(backbone, images))
