"""A folder of random JPEG files that take as long to decode as photographs, for rows that load images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F

CLASSES = 4
PHOTOGRAPH = (375, 500)  # height and width in pixels, a common size of photographs in data sets
QUALITY = 90


def write_photographs(folder: Path, count: int, seed: int) -> int:
    """Writes `count` JPEG files to train on, and one of each class to validate on; returns their mean size in bytes."""
    generator = torch.Generator().manual_seed(seed)
    total = 0
    for index, path in enumerate(places(folder, count)):
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(generator).save(path, quality=QUALITY)
        total += path.stat().st_size if index < count else 0
    return round(total / count)


def places(folder: Path, count: int) -> Iterator[Path]:
    """Where they lie: train/CLASS, then val/CLASS."""
    for index in range(count):
        yield folder / "train" / f"class {index % CLASSES}" / f"{index:05d}.jpg"
    for index in range(CLASSES):
        yield folder / "val" / f"class {index}" / "0.jpg"


def photograph(generator: torch.Generator) -> Image.Image:
    """A random image that compresses like a photograph: noise of several scales, weaker the finer it is."""
    height, width = PHOTOGRAPH
    pixels, strength = torch.full((1, 3, 3, 4), 128.0), 40.0
    while pixels.shape[-2] < height:
        pixels = F.interpolate(pixels, scale_factor=2, mode="bicubic")
        grey = torch.randn(1, 1, *pixels.shape[-2:], generator=generator)
        color = torch.randn(pixels.shape, generator=generator)
        pixels += strength * (grey + 0.4 * color)
        strength *= 0.75
    array = pixels[0, :, :height, :width].clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array)
