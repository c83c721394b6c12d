"""The regimes, and the model that trains as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled

import memtok
from memtok.errors import MemtokError
from memtok.parts.head import HEAD_STD
from memtok.task import Task
from memtok.training import REGIMES, FullModel, create
from memtok.training.regimes import count_parameters, forward_of
from tests.tiny import randomize_, tiny_backbone, tiny_images, tiny_vit
from tests.training.helpers import fingerprint

CLASSES = ["cat", "dog", "cow"]


def test_all_regimes(backbone: memtok.Backbone) -> None:
    names = [
        "memory",
        "head",
        "readout",
        "side",
        "head+class",
        "memory-shared",
        "memory-propagated",
        "memory-additive",
        "full",
    ]
    assert list(REGIMES) == names
    assert [name for name, regime in REGIMES.items() if regime.composable] == ["memory", "head", "readout", "side"]
    for name in names:
        made = create(backbone, regime=name, name="pets", classes=CLASSES, seed=0)
        assert made.regime == name
        assert isinstance(made, FullModel if name == "full" else Task)
        assert forward_of([made])(tiny_images(2))[0].shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"regime": "ful"}, "expected a regime among memory, head"),
        ({"regime": "full", "memory": 5}, "in regime 'full'"),
        ({"regime": "full", "queries": 2}, "in regime 'full'"),
        ({"regime": "full", "adapter_rank": 2}, "in regime 'full'"),
        ({"memory": -1}, "memory as a whole number of 0 or more, found -1"),
        ({"regime": "full", "name": "base"}, "other than 'base'"),
        ({"regime": "full", "classes": []}, "at least one class"),
    ],
)
def test_bad_arguments(backbone: memtok.Backbone, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(MemtokError, match=words):
        create(backbone, **({"name": "pets", "classes": CLASSES} | arguments))


def test_full_model_is_a_copy(backbone: memtok.Backbone) -> None:
    before = fingerprint(backbone)
    state = torch.get_rng_state()
    model = FullModel.create(backbone, name="pets", classes=CLASSES, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert not own & {parameter.data_ptr() for parameter in backbone.parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert fingerprint(backbone) == before


def test_full_model_starts_as_the_backbone_with_a_new_head(backbone: memtok.Backbone) -> None:
    model = FullModel.create(backbone, name="pets", classes=["a"] + [str(index) for index in range(2000)], seed=3)
    images = tiny_images(4)
    features, _ = backbone(images)
    assert torch.allclose(model(images), model.vit.head(features), atol=1e-5)
    assert model.vit.head.weight.std().item() == pytest.approx(HEAD_STD, rel=0.05)
    assert not model.vit.head.bias.any()
    twin = FullModel.create(backbone, name="pets", classes=model.classes, seed=3)
    assert torch.equal(twin.vit.head.weight, model.vit.head.weight)


@pytest.mark.parametrize("kind", ["plain", "no head", "tokens only", "distilled", "bfloat16"])
def test_full_model_saves_what_load_backbone_reads(tmp_path: Path, kind: str) -> None:
    if kind == "distilled":
        vit: torch.nn.Module = VisionTransformerDistilled(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5
        )
        randomize_(vit, 0, std=0.2)
        backbone = memtok.load_backbone(vit)
    elif kind == "no head":
        backbone = tiny_backbone(num_classes=0)
    elif kind == "tokens only":
        backbone = memtok.load_backbone(tiny_vit(num_classes=0, global_pool=""))
    else:
        backbone = memtok.load_backbone(tiny_vit(), dtype=torch.bfloat16 if kind == "bfloat16" else torch.float32)
    model = FullModel.create(backbone, name="pets", classes=CLASSES, seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.save(tmp_path / "pets.safetensors")
    loaded = memtok.load_backbone(tmp_path / "pets.safetensors")
    assert loaded.classes == tuple(CLASSES)
    assert loaded.preprocessing == model.preprocessing
    images = tiny_images(3)
    assert model(images).shape == (3, 3)
    assert torch.equal(loaded(images)[1], model(images))


def test_counts_of_parameters(backbone: memtok.Backbone) -> None:
    whole = sum(parameter.numel() for parameter in backbone.parameters())
    first = Task.create(backbone, name="first", classes=CLASSES, memory=2)
    second = Task.create(backbone, name="second", classes=CLASSES, memory=3, extends=[first])
    own = [32 + 2 * 2 * 32 + 3 * 32 + 3, 32 + 2 * 3 * 32 + 3 * 32 + 3]
    assert count_parameters(first) == (own[0], whole + own[0])
    assert count_parameters(second) == (own[1], whole + own[0] + own[1])
    model = FullModel.create(backbone, name="full", classes=CLASSES)
    assert count_parameters(model) == (whole - 2 * 33, whole - 2 * 33)  # 3 classes instead of 5
