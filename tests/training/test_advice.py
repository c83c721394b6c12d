"""What a run suggests at its end, where a class has recall 0: only from what it measured, and only then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.data.sources import ArrayStore, ImageSet
from tests.training.helpers import Recorder, new_task, quick

SMALL, LARGE = 16, 80  # sides of pictures; the input of the backbone has 32
STILL: dict[str, Any] = {"steps": 1, "learning_rate": 1e-12}
SEEN: dict[str, Any] = {"steps": 40, "batch_size": 20, "recipe": "default", "learning_rate": 0.03}


def corners(side: int, data: DataSource) -> DataSource:
    """30 dark pictures of class 0, and 10 of class 1 with a light top left corner."""
    labels = np.repeat([0, 1], [30, 10])
    pixels = np.zeros((40, side, side), dtype=np.uint8)
    pixels[labels == 1, : side // 4, : side // 4] = 255
    images = ImageSet.whole(ArrayStore(pixels, "train"), labels)
    return replace(data, train=images, validation=images, test=images)


def lit(image: Image.Image) -> Image.Image:
    """Every picture looks as those of class 1, of which most are of class 0."""
    image.paste((255, 255, 255), (0, 0, image.width // 4, image.height // 4))
    return image


def test_a_head_alone_tells_that_variation_is_why(backbone: Backbone, data: DataSource) -> None:
    own, listener = corners(SMALL, data).varied(lit), Recorder()
    result = quick(new_task(backbone, data), own, augment=None, compare_head=True, progress=listener, **SEEN)
    assert result.score is not None
    assert result.head_alone is not None
    assert result.score.recall["1"] == 0
    assert result.head_alone.recall["1"] == 1
    assert not result.head_alone.varied
    (line,) = result.advice
    assert "'1'" in line
    assert "head alone" in line
    assert line in result.warnings
    assert f"note: {line}" in listener.said("message")


@pytest.mark.parametrize(
    ("more", "hints"),
    [
        ({"augment": "crop", "compare_head": False}, 1),
        ({"augment": "crop", "keep_traces": "ram", "views": 1}, 1),
        ({"augment": "none"}, 0),
    ],
)
def test_otherwise_it_cannot_be_told(backbone: Backbone, data: DataSource, more: dict[str, Any], hints: int) -> None:
    result = quick(new_task(backbone, data), corners(SMALL, data), **STILL, **more)
    assert len([line for line in result.warnings if line.startswith("recall is 0 for 1 of")]) == 1
    assert len(result.advice) == hints
    assert all("cannot tell" in line for line in result.advice)


@pytest.mark.parametrize(("side", "hints"), [(SMALL, 0), (63, 0), (64, 1), (LARGE, 1)])
def test_images_far_larger_than_the_input(backbone: Backbone, data: DataSource, side: int, hints: int) -> None:
    result = quick(new_task(backbone, data), corners(side, data), **STILL)
    assert len(result.advice) == hints
    assert all("image_size=64" in line and f"{side} x {side}" in line for line in result.advice)


def test_where_all_is_well_nothing_is_said(backbone: Backbone, data: DataSource) -> None:
    result = quick(new_task(backbone, data, "head"), corners(LARGE, data), **SEEN)
    assert result.best_accuracy == 1
    assert result.advice == ()
    assert result.warnings == []
