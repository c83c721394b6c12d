"""Digests of the content of images, wherever they are stored; resumed runs and cached traces are checked by them."""

from __future__ import annotations

import numpy as np

from memtok.data.loader import Samples
from memtok.data.sources import DataSource, ImageSet
from memtok.data.transforms import pixels_of
from memtok.digests import digest_of

SPREAD = 16  # images that are hashed where hashing all would take too long


def content_digest(images: ImageSet) -> str:
    """`sha256:` over the images in their order: the bytes of files, the pixels of images in memory.

    Of a published data set only the sizes of the files are hashed; of a torch Dataset a few images, evenly spaced.
    """
    found = images.store.content(images.positions)
    if found is not None:
        return digest_of(found)
    samples = Samples(images, pixels_of, 0).__getitems__([(0, index) for index in spread(len(images))])
    if not isinstance(samples, list):
        raise samples.error
    return digest_of(str(tuple(pixels.shape)).encode() + pixels.numpy().tobytes() for pixels, _, _ in samples)


def training_content(data: DataSource) -> str:
    """`sha256:` over the images and labels of the training and the validation part."""
    parts = (data.train, data.validation)
    return digest_of(part for images in parts for part in (content_digest(images).encode(), images.labels.tobytes()))


def spread(count: int, most: int = SPREAD) -> list[int]:
    """Up to `most` of the numbers below `count`, evenly spread, the first and the last among them."""
    return sorted({int(number) for number in np.linspace(0, count - 1, min(count, most)).round()}) if count else []
