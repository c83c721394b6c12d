"""From paths, PIL images, arrays and tensors to the input of a model.

B: images. H, W: height and width of the model's input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from memtok.data.images import guarded, read_upright, upright
from memtok.data.transforms import Normaliser, evaluation_pixels
from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing

Picture = str | Path | Image.Image | NDArray[Any] | Tensor
"""A path; a PIL image of any mode; an array of uint8 pixels (height, width), (height, width, 3) or, with transparency,
(height, width, 4); a tensor of uint8 pixels (3, height, width), such as torchvision reads; or a floating-point tensor
(3, H, W) that is resized and normalised already."""

Pictures = Picture | Iterable[Picture]
"""One of these or several, mixed; an array (images, height, width, 3) and a tensor (B, 3, H, W) are several."""


def listed(images: Pictures) -> list[Picture]:
    """The images one by one. MemtokError for other objects."""
    if isinstance(images, str | Path | Image.Image):
        return [images]
    if isinstance(images, Tensor | np.ndarray):
        several = images.ndim == 4 and images.shape[1 if isinstance(images, Tensor) else 3] in (3, 4)
        return list(images) if several else [images]
    if not isinstance(images, Iterable):
        raise no_picture(images)
    return [picture for one in images for picture in ([one] if isinstance(one, str) else listed(one))]


def prepare(images: Pictures, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """(B, 3, H, W) float32 on `device`: resized, cropped and normalised by `preprocessing`.

    Raises MemtokError for objects that are no image, and for none at all.
    """
    pictures = listed(images)
    if not pictures:
        raise MemtokError("expected images, found none; give one or more", argument="images")
    for picture in pictures:
        check_picture(picture, preprocessing)
    return normalised([loaded(picture, preprocessing) for picture in pictures], preprocessing, device)


def check_picture(picture: Picture, preprocessing: Preprocessing) -> None:
    """MemtokError unless this is a `Picture`; paths are not opened yet."""
    if isinstance(picture, str | Path | Image.Image):
        return
    if not isinstance(picture, Tensor | np.ndarray):
        raise no_picture(picture)
    shape = tuple(picture.shape)
    if isinstance(picture, Tensor) and picture.is_floating_point():
        if shape != (3, *preprocessing.image_size):
            raise MemtokError(
                f"expected normalised images of shape {(3, *preprocessing.image_size)}, found {shape}; give pixels as "
                "uint8, which are resized and normalised",
                argument="images",
            )
        return
    pixels = picture.dtype == (torch.uint8 if isinstance(picture, Tensor) else np.uint8)
    if not pixels:
        raise MemtokError(
            f"expected pixels from 0 to 255 as uint8, found {type(picture).__name__} of {picture.dtype}; of values "
            "from 0 to 1 make (255 * values).round() as uint8",
            argument="images",
        )
    channels = shape[0] if isinstance(picture, Tensor) else 1 if len(shape) == 2 else shape[-1]
    if len(shape) != 3 and not (len(shape) == 2 and isinstance(picture, np.ndarray)):
        channels = 0
    if channels not in ((3,) if isinstance(picture, Tensor) else (1, 3, 4)) or 0 in shape:
        wanted = "(3, height, width)" if isinstance(picture, Tensor) else "(height, width, 3) or (height, width)"
        raise MemtokError(
            f"expected pixels of shape {wanted}, found {shape}; bring the axes in this order", argument="images"
        )


def no_picture(found: object) -> MemtokError:
    """The error for something else."""
    return MemtokError(
        f"expected images as paths, PIL images, arrays or tensors, found {type(found).__name__}; give one of these",
        argument="images",
    )


def loaded(picture: Picture, preprocessing: Preprocessing) -> Tensor:
    """uint8 pixels (3, H, W) of an image, resized and cropped; a normalised tensor stays as it is.

    Raises UnreadableImageError for a path or a PIL image that cannot be read.
    """
    with guarded(name_of(picture)):
        image = opened(picture)
        return image if isinstance(image, Tensor) else evaluation_pixels(preprocessing)(image)


def name_of(picture: Picture) -> str | Path:
    """The name of an image in messages."""
    return picture if isinstance(picture, str | Path) else getattr(picture, "filename", "") or "a PIL image"


def opened(picture: Picture) -> Image.Image | Tensor:
    """An upright PIL image, grey of more than 8 bits with its values; a normalised tensor as it is."""
    if isinstance(picture, str | Path):
        return read_upright(picture)
    if isinstance(picture, Tensor):
        if picture.is_floating_point():
            return picture
        picture = picture.permute(1, 2, 0).cpu().numpy()
    if isinstance(picture, np.ndarray):
        return Image.fromarray(np.ascontiguousarray(picture[:, :, 0] if picture.shape[2:] == (1,) else picture))
    return upright(picture)


def normalised(pictures: Sequence[Tensor], preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """(B, 3, H, W) float32 on `device` of the results of `loaded`."""
    normalise = Normaliser(preprocessing)
    if all(picture.dtype == torch.uint8 for picture in pictures):
        return normalise(torch.stack(list(pictures)).to(device))
    return torch.stack(
        [
            normalise(picture.to(device)) if picture.dtype == torch.uint8 else picture.to(device, torch.float32)
            for picture in pictures
        ]
    )
