"""Comparing an exported file with the model in PyTorch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

import memtok
from memtok.exports.opened import OnnxModel
from tests.tiny import tiny_images


def assert_alike(
    model: memtok.MemoryViT, opened: OnnxModel, tolerance: float = 2e-5, batches: Iterable[int] = (1, 2, 5)
) -> None:
    """For batches of these sizes, of which 2 is the one that is traced; relative to the largest answer."""
    height, _ = model.preprocessing.image_size
    for count in batches:
        images = tiny_images(count, seed=count, size=height)
        with torch.no_grad():
            out = model(images)
        found = opened(images.numpy())
        expected = {**out.logits, "base": out.base, "embedding": out.features}
        assert set(found) <= set(expected)
        for name, values in found.items():
            right = expected[name]
            assert right is not None
            assert values.dtype == np.float32
            torch.testing.assert_close(
                torch.from_numpy(values) / right.abs().max(), right / right.abs().max(), atol=tolerance, rtol=0
            )
