"""The preprocessing of a checkpoint: transformers' `preprocessor_config.json`, timm's `pretrained_cfg`.

And the usual preprocessing of an architecture, for checkpoints without settings of their own.

Sources: transformers' image processors (ViT, DeiT, Bit, CLIP, SigLIP), timm's `resolve_data_config` and
`transforms_imagenet_eval`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from timm.data import resolve_data_config
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing, size_pair

PILLOW_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}

_IMAGENET = {"image_mean": list(IMAGENET_DEFAULT_MEAN), "image_std": list(IMAGENET_DEFAULT_STD)}
# The defaults of transformers' image processors, for settings that are not in the file.
_COMMON = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
_CLIP = {
    **_COMMON,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": 224,
    "resample": 3,
    "image_mean": list(OPENAI_CLIP_MEAN),
    "image_std": list(OPENAI_CLIP_STD),
}
_VIT = {
    **_COMMON,
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
PROCESSOR_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": _VIT,
    "DeiT": {
        **_VIT,
        "size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "crop_size": 224,
        "resample": 3,
    },
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "Beit": {**_VIT, "resample": 3, "crop_size": 224},
    "DINOv3ViT": {**_VIT, **_IMAGENET},
    "Siglip": {**_VIT, "resample": 3},
}
# In these a size that is one number is the shorter side, in the others a square.
SHORTEST_EDGE_PROCESSORS = ("Bit", "CLIP")
# Settings that change the image in ways that `Preprocessing` cannot describe.
UNSUPPORTED_SETTINGS = ("crop_pct", "do_pad", "rescale_offset", "do_reduce_labels")

# The settings of the published checkpoints of a model type: google/vit-*, facebook/deit-*, facebook/dinov2-*,
# openai/clip-*, google/siglip-*.
_DINOV2 = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, **_IMAGENET}
USUAL_PROCESSORS: dict[str, dict[str, Any]] = {
    "vit": {"image_processor_type": "ViTImageProcessor"},
    "deit": {"image_processor_type": "DeiTImageProcessor", **_IMAGENET},
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "beit": {"image_processor_type": "BeitImageProcessor"},
    "dinov3_vit": {"image_processor_type": "DINOv3ViTImageProcessor"},
    "clip": {"image_processor_type": "CLIPImageProcessor"},
    "siglip": {"image_processor_type": "SiglipImageProcessor"},
}
# The settings of most of timm's Vision Transformers.
USUAL_TIMM: dict[str, Any] = {
    "mean": IMAGENET_INCEPTION_MEAN,
    "std": IMAGENET_INCEPTION_STD,
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "crop_mode": "center",
}


def usual_preprocessing(model_type: str, image_size: tuple[int, int], position_resize: str) -> Preprocessing:
    """The preprocessing of the published checkpoints of a transformers model type, for this image size."""
    usual = read_processor(USUAL_PROCESSORS[model_type], model_type, image_size, position_resize)
    return usual.with_image_size(image_size)


def read_processor(
    config: Mapping[str, Any], model_type: str, own_size: tuple[int, int], position_resize: str
) -> Preprocessing:
    """Preprocessing of transformers' `preprocessor_config.json`, at its own size.

    model_type: gives the processor where the file does not name it. own_size: (height, width) of the model, for a file
    without a size. MemtokError that names a setting that is not supported.

    A processor that does not resize expects images of the right size; here other images are resized to that size.
    """
    family = _family(config, model_type)
    settings = {**PROCESSOR_DEFAULTS[family], **{key: value for key, value in config.items() if value is not None}}
    for key in UNSUPPORTED_SETTINGS:
        if settings.get(key):
            raise MemtokError(
                "expected an image processor of resize, centre crop and normalisation, found "
                f"{key} = {settings[key]!r} in preprocessor_config.json; remove it there"
            )
    resize = _size(settings["size"], "size", shortest_edge=family in SHORTEST_EDGE_PROCESSORS)
    if settings["do_center_crop"]:
        image_size = _exact(settings.get("crop_size", 224))
        if not settings["do_resize"]:
            resize = max(image_size)
    elif not settings["do_resize"]:
        image_size = resize = own_size
    else:
        image_size = (resize, resize) if isinstance(resize, int) else resize
    mean, std = _normalisation(settings)
    return Preprocessing(
        image_size=image_size,
        resize=resize,
        crop=bool(settings["do_center_crop"]) or isinstance(resize, int),
        interpolation=_interpolation(settings["resample"]),
        mean=mean,
        std=std,
        position_resize=position_resize,
    )


def _family(config: Mapping[str, Any], model_type: str) -> str:
    """A key of PROCESSOR_DEFAULTS, by its class (ViTImageProcessor, CLIPFeatureExtractor), else by the model type."""
    name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    for family in PROCESSOR_DEFAULTS:
        if name.startswith(family):
            return family
    return _family(USUAL_PROCESSORS[model_type], model_type)


def _size(value: Any, name: str, *, shortest_edge: bool) -> tuple[int, int] | int:
    """A size as `Preprocessing.resize` has it: pixels of the shorter side, or an exact (height, width)."""
    if isinstance(value, Mapping) and set(value) == {"shortest_edge"}:
        side, _ = size_pair(value["shortest_edge"], name)
        return side
    if isinstance(value, int) and shortest_edge:
        return size_pair(value, name)[0]
    return _exact(value, name)


def _exact(value: Any, name: str = "crop_size") -> tuple[int, int]:
    """(height, width) of a size that gives both."""
    if isinstance(value, Mapping) and set(value) == {"height", "width"}:
        return size_pair((value["height"], value["width"]), name)
    if isinstance(value, int):
        return size_pair(value, name)
    raise MemtokError(
        f"expected {name} in preprocessor_config.json as a number, height and width, or shortest_edge, "
        f"found {value!r}; correct it there"
    )


def _interpolation(code: Any) -> str:
    if code not in PILLOW_INTERPOLATIONS:
        known = ", ".join(f"{number} ({name})" for number, name in PILLOW_INTERPOLATIONS.items())
        raise MemtokError(
            f"expected resample in preprocessor_config.json out of {known}, found {code!r}; correct it there"
        )
    return PILLOW_INTERPOLATIONS[code]


def _normalisation(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """Mean and std for pixels in [0, 1], whatever scale the processor normalises in.

    With a rescale factor f a pixel p of [0, 255] becomes (p f - mean) / std. In terms of p / 255 that is
    (p / 255 - mean / s) / (std / s), where s = 255 f.
    """
    mean, std = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    if settings["do_normalize"]:
        mean, std = settings["image_mean"], settings["image_std"]
    scale = 255 * float(settings["rescale_factor"]) if settings["do_rescale"] else 255.0
    # 1/255 is stored with rounding: with the usual factor mean and std stay exactly as they are written.
    if abs(scale - 1) < 1e-6 or not isinstance(mean, list) or not isinstance(std, list):
        return mean, std
    return [value / scale for value in mean], [value / scale for value in std]


def has_timm_preprocessing(config: Mapping[str, Any]) -> bool:
    """Whether a timm `pretrained_cfg` has a normalisation of its own."""
    return bool(config.get("mean")) and bool(config.get("std"))


def timm_preprocessing(config: Mapping[str, Any], image_size: tuple[int, int]) -> Preprocessing:
    """Preprocessing of a timm `pretrained_cfg` for this image size, as timm's own evaluation does it.

    MemtokError for a crop mode or interpolation that `Preprocessing` does not have.
    """
    data = resolve_data_config(pretrained_cfg=dict(config) or dict(USUAL_TIMM))
    height, width = (math.floor(side / data["crop_pct"]) for side in image_size)
    resize: tuple[int, int] | int
    if data["crop_mode"] == "squash":
        resize = (height, width)
    elif data["crop_mode"] == "center":
        # timm gives one number for square sizes; for others it covers the crop, as the longer side does here.
        resize = max(height, width)
    else:
        raise MemtokError(
            f"expected timm's crop mode center or squash, found {data['crop_mode']!r} in the checkpoint's config; "
            "change it there"
        )
    return Preprocessing(
        image_size=image_size,
        resize=resize,
        crop=resize != image_size,
        interpolation=str(data["interpolation"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        position_resize="timm",
    )
