"""The backbone's own classifier: what its head is decides, not what the model says of itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import memtok
from memtok.data import from_dataset
from memtok.errors import MemtokError
from tests.tiny import randomize_, tiny_images, tiny_task, tiny_vit

HEADS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "more classes": (lambda: nn.Linear(32, 7), 7),
    "fewer classes": (lambda: nn.Linear(32, 2), 2),
    "no bias": (lambda: nn.Linear(32, 7, bias=False), 7),
    "two layers": (lambda: nn.Sequential(nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 9)), 9),
    "none": (nn.Identity, 0),
}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A class folder with one picture of noise."""
    (tmp_path / "0").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0" / "a.png")
    return tmp_path / "0" / "a.png"


def replaced(head: str) -> tuple[nn.Module, int]:
    """A model of 5 classes with another head, and how many that has."""
    vit: Any = tiny_vit()
    assert vit.num_classes == 5
    make, count = HEADS[head]
    vit.head = make()
    randomize_(vit.head, 1, std=0.2)
    return vit, count


@pytest.mark.parametrize("head", HEADS)
def test_a_head_replaced_by_hand_is_believed(head: str, photo: Path) -> None:
    vit, count = replaced(head)
    backbone = memtok.load_backbone(vit)
    assert backbone.base_classes == count
    model = memtok.MemoryViT(backbone, [tiny_task(backbone)])
    assert memtok.verify(backbone, model.tasks, source=vit, images=2).ok
    with torch.no_grad():
        out = model(tiny_images())
        if not count:
            assert out.base is None
            with pytest.raises(MemtokError):
                memtok.predict(model, [photo], base=True)
            return
        assert out.base is not None
        assert torch.equal(out.base, vit(tiny_images()))
    found = memtok.predict(model, [photo], top=100, base=True)
    (row,) = [row for row in found.rows if row.task == "base"]
    assert sorted(name for name, _ in row.ranking) == sorted(map(str, range(count)))
    assert sum(probability for _, probability in row.ranking) == pytest.approx(1.0, abs=1e-5)
    pictures = [(picture.sigmoid(), label) for label, picture in enumerate(tiny_images(count))]
    data = from_dataset(pictures, list(map(str, range(count))), validation=pictures)
    table = memtok.evaluate(model, {}, base=data, part="validation")
    assert table.base is not None
    assert [row.name for row in table.base.per_class] == list(map(str, range(count)))


def test_names_that_do_not_fit_the_head_are_no_names() -> None:
    vit: Any = tiny_vit()
    vit.pretrained_cfg = {"label_names": ["a", "b", "c", "d", "e"]}
    assert memtok.load_backbone(vit).classes == ("a", "b", "c", "d", "e")
    vit.head = nn.Linear(32, 7)
    assert memtok.load_backbone(vit).classes == ()


def test_a_head_that_is_no_classifier_is_named(photo: Path) -> None:
    vit: Any = tiny_vit()
    vit.head = nn.Unflatten(1, (2, 16))
    backbone = memtok.load_backbone(vit)
    with pytest.raises(MemtokError):
        memtok.predict(memtok.MemoryViT(backbone), [photo], base=True)
