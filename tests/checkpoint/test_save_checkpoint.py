"""Whole models that memtok saves, as full fine-tuning does: read back bit for bit, damaged ones refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from memtok.checkpoint import read_checkpoint, save_checkpoint
from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing
from tests.checkpoint.tiny_models import VARIANTS, images, tiny_timm, tiny_transformers

PREPROCESSING = Preprocessing(
    image_size=(48, 48),
    resize=54,
    crop=True,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    position_resize="transformers",
)


def assert_same_model(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_read_back_bit_for_bit(variant: str, tmp_path: Path) -> None:
    vit = tiny_timm(**VARIANTS[variant])
    size = tuple(vit.patch_embed.img_size)
    preprocessing = PREPROCESSING.with_image_size(size)
    path = tmp_path / "deep" / "model.safetensors"
    save_checkpoint(vit, preprocessing, path)
    read = read_checkpoint(path)
    assert_same_model(read.vit, vit)
    with torch.no_grad():
        assert torch.equal(read.vit(images(*size)), vit(images(*size)))
    assert read.fingerprint == read_checkpoint(vit).fingerprint
    assert read.preprocessing == preprocessing
    assert (read.preprocessing_origin, read.classes, read.source) == ("checkpoint", (), str(path))
    assert list(path.parent.iterdir()) == [path]


def test_class_names_and_resized_positions_are_kept(tmp_path: Path) -> None:
    model = tiny_transformers("vit-classifier")
    read = read_checkpoint(model, image_size=32)
    names = ("é", "b", "c", "d", "e")
    save_checkpoint(read.vit, read.preprocessing, tmp_path / "m.safetensors", classes=names)
    again = read_checkpoint(tmp_path / "m.safetensors")
    assert again.classes == names
    assert_same_model(again.vit, read.vit)
    assert again.preprocessing == read.preprocessing
    assert again.fingerprint == read_checkpoint(read.vit).fingerprint != read.fingerprint
    # From the stored positions on, the way of resizing is still that of the source.
    by_hand = tiny_transformers("vit-classifier", image_size=32)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name != "vit.embeddings.position_embeddings":
                by_hand.get_parameter(name).copy_(tensor)
        by_hand.vit.embeddings.position_embeddings.copy_(again.vit.pos_embed)
        smaller = read_checkpoint(tmp_path / "m.safetensors", image_size=24)
        expected = by_hand(images(24), interpolate_pos_encoding=True).logits
        torch.testing.assert_close(smaller.vit(images(24)), expected, rtol=0, atol=1e-5)


def test_layouts_of_transformers_survive_saving(tmp_path: Path) -> None:
    for case in ("deit-teacher", "deit-classifier", "dinov2-swiglu", "registers", "clip-projection"):
        read = read_checkpoint(tiny_transformers(case))
        path = tmp_path / f"{case}.safetensors"
        save_checkpoint(read.vit, read.preprocessing, path)
        again = read_checkpoint(path)
        assert again.fingerprint == read.fingerprint
        assert_same_model(again.vit, read.vit)
        with torch.no_grad():
            assert torch.equal(again.vit(images()), read.vit(images()))


def test_half_precision_is_stored_as_it_is(tmp_path: Path) -> None:
    vit = tiny_timm()
    expected = read_checkpoint(vit).fingerprint
    save_checkpoint(vit.half(), PREPROCESSING, tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in load_file(tmp_path / "half.safetensors").values()} == {torch.float16}
    assert read_checkpoint(tmp_path / "half.safetensors").fingerprint == expected


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    odd_head, two_heads = tiny_timm(), tiny_timm()
    odd_head.head = nn.Sequential(nn.Linear(32, 5))
    two_heads.head_dist = nn.Linear(32, 5)
    for model, preprocessing, classes, message in (
        (tiny_timm(), PREPROCESSING.with_image_size(32), (), "images of .48, 48., found .32, 32."),
        (tiny_timm(), PREPROCESSING, ("a", "b"), "5 class names"),
        (odd_head, PREPROCESSING, (), "linear head"),
        (two_heads, PREPROCESSING, (), "head_dist.bias of shape none"),
        (nn.Linear(2, 2), PREPROCESSING, (), "found Linear"),
    ):
        with pytest.raises(MemtokError, match=message):
            save_checkpoint(model, preprocessing, path, classes=classes)
        assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memtok_checkpoint": "2"}, "version 1 .* found '2'"),
        ({"architecture": "{}"}, "description of a Vision Transformer"),
        ({"architecture": ""}, "header of a memtok checkpoint"),
        ({"preprocessing": "{}"}, "missing"),
        ({"preprocessing": "{"}, "header of a memtok checkpoint"),
        ({"classes": "3"}, "header of a memtok checkpoint"),
    ],
)
def test_damaged_headers(change: dict[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(tiny_timm(), PREPROCESSING, path)
    with safe_open(path, "pt") as stored:
        metadata = {**stored.metadata(), **change, "digest": ""}  # as in files of version 0.1
    save_file(load_file(path), path, metadata={key: value for key, value in metadata.items() if value})
    with pytest.raises(MemtokError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"heads": 4', '"heads": 5'),
        ('"mlp": "mlp"', '"mlp": "?"'),
        ('"dim": 32', '"dim": "x"'),
        ('"dim": 32', '"dim": 0'),
    ],
)
def test_impossible_architectures(old: str, new: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(tiny_timm(), PREPROCESSING, path)
    with safe_open(path, "pt") as stored:
        metadata = dict(stored.metadata())
    metadata.pop("digest")  # as in files of version 0.1
    assert old in metadata["architecture"]
    metadata["architecture"] = metadata["architecture"].replace(old, new)
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(MemtokError):
        read_checkpoint(path)


def test_changed_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(tiny_timm(), PREPROCESSING, path, classes=["dog", "cat", "ox", "hen", "bee"])
    whole = path.read_bytes()
    changed = tmp_path / "changed.safetensors"
    for old, new in ((b"dog", b"tog"), (b"bee", b"Bee"), (b'hen\\", \\"bee', b'bee\\", \\"hen')):
        assert old in whole
        changed.write_bytes(whole.replace(old, new))
        with pytest.raises(MemtokError):
            read_checkpoint(changed)
    with safe_open(path, "pt") as stored:
        metadata = {key: value for key, value in stored.metadata().items() if key != "digest"}
    save_file(load_file(path), changed, metadata=metadata)
    assert read_checkpoint(changed).classes == ("dog", "cat", "ox", "hen", "bee")
    save_file(load_file(path), changed, metadata={**metadata, "classes": '["dog", "cat"]'})
    with pytest.raises(MemtokError):
        read_checkpoint(changed)
