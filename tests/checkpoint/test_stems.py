"""Vision Transformers whose patches come from a convolutional stem: only the embedding differs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from memtok.checkpoint import fingerprint_of, read_checkpoint, save_checkpoint
from memtok.checkpoint.architecture import build, describe, from_json
from memtok.errors import MemtokError
from tests.checkpoint.tiny_models import images, randomise, save_folder

NAMES = ["vit_tiny_r_s16_p8_224", "vit_base_mci_224"]  # a stem without layers of its own, and one with batch norms


def stemmed(name: str = NAMES[0], **arguments: Any) -> Any:
    """A model with the stem of `name`, for 64 px."""
    return randomise(timm.create_model(name, num_classes=5, **small_settings(name), **arguments))


def small_settings(name: str) -> dict[str, Any]:
    """The second stem gives features of one width only."""
    return dict(img_size=64, embed_dim=32 if name == NAMES[0] else 768, depth=1, num_heads=4, mlp_ratio=1.0)


def resized(model: Any, size: tuple[int, int]) -> Any:
    other = copy.deepcopy(model)
    other.set_input_size(img_size=size)
    return other


@pytest.mark.parametrize("name", NAMES)
def test_described_and_rebuilt(name: str) -> None:
    model = stemmed(name)
    architecture = describe(model)
    assert architecture.image_size == (64, 64)
    assert architecture.patch_size == tuple(model.patch_embed.feat_ratio(as_scalar=False))
    again = from_json(architecture.to_json())
    assert again == architecture
    state = torch.get_rng_state()
    rebuilt: Any = build(again)
    assert torch.equal(torch.get_rng_state(), state)
    assert describe(rebuilt) == architecture
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(images(64)), model(images(64)))


@pytest.mark.parametrize("name", NAMES)
def test_read_from_every_layout_and_at_another_size(name: str, tmp_path: Path) -> None:
    model = stemmed(name)
    saved = tmp_path / "saved.safetensors"
    folder = save_folder(model, tmp_path / "folder", model_args=small_settings(name))
    read = read_checkpoint(model)
    save_checkpoint(read.vit, read.preprocessing, saved, classes=list("abcde"))
    for source in (model, folder, saved):
        for size in ((64, 64), (96, 128)):
            found = read_checkpoint(source, image_size=size)
            assert found.fingerprint == read.fingerprint
            with torch.no_grad():
                assert torch.equal(found.vit(images(*size)), resized(model, size)(images(*size)))
    with pytest.raises(MemtokError, match="multiple"):
        read_checkpoint(model, image_size=72)


def test_a_lone_file_needs_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stemmed()
    save_file(model.state_dict(), tmp_path / "lone.safetensors")
    create = timm.create_model

    def small(name: str, **arguments: Any) -> Any:
        return create(name, **{**small_settings(name), **arguments})

    monkeypatch.setattr(timm, "create_model", small)
    read = read_checkpoint(tmp_path / "lone.safetensors", architecture=NAMES[0])
    assert read.fingerprint == read_checkpoint(model).fingerprint


def test_the_stem_counts() -> None:
    model = stemmed(NAMES[1])
    expected = fingerprint_of(model)
    for name in ("patch_embed.backbone.0.conv.weight", "patch_embed.backbone.0.bn.running_var"):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.state_dict()[name].view(-1)[-1] += 2.0**-6
        assert fingerprint_of(other) != expected, name
    counter = copy.deepcopy(model)
    counter.patch_embed.backbone[0].bn.num_batches_tracked += 1  # answers do not depend on it
    assert fingerprint_of(counter) == expected


def without_name(model: Any) -> Any:
    del model.pretrained_cfg
    return model


def with_another_name(model: Any) -> Any:
    model.pretrained_cfg = {"architecture": "vit_tiny_patch16_224"}
    return model


def with_changed_stem(model: Any) -> Any:
    model.patch_embed.backbone[0] = nn.Sequential(model.patch_embed.backbone[0])
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [(without_name, "found None"), (with_another_name, "stride|HybridEmbed"), (with_changed_stem, "patch_embed")],
)
def test_stems_that_are_not_known(change: Any, message: str) -> None:
    with pytest.raises(MemtokError, match=message) as caught:
        describe(change(stemmed()))
    assert "\n" not in str(caught.value)
