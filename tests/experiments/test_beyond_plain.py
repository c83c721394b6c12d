"""LoRA and VPT-deep against definitions of their own: merged weights, and keys and values of memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import memtok
from memtok import MemtokError
from memtok.training import FullModel
from memtok_experiments.beyond.plain import METHODS, PlainModel
from tests.tiny import randomize_, tiny_backbone, tiny_images

CLASSES = ("a", "b", "c")


def made(method: str, size: int = 3) -> tuple[memtok.Backbone, PlainModel]:
    backbone = tiny_backbone()
    model = METHODS[method](backbone, name="plain", classes=CLASSES, seed=4, size=size)
    return backbone, model


@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_new_trains_and_is_saved(method: str, tmp_path: Path) -> None:
    _, model = made(method)
    names = [name for name, _ in model.named_parameters()]
    assert all(
        name.startswith("vit.head.") or name.endswith("prompts") or "down." in name or "up." in name for name in names
    )
    randomize_(model, 1, std=0.1)
    images = tiny_images()
    answers = model(images)
    model.save(tmp_path / "plain.safetensors")
    _, other = made(method)
    assert not torch.equal(other(images), answers)
    other.restore(tmp_path / "plain.safetensors")
    assert torch.equal(other(images), answers)
    _, wider = made(method, size=4)
    with pytest.raises(MemtokError, match=r"plain\.safetensors"):
        wider.restore(tmp_path / "plain.safetensors")


@pytest.mark.parametrize("method", ["lora-qv", "lora-all"])
def test_lora_is_a_change_of_weights(method: str) -> None:
    backbone, model = made(method)
    start = FullModel.create(backbone, name="full", classes=CLASSES, seed=4)
    images = tiny_images()
    torch.testing.assert_close(model(images), start(images))  # it begins as the backbone with the same head
    randomize_(model, 1, std=0.1)
    merged = FullModel.create(backbone, name="full", classes=CLASSES, seed=4)
    merged.vit.head.load_state_dict(model.vit.head.state_dict())
    dim = backbone.dim
    with torch.no_grad():
        for block, own in zip(merged.vit.blocks, model.vit.blocks, strict=True):
            rows = {"lora-qv": (0, 2), "lora-all": (0, 1, 2)}[method]
            for place, number in enumerate(rows):
                update = own.attn.qkv.up[place] @ own.attn.qkv.down[place]
                block.attn.qkv.weight[number * dim : (number + 1) * dim] += update
            if method == "lora-all":
                for one, two in (
                    (block.attn.proj, own.attn.proj),
                    (block.mlp.fc1, own.mlp.fc1),
                    (block.mlp.fc2, own.mlp.fc2),
                ):
                    one.weight += two.up[0] @ two.down[0]
    torch.testing.assert_close(model(images), merged(images), atol=1e-5, rtol=1e-5)


def test_vpt_deep_is_memory_that_all_tokens_see() -> None:
    backbone, model = made("vpt-deep")
    randomize_(model, 1, std=0.1)
    task = memtok.Task.create(backbone, name="plain", classes=CLASSES, regime="memory-shared", memory=3, seed=0)
    with torch.no_grad():
        task.memory.copy_(torch.stack([block.prompts for block in model.vit.blocks]))
        task.head.load_state_dict(model.vit.head.state_dict())
    images = tiny_images()
    expected = memtok.MemoryViT(backbone, [task])(images)["plain"]
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
