"""Old checkpoints: the fixtures were written by the reproduction's own code, with the logits that it gives."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import memtok
from memtok.errors import MemtokError
from tests.tiny import tiny_backbone


@pytest.fixture
def legacy(shared: Path) -> Path:
    return shared / "fixtures" / "legacy"


@pytest.fixture
def backbone(legacy: Path) -> memtok.Backbone:
    return memtok.load_backbone(legacy / "base")


def test_alone_concatenated_and_extended_answer_as_the_reproduction(legacy: Path, backbone: memtok.Backbone) -> None:
    expected = load_file(legacy / "expected.safetensors")
    images = expected["images"]
    [a] = memtok.read_legacy(legacy / "A_model.pt", backbone)
    [b] = memtok.read_legacy(legacy / "B_model.pt", backbone)
    first, second = memtok.read_legacy(legacy / "extension_model.pt", backbone)
    assert (a.name, b.name, first.name, second.name) == ("A", "B", "extension-1", "extension-2")
    assert second.extends == (first,)
    assert a.placement == "after-norm"
    with torch.no_grad():
        alone = memtok.MemoryViT(backbone, [a])(images)
        both = memtok.MemoryViT(backbone, [a]).concat(memtok.MemoryViT(backbone, [b]))(images)
        extended = memtok.MemoryViT(backbone, [first, second])(images)
        pairs = [
            (alone["A"], "A"),
            (memtok.MemoryViT(backbone, [b])(images)["B"], "B"),
            (alone.base, "base"),
            (both["A"], "concat_A"),
            (both["B"], "concat_B"),
            (both.base, "concat_base"),
            (extended["extension-1"], "ext_1"),
            (extended["extension-2"], "ext_2"),
            (extended.base, "ext_base"),
        ]
    for found, name in pairs:
        torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=1e-5)


def test_they_carry_the_preprocessing_of_the_reproduction(legacy: Path, backbone: memtok.Backbone) -> None:
    [task] = memtok.read_legacy(legacy / "A_model.pt", backbone, classes=[list("abcde")])
    assert task.classes == ("a", "b", "c", "d", "e")
    assert task.preprocessing.mean == (0.0, 0.0, 0.0)
    assert task.preprocessing.std == (1.0, 1.0, 1.0)
    own = memtok.Task.create(backbone, name="own", classes=["x", "y"])
    with pytest.raises(MemtokError, match="mean"):
        memtok.MemoryViT(backbone, [task, own])


def test_a_task_file_of_an_imported_task_is_small(legacy: Path, backbone: memtok.Backbone, tmp_path: Path) -> None:
    tasks = memtok.read_legacy(legacy / "extension_model.pt", backbone)
    memtok.save_tasks(tasks, tmp_path / "all.safetensors")
    assert (tmp_path / "all.safetensors").stat().st_size < 12_000 < (legacy / "extension_model.pt").stat().st_size / 20
    again = memtok.load_tasks(tmp_path / "all.safetensors", backbone)
    assert [task.fingerprint for task in again] == [task.fingerprint for task in tasks]


def test_another_backbone_is_refused(legacy: Path) -> None:
    with pytest.raises(MemtokError, match=r"expected a checkpoint of the backbone|expected the backbone"):
        memtok.read_legacy(legacy / "A_model.pt", tiny_backbone())


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('unpickled')",)


def test_other_files_are_refused_and_nothing_is_executed(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    path = tmp_path / "x_model.pt"
    with pytest.raises(MemtokError, match="found no file"):
        memtok.read_legacy(path, backbone)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(MemtokError, match="executes nothing"):
        memtok.read_legacy(path, backbone)
    torch.save({"a": Bomb()}, path)
    with pytest.raises(MemtokError, match="executes nothing") as caught:
        memtok.read_legacy(path, backbone)
    assert "\n" not in str(caught.value)
    torch.save(OrderedDict(weight=torch.zeros(2)), path)
    with pytest.raises(MemtokError, match="found none of its class tokens"):
        memtok.read_legacy(path, backbone)
    path.write_bytes(b"")
    with pytest.raises(MemtokError, match="executes nothing"):
        memtok.read_legacy(path, backbone)
