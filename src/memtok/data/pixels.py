"""From a PIL image to the pixels of the model's input, without torch: resize, crop, and for evaluation all of it.

One implementation for training, evaluation and exported models (transforms.py, and `memtok.load_onnx`, which does
without torch). C, H, W: channels (3), height and width of the model's input.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from memtok.data.images import as_rgb
from memtok.preprocessing import Preprocessing

LARGEST_RESIZED = 2**24
"""Images of at most this many pixels after the resize are resized as a whole: 50 MB in RGB."""

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def evaluation_array(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """uint8 pixels (C, H, W) of an image of any mode, resized and cropped as in evaluation."""
    return array_of(cut_for_evaluation(as_rgb(image, preprocessing.pixel_range), preprocessing))


def normalised_array(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """float32 (..., C, H, W) of uint8 pixels (..., C, H, W): / 255, minus the mean, divided by the standard deviation.

    Bit by bit what `memtok.data.transforms.Normaliser` gives.
    """
    mean, std = (np.array(row, np.float32)[:, None, None] for row in (preprocessing.mean, preprocessing.std))
    found: NDArray[np.float32] = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return found


def cut_for_evaluation(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """An RGB image resized and centre-cropped to the input size."""
    resized = resized_size(image, preprocessing.resize)
    crop = preprocessing.image_size if preprocessing.crop else resized
    corner = centre_corner(resized, crop, low=preprocessing.position_resize == "transformers")
    return resize_and_crop(image, resized, corner, crop, preprocessing.interpolation)


def resize(image: Image.Image, size: tuple[int, int] | int, interpolation: str) -> Image.Image:
    """The image at its `resized_size`."""
    height, width = resized_size(image, size)
    return image.resize((width, height), INTERPOLATIONS[interpolation])


def resized_size(image: Image.Image, size: tuple[int, int] | int) -> tuple[int, int]:
    """(height, width) exactly as `size` says, or, if that is a number, with it as the shorter side."""
    return resized_sides(image.height, image.width, size)


def resized_sides(height: int, width: int, size: tuple[int, int] | int) -> tuple[int, int]:
    """The same of an image of these sides."""
    if not isinstance(size, int):
        return size
    short, long = sorted((height, width))
    longer = int(size * long / short)  # rounded down, as torchvision and transformers do
    return (size, longer) if height <= width else (longer, size)


def centre_corner(size: tuple[int, int], crop: tuple[int, int], *, low: bool) -> tuple[int, int]:
    """(top, left) of the centre crop of an image that is at least as large as the crop, as `Preprocessing` ensures.

    Where the middle falls between two pixels, `low` takes the lower one, as transformers does; otherwise half numbers
    go to the even neighbour, as torchvision and so timm do.
    """
    top, left = (
        (whole - part) // 2 if low else round((whole - part) / 2) for whole, part in zip(size, crop, strict=True)
    )
    return top, left


def resize_and_crop(
    image: Image.Image, size: tuple[int, int], corner: tuple[int, int], crop: tuple[int, int], interpolation: str
) -> Image.Image:
    """The part of (height, width) `crop` at (top, left) `corner` of the image resized to (height, width) `size`.

    Of a long and thin image (60000 x 1 would become 15 million x 256) only that part is computed. Its pixels are the
    same but for rounding: Pillow rounds positions and chooses which side it resizes first by the sizes.
    """
    (height, width), (top, left) = size, corner
    bottom, right = top + crop[0], left + crop[1]
    if height * width <= LARGEST_RESIZED:
        return resize(image, size, interpolation).crop((left, top, right, bottom))
    across, down = image.width / width, image.height / height
    box = left * across, top * down, min(right * across, image.width), min(bottom * down, image.height)
    return image.resize((crop[1], crop[0]), INTERPOLATIONS[interpolation], box)


def array_of(image: Image.Image) -> NDArray[np.uint8]:
    """A PIL image in RGB as uint8 pixels (C, H, W)."""
    return np.ascontiguousarray(np.array(image).transpose(2, 0, 1))
