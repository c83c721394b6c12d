"""Checkpoints in timm's layout against timm itself, bit for bit."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from memtok.checkpoint import read_checkpoint
from memtok.errors import MemtokError
from tests.checkpoint.tiny_models import SMALL, VARIANTS, images, randomise, registered, save_folder, tiny_timm

# torch's, about how timm interpolates relative positions.
pytestmark = pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")


def assert_equals_timm(read: Any, model: Any) -> None:
    """Outputs and tokens, bit for bit, at the size that was read."""
    pixels = images(*read.preprocessing.image_size)
    with torch.no_grad():
        assert torch.equal(read.vit.forward_features(pixels), model.forward_features(pixels))
        assert torch.equal(read.vit(pixels), model(pixels))


@pytest.mark.parametrize("variant", VARIANTS)
def test_object_is_copied_bit_for_bit_and_not_touched(variant: str) -> None:
    model = tiny_timm(**VARIANTS[variant]).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size = tuple(model.patch_embed.img_size)
    for wanted in (None, (32, 32), (64, 80)):
        read = read_checkpoint(model, image_size=wanted)
        same = copy.deepcopy(model).eval()
        if wanted is not None:
            same.set_input_size(img_size=wanted)
        assert_equals_timm(read, same)
        assert read.preprocessing.image_size == (wanted or size)
        assert read.preprocessing.position_resize == "timm"
        assert not read.vit.training
        assert not any(parameter.requires_grad for parameter in read.vit.parameters())
    assert read.source == f"object:{type(model).__name__}"
    assert read.preprocessing_origin.startswith("usual for timm")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert tuple(model.patch_embed.img_size) == size
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("variant", ["plain", "eva02", "rotary-mixed", "dinov3-fixed-size"])
def test_object_in_half_precision_is_widened(variant: str) -> None:
    """Rotary tables, which half precision rounds, are computed again."""
    model = tiny_timm(**VARIANTS[variant])
    half = read_checkpoint(copy.deepcopy(model).half())
    assert half.vit.cls_token.dtype == torch.float32
    assert half.fingerprint == read_checkpoint(model).fingerprint
    assert_equals_timm(half, model)


def test_object_with_pretrained_cfg_brings_its_preprocessing() -> None:
    model = registered()
    model.pretrained_cfg = {**model.pretrained_cfg, "crop_pct": 0.875, "mean": (0.1, 0.2, 0.3)}
    read = read_checkpoint(model)
    assert read.preprocessing_origin == "checkpoint"
    assert read.preprocessing.mean == (0.1, 0.2, 0.3)
    assert (read.preprocessing.image_size, read.preprocessing.resize) == ((48, 48), 54)
    model.set_input_size(img_size=(32, 32))  # an object is taken at the size that it has now
    assert read_checkpoint(model).preprocessing.image_size == (32, 32)
    recommended = registered(dynamic_img_size=True)
    recommended.pretrained_cfg = {**recommended.pretrained_cfg, "input_size": (3, 64, 64)}
    assert read_checkpoint(recommended).preprocessing.image_size == (64, 64)


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_siglip_224",
        "eva02_tiny_patch14_224",
        "vit_small_patch16_dinov3_qkvb",
        "beit_base_patch16_224",
        "vit_pe_core_tiny_patch16_384",
    ],
)
def test_folder_as_timm_saves_it(name: str, tmp_path: Path) -> None:
    model = registered(name)
    folder = save_folder(model, tmp_path, model_config=dict(label_names=["a", "b", "c", "d", "e"]))
    read = read_checkpoint(folder)
    assert_equals_timm(read, model)
    assert read.classes == ("a", "b", "c", "d", "e")
    assert read.preprocessing_origin == "checkpoint"
    assert read.preprocessing.mean == tuple(model.pretrained_cfg["mean"])
    assert read.fingerprint == read_checkpoint(model).fingerprint
    assert_equals_timm(read_checkpoint(folder, image_size=32), timm_at(model, 32))


def test_relative_positions_for_another_grid_are_resized_as_timm_does(tmp_path: Path) -> None:
    stored = registered("beit_base_patch16_224", img_size=32)
    folder = save_folder(registered("beit_base_patch16_224"), tmp_path)
    index = {"blocks.0.attn.relative_position_index": torch.zeros(17, 17, dtype=torch.long)}  # of older versions
    save_file({**stored.state_dict(), **index}, folder / "model.safetensors")
    read = read_checkpoint(folder)
    assert read.left_out == tuple(index)
    assert_equals_timm(read, timm_at(stored, 48))
    assert read.fingerprint == read_checkpoint(stored).fingerprint  # before the resizing
    assert_equals_timm(read_checkpoint(folder, image_size=64), timm_at(stored, 64))  # once, not by way of 48 px


def timm_at(model: Any, size: int) -> Any:
    resized = copy.deepcopy(model)
    resized.set_input_size(img_size=(size, size))
    return resized


def rewrite_config(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_config_of_older_versions(tmp_path: Path) -> None:
    """One flat table, as timm wrote it before 0.9; labels may have numbers."""
    model = registered("vit_tiny_patch16_224")
    folder = save_folder(model, tmp_path)
    nested = json.loads((folder / "config.json").read_text())
    flat = {**nested["pretrained_cfg"], "architecture": nested["architecture"], "model_args": nested["model_args"]}
    labels = {"4": "e", "0": "a", "2": "c", "3": "d", "1": "b"}
    read = read_checkpoint(rewrite_config(folder, {**flat, "num_classes": 5, "label_names": labels, "new_field": 1}))
    assert_equals_timm(read, model)
    assert read.classes == ("a", "b", "c", "d", "e")
    assert read.preprocessing_origin == "checkpoint"


def test_config_without_preprocessing_takes_the_architectures(tmp_path: Path) -> None:
    model = registered("deit_tiny_patch16_224")
    folder = save_folder(model, tmp_path)
    arguments = {key: value for key, value in SMALL.items() if key != "num_classes"}
    config = {"architecture": "deit_tiny_patch16_224", "num_classes": 5, "model_args": arguments}
    read = read_checkpoint(rewrite_config(folder, config))
    assert_equals_timm(read, model)
    assert read.preprocessing_origin == "usual for deit_tiny_patch16_224 (config.json does not say)"
    assert read.preprocessing.mean == tuple(model.pretrained_cfg["mean"])


def test_file_for_another_grid_is_resized_as_timm_does(tmp_path: Path) -> None:
    """The config says 48 px, the file holds positions for 32 px: timm resizes them on loading."""
    stored = registered(img_size=32)
    folder = save_folder(registered(), tmp_path)
    save_file(stored.state_dict(), folder / "model.safetensors")
    read = read_checkpoint(folder)
    assert_equals_timm(read, timm.create_model(f"local-dir:{folder}", pretrained=True).eval())
    assert read.fingerprint == read_checkpoint(stored).fingerprint  # before the resizing
    assert_equals_timm(read_checkpoint(folder, image_size=64), timm_at(stored, 64))  # once, not by way of 48 px


def test_lone_file_with_its_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = registered()
    create = timm.create_model

    def small(name: str, **arguments: Any) -> Any:
        return create(name, **{**SMALL, **arguments})

    monkeypatch.setattr(timm, "create_model", small)
    path = tmp_path / "weights.safetensors"
    for head in (5, 0):
        model.reset_classifier(head)
        randomise(model)
        save_file(model.state_dict(), path)
        read = read_checkpoint(path, architecture="vit_tiny_patch16_224")
        assert_equals_timm(read, model)
        assert read.preprocessing_origin == "usual for vit_tiny_patch16_224 (the file does not say)"
        save_file(model.state_dict(), path, metadata={"architecture": "vit_tiny_patch16_224"})
        assert read_checkpoint(str(path)).fingerprint == read.fingerprint
    with pytest.raises(MemtokError, match=r"that .* names, found 'vit_small_patch16_224'"):
        read_checkpoint(path, architecture="vit_small_patch16_224")
    folder = tmp_path / "folder"
    folder.mkdir()
    path.rename(folder / "model.safetensors")
    assert read_checkpoint(folder, architecture="vit_tiny_patch16_224").fingerprint == read.fingerprint
    with pytest.raises(MemtokError, match=r"config\.json"):
        read_checkpoint(folder)


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_replaced_by_hand_is_read_as_the_file_has_it(tmp_path: Path, bias: bool) -> None:
    model = registered()
    folder = save_folder(model, tmp_path / "model", model_args=SMALL, model_config={"label_names": list("abcde")})
    config = json.loads((folder / "config.json").read_text())
    model.head = nn.Linear(32, 7, bias=bias)
    randomise(model)
    (folder / "model.safetensors").unlink()
    save_file(model.state_dict(), folder / "model.safetensors")
    assert config["num_classes"] == 5
    state = torch.get_rng_state()
    read = read_checkpoint(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert_equals_timm(read, model)
    assert read.classes == ()


def test_left_out_of_timms_files(tmp_path: Path) -> None:
    model = registered()
    folder = save_folder(model, tmp_path)
    extra = {"mask_token": torch.zeros(1, 32), "pre_logits.fc.weight": torch.zeros(3, 3)}
    save_file({**model.state_dict(), **extra}, folder / "model.safetensors")
    read = read_checkpoint(folder)
    assert read.left_out == ("mask_token", "pre_logits.fc.weight")
    assert_equals_timm(read, model)


def test_every_tensor_counts(tmp_path: Path) -> None:
    model = registered()
    folder = save_folder(model, tmp_path)
    state = model.state_dict()
    without = {name: tensor for name, tensor in state.items() if name != "norm.bias"}
    cases = {
        "norm.bias, found none": without,
        "no tensor blocks.2.norm1.bias": {**state, "blocks.2.norm1.bias": torch.zeros(32)},
        r"norm.bias of shape \(32,\), found \(33,\)": {**state, "norm.bias": torch.zeros(33)},
        r"pos_embed of shape \(1, 26, 32\), found \(1, 31, 32\)": {**state, "pos_embed": torch.zeros(1, 31, 32)},
    }
    for message, tensors in cases.items():
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(MemtokError, match=message):
            read_checkpoint(folder)


def test_timm_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is not asked here: `create_model` gives a small model in place of the published one."""
    model, asked = registered(), []

    def published(name: str, **arguments: Any) -> Any:
        asked.append((name, arguments))
        torch.rand(3)  # timm draws numbers before it loads
        return copy.deepcopy(model)

    monkeypatch.setattr(timm, "create_model", published)
    before = torch.get_rng_state()
    read = read_checkpoint("vit_tiny_patch16_224.augreg_in21k_ft_in1k", image_size=32)
    assert asked == [("vit_tiny_patch16_224.augreg_in21k_ft_in1k", {"pretrained": True})]
    assert torch.equal(torch.get_rng_state(), before)
    assert_equals_timm(read, timm_at(model, 32))
    assert read.source == "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert read.preprocessing_origin == "checkpoint"
    assert read.fingerprint == read_checkpoint(model).fingerprint


def test_names_and_weights_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MemtokError, match=r"did you mean .*vit_tiny_patch16_224"):
        read_checkpoint("vit_tiny_patch16_225")
    with pytest.raises(MemtokError, match="check the spelling"):
        read_checkpoint("nonsense")
    with pytest.raises(MemtokError, match="'tiny'"):
        read_checkpoint("vit_tiny_patch16_224", architecture="tiny")

    def offline(name: str, **arguments: Any) -> Any:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(MemtokError, match="no network") as caught:
        read_checkpoint("vit_tiny_patch16_224")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "no_such_model"}, "'no_such_model'"),
        ({"architecture": "vit_tiny_patch16_224", "model_args": [1]}, "model_args"),
        ({"architecture": "vit_tiny_patch16_224", "model_args": {"windows": 3}}, "windows"),
        ({"architecture": "swin_tiny_patch4_window7_224", "num_classes": 2}, "SwinTransformer"),
    ],
)
def test_configs_that_are_refused(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = rewrite_config(save_folder(registered(), tmp_path), config)
    with pytest.raises(MemtokError, match=message):
        read_checkpoint(folder)


def test_reading_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
    folder = save_folder(registered(), tmp_path)
    with caplog.at_level(logging.WARNING):
        read_checkpoint(folder, image_size=32)
    assert (*capsys.readouterr(), caplog.records) == ("", "", [])


def test_torchs_defaults_do_not_matter(tmp_path: Path) -> None:
    folder = save_folder(registered(), tmp_path)
    expected = read_checkpoint(folder).fingerprint
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert read_checkpoint(folder).fingerprint == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_models_on_the_meta_device_are_refused() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(MemtokError, match="meta device"):
        read_checkpoint(model)
