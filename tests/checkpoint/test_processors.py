"""Preprocessing as checkpoints write it down: transformers' processor files, timm's pretrained_cfg."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import v2

from memtok.checkpoint.processors import (
    PROCESSOR_DEFAULTS,
    USUAL_PROCESSORS,
    has_timm_preprocessing,
    read_processor,
    timm_preprocessing,
    usual_preprocessing,
)
from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing

OWN = (48, 48)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGENET_MEAN = (0.485, 0.456, 0.406)


def read(model_type: str = "vit", **config: Any) -> Preprocessing:
    return read_processor(config, model_type, OWN, "transformers")


def picture(height: int, width: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def apply(preprocessing: Preprocessing, image: Image.Image) -> torch.Tensor:
    """The steps, written out: resize by Pillow, crop, scale, normalise."""
    mode = v2.InterpolationMode(preprocessing.interpolation)
    resize = preprocessing.resize
    steps = [v2.Resize(resize if isinstance(resize, int) else list(resize), mode)]
    steps += [v2.CenterCrop(preprocessing.image_size)] if preprocessing.crop else []
    steps += [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(preprocessing.mean, preprocessing.std),
    ]
    result: torch.Tensor = v2.Compose(steps)(image)
    return result


@pytest.mark.parametrize("name", ["ViT", "DeiT", "Bit", "CLIP", "Siglip", "DINOv3ViT", "Beit"])
def test_processors_as_transformers_saves_them(name: str, tmp_path: Path) -> None:
    """Defaults and saved files of transformers' own processors mean what they do to a picture."""
    transformers = pytest.importorskip("transformers")
    # torchvision's resize of tensors and Pillow's differ by rounding to whole pixel values; Pillow's is read here.
    kind = getattr(transformers, f"{name}ImageProcessorPil", None) or getattr(transformers, f"{name}ImageProcessor")
    processor = kind()
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    preprocessing = read_processor(saved, "vit", OWN, "transformers")
    assert preprocessing == read_processor(
        {"image_processor_type": f"{name}ImageProcessor"}, "vit", OWN, "transformers"
    )
    expected = processor(picture(300, 360), return_tensors="pt")["pixel_values"][0]
    found = apply(preprocessing, picture(300, 360))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 0.1  # one step of 1/255 over a std of 0.27, and rounding
    assert (found - expected).abs().mean() < 0.01


def test_sizes() -> None:
    exact = read(size={"height": 32, "width": 64})
    assert (exact.image_size, exact.resize, exact.crop) == ((32, 64), (32, 64), False)
    assert read(size=32).resize == (32, 32)  # one number is a square to ViT and DeiT
    deit = read("deit", size=64, crop_size=48, do_center_crop=True)
    assert (deit.image_size, deit.resize, deit.crop) == ((48, 48), (64, 64), True)
    clip = read("clip", size=64, crop_size=48)  # and the shorter side to CLIP and DINOv2
    assert (clip.image_size, clip.resize, clip.crop) == ((48, 48), 64, True)
    named = read(feature_extractor_type="CLIPFeatureExtractor", size=64, crop_size={"height": 48, "width": 48})
    assert (named.image_size, named.resize, named.crop) == ((48, 48), 64, True)
    uncropped = read(size={"shortest_edge": 64})  # the model takes one size only, so the middle is taken
    assert (uncropped.image_size, uncropped.resize, uncropped.crop) == ((64, 64), 64, True)


def test_steps_that_are_switched_off() -> None:
    assert read(do_normalize=False).mean == (0, 0, 0)
    assert read(do_normalize=False).std == (1, 1, 1)
    assert read(do_rescale=False, image_mean=[127.5] * 3, image_std=[51.0] * 3).mean == (0.5, 0.5, 0.5)
    assert read(do_rescale=False, image_mean=[127.5] * 3, image_std=[51.0] * 3).std == (0.2, 0.2, 0.2)
    assert read(rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3).mean == pytest.approx((0.5,) * 3)
    unresized = read(do_resize=False)
    assert (unresized.image_size, unresized.resize, unresized.crop) == (OWN, OWN, False)
    cropped = read("clip", do_resize=False, crop_size=32)
    assert (cropped.image_size, cropped.resize, cropped.crop) == ((32, 32), 32, True)
    assert not read("clip", do_center_crop=False, size={"height": 64, "width": 64}).crop


def test_the_usual_rescale_factor_leaves_the_numbers_as_written() -> None:
    numbers = [0.1, 0.2, 0.3]
    assert read(rescale_factor=0.00392156862745098, image_mean=numbers).mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(("code", "name"), [(0, "nearest"), (1, "lanczos"), (2, "bilinear"), (3, "bicubic")])
def test_interpolations_are_pillows(code: int, name: str) -> None:
    assert read(resample=code).interpolation == name
    assert Image.Resampling(code).name.lower() == name


def test_absent_and_empty_settings_are_the_processors_own() -> None:
    assert read("clip").mean == CLIP_MEAN
    assert read("clip", image_mean=None, crop_size=None).mean == CLIP_MEAN
    assert read("dinov2").mean == CLIP_MEAN  # BitImageProcessor's, where a file leaves it out
    assert read("clip", image_processor_type="ViTImageProcessorFast").mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"resample": 4}, "resample"),
        ({"size": {"longest_edge": 64}}, "longest_edge"),
        ({"size": {"shortest_edge": 64, "longest_edge": 128}}, "longest_edge"),
        ({"size": [64, 64]}, "size"),
        ({"size": 32, "crop_size": 48, "do_center_crop": True}, "no smaller than the crop"),
        ({"crop_pct": 0.9}, "crop_pct = 0.9"),
        ({"do_pad": True}, "do_pad"),
        ({"image_mean": 0.5}, "mean"),
    ],
)
def test_unknown_settings_are_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(MemtokError, match=message) as caught:
        read(**config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "resize", "crop", "mean"),
    [
        ("vit", (96, 96), False, (0.5, 0.5, 0.5)),
        ("deit", (110, 110), True, IMAGENET_MEAN),
        ("dinov2", 110, True, IMAGENET_MEAN),
        ("dinov2_with_registers", 110, True, IMAGENET_MEAN),
        ("clip", 96, True, CLIP_MEAN),
    ],
)
def test_usual_preprocessing_at_the_models_size(model_type: str, resize: Any, crop: bool, mean: Any) -> None:
    usual = usual_preprocessing(model_type, (96, 96), "transformers")
    assert usual.image_size == (96, 96)
    assert (usual.resize, usual.crop, usual.mean) == (resize, crop, mean)
    assert usual.position_resize == "transformers"


def test_every_usual_processor_is_known() -> None:
    for settings in USUAL_PROCESSORS.values():
        assert settings["image_processor_type"].removesuffix("ImageProcessor") in PROCESSOR_DEFAULTS


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize(("crop_pct", "size"), [(0.875, 224), (0.9, 96), (1.0, 64), (0.95, 48)])
def test_timm_does_the_same_to_a_picture(crop_mode: str, crop_pct: float, size: int) -> None:
    config = dict(
        input_size=(3, size, size),
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=(0.229, 0.224, 0.225),
    )
    transform = create_transform(**resolve_data_config(pretrained_cfg=config))
    found = apply(timm_preprocessing(config, (size, size)), picture(200, 280))
    torch.testing.assert_close(found, transform(picture(200, 280)), rtol=0, atol=1e-6)


def test_timm_settings() -> None:
    assert timm_preprocessing({}, (224, 224)).resize == 248  # timm's usual 0.9
    assert timm_preprocessing({}, (224, 224)).mean == (0.5, 0.5, 0.5)
    assert timm_preprocessing({}, (224, 224)).position_resize == "timm"
    assert timm_preprocessing({"mean": (0, 0, 0), "std": (1, 1, 1)}, (224, 224)).resize == 256  # timm's default 0.875
    assert timm_preprocessing({}, (90, 180)).resize == 200  # covers the longer side
    assert not has_timm_preprocessing({"input_size": (3, 224, 224)})
    with pytest.raises(MemtokError, match="'border'"):
        timm_preprocessing({"mean": (0, 0, 0), "std": (1, 1, 1), "crop_mode": "border"}, (224, 224))
    with pytest.raises(MemtokError, match="'random'"):
        timm_preprocessing({"mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "random"}, (224, 224))
