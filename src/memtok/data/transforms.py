"""From a picture to what the model receives: size, crop, range and normalisation as the checkpoint was trained with.

C, H, W: channels (3), height and width of the model's input. All transforms take a PIL image in RGB and return a
float32 tensor (C, H, W): pixels / 255, less the mean, over the standard deviation. They can be pickled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision import transforms

from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing

Transform = Callable[[Image.Image], Tensor]

AUGMENTATIONS = ("inception", "crop", "none")

CROP_MARGIN = 8 / 7
"""`crop` resizes to this much more than the input size: 224 to 256, the usual ratio of resize and crop."""

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class EvaluationTransform:
    """The deterministic transform of evaluation; see `evaluation_transform`."""

    preprocessing: Preprocessing

    def __call__(self, image: Image.Image) -> Tensor:
        settings = self.preprocessing
        image = resize(image, settings.resize, settings.interpolation)
        if settings.crop:
            image = centre_crop(image, settings.image_size, low=settings.position_resize == "transformers")
        return normalise(image, settings)


@dataclass(frozen=True)
class RandomCropTransform:
    """Resize to a little more than the input size, random crop, perhaps a random flip."""

    preprocessing: Preprocessing
    flip: bool

    def __call__(self, image: Image.Image) -> Tensor:
        settings = self.preprocessing
        height, width = settings.image_size
        size: tuple[int, int] | int
        if isinstance(settings.resize, int):
            size = math.ceil(max(height, width) * CROP_MARGIN)
        else:
            size = (math.ceil(height * CROP_MARGIN), math.ceil(width * CROP_MARGIN))
        image = resize(image, size, settings.interpolation)
        image = transforms.RandomCrop((height, width))(image)
        if self.flip:
            image = transforms.RandomHorizontalFlip()(image)
        return normalise(image, settings)


def evaluation_transform(preprocessing: Preprocessing) -> Transform:
    """The transform of evaluation: resize, centre crop, normalise, without chance.

    It equals the checkpoint's own: transformers' image processors (those on PIL) where the checkpoint came in
    transformers' layout, else timm's `create_transform(is_training=False)`.
    """
    return EvaluationTransform(preprocessing)


def training_transform(preprocessing: Preprocessing, augment: str = "inception", flip: bool = True) -> Transform:
    """The transform of training. Chance comes from the global generators, which the loader seeds per image.

    `augment`: "inception", a random part of 8 % to 100 % of the area with sides 3:4 to 4:3, resized to the input size
    (GoogLeNet, Szegedy et al. 2015; timm's); "crop", resize to 8/7 of the input size and a random crop; "none", what
    evaluation does, never mirrored. `flip`: mirror one picture in two. Raises MemtokError for another name.
    """
    if augment == "none":
        return evaluation_transform(preprocessing)
    if augment == "crop":
        return RandomCropTransform(preprocessing, flip)
    if augment == "inception":
        transform: Transform = create_transform(
            input_size=(3, *preprocessing.image_size),
            is_training=True,
            scale=(0.08, 1.0),
            ratio=(3 / 4, 4 / 3),
            hflip=0.5 if flip else 0.0,
            color_jitter=None,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
        )
        return transform
    raise MemtokError(f"expected augment to be one of {', '.join(AUGMENTATIONS)}, found {augment!r}; choose one")


def resize(image: Image.Image, size: tuple[int, int] | int, interpolation: str) -> Image.Image:
    """Resizes to exactly (height, width), or so that the shorter side is `size` and the proportions stay."""
    if isinstance(size, int):
        short, long = sorted((image.height, image.width))
        longer = int(size * long / short)  # rounded down, as torchvision and transformers do
        height, width = (size, longer) if image.height <= image.width else (longer, size)
    else:
        height, width = size
    return image.resize((width, height), INTERPOLATIONS[interpolation])


def centre_crop(image: Image.Image, size: tuple[int, int], *, low: bool) -> Image.Image:
    """The middle of the image, (height, width); the image is at least that large, as `Preprocessing` makes sure.

    Where the middle falls between two pixels, `low` takes the lower one, as transformers does; otherwise half numbers
    go to the even neighbour, as torchvision and so timm do.
    """
    height, width = size
    spare = image.height - height, image.width - width
    top, left = (pixels // 2 if low else round(pixels / 2) for pixels in spare)
    return image.crop((left, top, left + width, top + height))


def normalise(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """A PIL image in RGB as a normalised float32 tensor (C, H, W)."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255  # (C, H, W), [0, 1]
    mean = torch.tensor(preprocessing.mean)[:, None, None]
    std = torch.tensor(preprocessing.std)[:, None, None]
    return ((pixels - mean) / std).contiguous()
