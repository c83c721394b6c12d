"""From a picture to what the model receives: size, crop, range and normalisation as the checkpoint was trained with.

C, H, W: channels (3), height and width of the model's input. Transforms take a PIL image in RGB and return a float32
tensor (C, H, W): pixels / 255, less the mean, over the standard deviation. Each is made of two parts: what happens to
the picture, which ends in uint8 pixels (C, H, W), and the `Normaliser`. memtok's own loops load pixels, a quarter of
the bytes, and normalise whole batches where the model is; the numbers are the same. All of them can be pickled.
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
class EvaluationPixels:
    """The deterministic part of evaluation: resize, centre crop."""

    preprocessing: Preprocessing

    def __call__(self, image: Image.Image) -> Tensor:
        settings = self.preprocessing
        image = resize(image, settings.resize, settings.interpolation)
        if settings.crop:
            image = centre_crop(image, settings.image_size, low=settings.position_resize == "transformers")
        return pixels_of(image)


@dataclass(frozen=True)
class RandomCropPixels:
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
        return pixels_of(image)


@dataclass(frozen=True)
class TimmPixels:
    """A transform of timm's that ends in uint8 pixels."""

    transform: Transform

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(image).contiguous()


class Normaliser:
    """From pixels to the model's input: / 255, less the mean, over the standard deviation of each channel.

    It works where the pixels are, on one image or on a batch; its constants are brought to a device once.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        # 255 as a tensor: by a plain number a GPU does not divide, it multiplies with 1 / 255, which is another number.
        rows = [(255.0,) * 3, preprocessing.mean, preprocessing.std]
        self.constants = torch.tensor(rows, dtype=torch.float32, device="cpu")[:, :, None, None]
        self.placed = {self.constants.device: self.constants}

    def __call__(self, pixels: Tensor) -> Tensor:
        """float32 (..., C, H, W) of uint8 pixels (..., C, H, W)."""
        if pixels.dtype != torch.uint8:
            raise MemtokError(f"expected pixels in uint8 to normalise, found {pixels.dtype}; give them as loaded")
        if pixels.device not in self.placed:
            self.placed[pixels.device] = self.constants.to(pixels.device)
        scale, mean, std = self.placed[pixels.device]  # (C, 1, 1) each
        return pixels.float().div_(scale).sub_(mean).div_(std)


@dataclass(frozen=True)
class Normalised:
    """What a transform to pixels gives, normalised."""

    pixels: Transform
    normalise: Normaliser

    def __call__(self, image: Image.Image) -> Tensor:
        return self.normalise(self.pixels(image))


def evaluation_transform(preprocessing: Preprocessing) -> Transform:
    """The transform of evaluation: resize, centre crop, normalise, without chance.

    It equals the checkpoint's own: transformers' image processors (those on PIL) where the checkpoint came in
    transformers' layout, else timm's `create_transform(is_training=False)`.
    """
    return Normalised(evaluation_pixels(preprocessing), Normaliser(preprocessing))


def evaluation_pixels(preprocessing: Preprocessing) -> Transform:
    """The same without the last step: uint8 pixels (C, H, W), for a `Normaliser`."""
    return EvaluationPixels(preprocessing)


def training_transform(preprocessing: Preprocessing, augment: str = "inception", flip: bool = True) -> Transform:
    """The transform of training. Chance comes from the global generators, which the loader seeds per image.

    `augment`: "inception", a random part of 8 % to 100 % of the area with sides 3:4 to 4:3, resized to the input size
    (GoogLeNet, Szegedy et al. 2015; timm's); "crop", resize to 8/7 of the input size and a random crop; "none", what
    evaluation does, never mirrored. `flip`: mirror one picture in two. Raises MemtokError for another name.
    """
    return Normalised(training_pixels(preprocessing, augment, flip), Normaliser(preprocessing))


def training_pixels(preprocessing: Preprocessing, augment: str = "inception", flip: bool = True) -> Transform:
    """The same without the last step: uint8 pixels (C, H, W), for a `Normaliser`."""
    if augment == "none":
        return evaluation_pixels(preprocessing)
    if augment == "crop":
        return RandomCropPixels(preprocessing, flip)
    if augment == "inception":
        transform: Transform = create_transform(
            input_size=(3, *preprocessing.image_size),
            is_training=True,
            scale=(0.08, 1.0),
            ratio=(3 / 4, 4 / 3),
            hflip=0.5 if flip else 0.0,
            color_jitter=None,
            interpolation=preprocessing.interpolation,
            normalize=False,
        )
        return TimmPixels(transform)
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


def pixels_of(image: Image.Image) -> Tensor:
    """A PIL image in RGB as uint8 pixels (C, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
