"""Pixels without torch: the numbers are those of the transforms, bit by bit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from memtok.data.pixels import evaluation_array, normalised_array
from memtok.data.transforms import evaluation_pixels, evaluation_transform
from memtok.preprocessing import Preprocessing


@pytest.mark.parametrize("resize", [30, (24, 28)])
@pytest.mark.parametrize("position_resize", ["timm", "transformers"])
def test_the_same_bits_as_the_transform_of_evaluation(resize: int | tuple[int, int], position_resize: str) -> None:
    preprocessing = Preprocessing(
        image_size=(24, 27), resize=resize, crop=True, interpolation="bicubic",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), position_resize=position_resize,
    )  # fmt: skip
    generator = np.random.default_rng(0)
    for shape in [(40, 61, 3), (37, 90), (13, 20, 4), (41, 43, 3)]:
        image = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
        pixels = evaluation_array(image, preprocessing)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (3, 24, 27)
        assert np.array_equal(pixels, evaluation_pixels(preprocessing)(image).numpy())
        found = normalised_array(np.stack([pixels, pixels]), preprocessing)
        assert found.dtype == np.float32
        assert np.array_equal(found[1], evaluation_transform(preprocessing)(image).numpy())


def test_no_torch_is_needed() -> None:
    code = "import sys, memtok.data.pixels, memtok.predictions; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
