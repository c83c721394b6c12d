"""The tokens of all levels of a trunk, kept in main memory for a few thousand small images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memtok.backbone import Backbone
from memtok.data import ImageSet, batches
from memtok.data.transforms import Normaliser, evaluation_pixels

AT_ONCE = 32  # images of a pass
PLAIN, MIRRORED, CROPPED = VIEWS = ("plain", "mirrored", "cropped")
CROP = 0.875  # of the side


@dataclass(frozen=True)
class Tokens:
    """values: (n, L + 1, N, D) half precision, as they enter each layer and leave the last one. labels: (n,)."""

    values: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def viewed(pixels: Tensor, view: str) -> Tensor:
    """(B, 3, height, width) pixels as they are, mirrored, or the middle of them enlarged."""
    if view == PLAIN:
        return pixels
    if view == MIRRORED:
        return pixels.flip(-1)
    height, width = pixels.shape[-2:]
    top, left = round(height * (1 - CROP) / 2), round(width * (1 - CROP) / 2)
    middle = pixels[..., top : height - top, left : width - left]
    return torch.nn.functional.interpolate(middle, size=(height, width), mode="bicubic", antialias=True)


@torch.no_grad()
def read_tokens(backbone: Backbone, images: ImageSet, view: str = PLAIN) -> Tokens:
    """One pass of the trunk over images, as evaluation prepares them."""
    transform, normalise = evaluation_pixels(backbone.preprocessing), Normaliser(backbone.preprocessing)
    values, labels = [], []
    for pixels, answers, _ in batches(images, transform, batch_size=AT_ONCE, workers=0):
        x = viewed(normalise(pixels), view)
        first = backbone.enter(x)
        passed = backbone.vit.forward_intermediates(
            x, indices=backbone.depth, return_prefix_tokens=True, intermediates_only=True, output_fmt="NLC"
        )
        levels = [first, *(torch.cat([prefix, patches], dim=1) for patches, prefix in passed)]
        values.append(torch.stack(levels, dim=1).half())
        labels.append(answers)
    return Tokens(torch.cat(values), torch.cat(labels))
