"""From an image to the model's input: size, crop, range and normalisation as the checkpoint was trained with.

C, H, W: channels (3), height and width of the model's input. Transforms take a PIL image and return a float32 tensor
(C, H, W): pixels / 255, minus the mean, divided by the standard deviation. Each has two parts: one that returns uint8
pixels (C, H, W), and the `Normaliser`. memtok's own loops load pixels, a quarter of the bytes, and normalise whole
batches on the model's device; the numbers are the same. All of them can be pickled.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from memtok.data.choices import AUGMENTATIONS
from memtok.data.images import as_rgb
from memtok.data.pixels import array_of, cut_for_evaluation, resize, resize_and_crop, resized_size
from memtok.data.variation import Variation, VariationError
from memtok.errors import MemtokError, one_line
from memtok.preprocessing import Preprocessing

Transform = Callable[[Image.Image], Tensor]

CROP_MARGIN = 8 / 7
"""`crop` resizes to this multiple of the input size: 224 to 256, the usual ratio of resize and crop."""

SCALES, RATIO = {"inception": (0.08, 1.0), "light": (0.5, 1.0)}, (3 / 4, 4 / 3)
"""Of a random part: the share of the area that it covers, by augmentation, and its width over its height."""

ATTEMPTS = 10  # to draw a part within the image, as in timm; then the middle is taken


class PythonRandom(Protocol):
    """What is needed of Python's random numbers: a `random.Random`, or the module `random`."""

    def uniform(self, a: float, b: float) -> float: ...
    def randint(self, a: int, b: int) -> int: ...


@dataclass(frozen=True)
class Generators:
    """Where an augmentation draws its random numbers. torch None: from torch's global generator."""

    python: PythonRandom
    torch: torch.Generator | None

    def below(self, end: int) -> int:
        """A whole number from 0 to `end` - 1, by torch's generator."""
        return int(torch.randint(0, end, (1,), generator=self.torch))

    def heads(self) -> bool:
        """True in one of two cases, by torch's generator."""
        return bool(torch.rand(1, generator=self.torch) < 0.5)


GLOBAL_GENERATORS = Generators(random, None)


class OwnTransform(ABC):
    """A transform of memtok: it takes images of any mode, and scales those with more than 8 bits.

    It draws from `generators` only, never from the global ones unless they are given; if it `draws`, it runs code of
    the user, which may draw from these.
    """

    draws: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, image: Image.Image, generators: Generators = GLOBAL_GENERATORS) -> Tensor:
        """The tensor (C, H, W) of an image."""


@dataclass(frozen=True)
class PixelTransform(OwnTransform):
    """A transform to uint8 pixels (C, H, W): RGB, cut to the input size, with `flip` mirrored in half of the cases."""

    preprocessing: Preprocessing
    flip: bool = False

    def __call__(self, image: Image.Image, generators: Generators = GLOBAL_GENERATORS) -> Tensor:
        cut = self.cut(as_rgb(image, self.preprocessing.pixel_range), generators)
        if self.flip and generators.heads():
            cut = ImageOps.mirror(cut)
        return pixels_of(cut)

    @abstractmethod
    def cut(self, image: Image.Image, generators: Generators) -> Image.Image:
        """An RGB image resized and cropped to the input size."""


@dataclass(frozen=True)
class EvaluationPixels(PixelTransform):
    """The preprocessing of evaluation: resize, centre crop."""

    def cut(self, image: Image.Image, generators: Generators) -> Image.Image:
        return cut_for_evaluation(image, self.preprocessing)


@dataclass(frozen=True)
class RandomCropPixels(PixelTransform):
    """Resize to a little more than the input size, random crop."""

    def cut(self, image: Image.Image, generators: Generators) -> Image.Image:
        settings = self.preprocessing
        height, width = settings.image_size
        size: tuple[int, int] | int
        if isinstance(settings.resize, int):
            size = math.ceil(max(height, width) * CROP_MARGIN)
        else:
            size = (math.ceil(height * CROP_MARGIN), math.ceil(width * CROP_MARGIN))
        resized = resized_size(image, size)
        top, left = 0, 0
        if resized != (height, width):
            top, left = (
                generators.below(whole - part + 1) for whole, part in zip(resized, (height, width), strict=True)
            )
        return resize_and_crop(image, resized, (top, left), (height, width), settings.interpolation)


@dataclass(frozen=True)
class PartPixels(PixelTransform):
    """A random part of the image, of `scale` of its area, resized to the input size; the same parts as in timm."""

    scale: tuple[float, float] = SCALES["inception"]

    def cut(self, image: Image.Image, generators: Generators) -> Image.Image:
        settings = self.preprocessing
        part = image.crop(random_part(image, self.scale, generators.python))
        return resize(part, settings.image_size, settings.interpolation)


@dataclass(frozen=True)
class VariedPixels(OwnTransform):
    """The user's own variation of an RGB image. What has the input size then is taken as it is, else as in evaluation.

    Raises VariationError where the variation fails, or gives no picture.
    """

    preprocessing: Preprocessing
    variation: Variation
    draws: ClassVar[bool] = True

    def __call__(self, image: Image.Image, generators: Generators = GLOBAL_GENERATORS) -> Tensor:
        given = as_rgb(image, self.preprocessing.pixel_range)
        try:
            varied = as_image(self.variation.transform(given), "its result")
        except MemoryError:
            raise
        except Exception as error:  # the user's code may raise anything
            reason = str(error) if isinstance(error, MemtokError) else f"{type(error).__name__}: {error}"
            raise VariationError(one_line(reason)) from error
        if (varied.height, varied.width) == self.preprocessing.image_size:
            return pixels_of(varied)
        return evaluation_pixels(self.preprocessing)(varied, generators)


class Normaliser:
    """From pixels to the model's input: / 255, minus the mean, divided by the standard deviation of each channel.

    It works on the device of the pixels, on one image or on a batch; its constants are copied to a device once.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        # 255 as a tensor: by a plain number a GPU does not divide, it multiplies with 1 / 255, which is another number.
        rows = [(255.0,) * 3, preprocessing.mean, preprocessing.std]
        self.constants = torch.tensor(rows, dtype=torch.float32, device="cpu")[:, :, None, None]
        self.placed = {self.constants.device: self.constants}

    def __call__(self, pixels: Tensor) -> Tensor:
        """float32 (..., C, H, W) of uint8 pixels (..., C, H, W)."""
        if pixels.dtype != torch.uint8:
            raise MemtokError(
                f"expected pixels in uint8 to normalise, found {pixels.dtype}; give them as loaded", argument="pixels"
            )
        if pixels.device not in self.placed:
            self.placed[pixels.device] = self.constants.to(pixels.device)
        scale, mean, std = self.placed[pixels.device]  # (C, 1, 1) each
        return pixels.float().div_(scale).sub_(mean).div_(std)


@dataclass(frozen=True)
class Normalised(OwnTransform):
    """A transform to pixels, followed by the normalisation."""

    pixels: OwnTransform
    normalise: Normaliser

    def __call__(self, image: Image.Image, generators: Generators = GLOBAL_GENERATORS) -> Tensor:
        return self.normalise(self.pixels(image, generators))


def evaluation_transform(preprocessing: Preprocessing) -> OwnTransform:
    """The transform of evaluation: resize, centre crop, normalise. It is deterministic.

    It equals the checkpoint's own: transformers' image processors (those on PIL) where the checkpoint came in
    transformers' layout, else timm's `create_transform(is_training=False)`.
    """
    return Normalised(evaluation_pixels(preprocessing), Normaliser(preprocessing))


def evaluation_pixels(preprocessing: Preprocessing) -> OwnTransform:
    """The same without the last step: uint8 pixels (C, H, W), for a `Normaliser`."""
    return EvaluationPixels(preprocessing)


def training_transform(preprocessing: Preprocessing, augment: str = "inception", flip: bool = True) -> OwnTransform:
    """The transform of training. Called with an image alone it draws from the global generators; the data loader gives
    it generators that are seeded for each image.

    `augment`: "inception", a random part of 8 % to 100 % of the area with sides 3:4 to 4:3, resized to the input size
    (GoogLeNet, Szegedy et al. 2015; timm's); "light", the same of 50 % to 100 %; "crop", resize to 8/7 of the input
    size and a random crop; "none", what evaluation does, never mirrored. `flip`: mirror half of the images. Raises
    MemtokError for another name.
    """
    return Normalised(training_pixels(preprocessing, augment, flip), Normaliser(preprocessing))


def training_pixels(preprocessing: Preprocessing, augment: str = "inception", flip: bool = True) -> OwnTransform:
    """The same without the last step: uint8 pixels (C, H, W), for a `Normaliser`."""
    if augment == "none":
        return evaluation_pixels(preprocessing)
    if augment == "crop":
        return RandomCropPixels(preprocessing, flip)
    if augment in SCALES:
        return PartPixels(preprocessing, flip, SCALES[augment])
    raise MemtokError(
        f"expected augment to be one of {', '.join(AUGMENTATIONS)}, found {augment!r}; choose one", argument="augment"
    )


def varied_pixels(preprocessing: Preprocessing, augment: str, flip: bool, own: Variation | None) -> OwnTransform:
    """`training_pixels`, or the user's own variation in its place."""
    return training_pixels(preprocessing, augment, flip) if own is None else VariedPixels(preprocessing, own)


def random_part(image: Image.Image, scale: tuple[float, float], python: PythonRandom) -> tuple[int, int, int, int]:
    """A box (left, top, right, bottom) of `scale` of the area with sides of `RATIO`.

    It draws what timm's RandomResizedCropAndInterpolation draws, in the same order, so a seed gives the same box.
    """
    low, high = RATIO
    for _ in range(ATTEMPTS):
        area = python.uniform(*scale) * (image.width * image.height)
        ratio = math.exp(python.uniform(math.log(low), math.log(high)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if width <= image.width and height <= image.height:
            top = python.randint(0, image.height - height)
            left = python.randint(0, image.width - width)
            return left, top, left + width, top + height
    width, height = image.size  # the largest part in the middle
    if width / height < low:
        height = round(width / low)
    elif width / height > high:
        width = round(height * high)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return left, top, left + width, top + height


def as_image(value: Any, where: str = "item 0") -> Image.Image:
    """A PIL image, tensor or array as `from_dataset` takes them, as a PIL image in RGB.

    Raises MemtokError for other things, and for float pixels outside [0, 1]: those were normalised already.
    """
    if isinstance(value, Image.Image):
        return as_rgb(value)
    pixels = value
    if isinstance(value, torch.Tensor):
        pixels = value.detach().cpu().numpy()
        if pixels.ndim == 3:
            pixels = pixels.transpose(1, 2, 0)  # (height, width, channels)
    if not isinstance(pixels, np.ndarray) or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        found = f"{type(value).__name__} {tuple(getattr(value, 'shape', ()))}"
        raise MemtokError(
            f"expected a PIL image, a tensor (channels, height, width) or an array (height, width, channels), found "
            f"{found} at {where}; convert it",
            argument="dataset",
        )
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4):
        raise MemtokError(
            f"expected 1, 3 or 4 channels, found {pixels.shape[2]} in {type(value).__name__} {tuple(value.shape)} at "
            f"{where}; give tensors as (channels, height, width), arrays as (height, width, channels)",
            argument="dataset",
        )
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= -1e-6 and high <= 1 + 1e-6):
            raise MemtokError(
                f"expected float pixels in [0, 1], found {low:.3g} to {high:.3g} at {where}; leave out the "
                "normalisation, memtok does it as the backbone needs it",
                argument="dataset",
            )
        pixels = np.rint(pixels * 255)
    elif pixels.dtype != np.uint8:
        raise MemtokError(
            f"expected pixels as float in [0, 1] or as uint8, found {pixels.dtype} at {where}; convert them",
            argument="dataset",
        )
    pixels = pixels.astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return as_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


def pixels_of(image: Image.Image) -> Tensor:
    """A PIL image in RGB as uint8 pixels (C, H, W)."""
    return torch.from_numpy(array_of(image))
