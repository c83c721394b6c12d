"""Preprocessing: what it accepts, how it changes with the image size, how it is stored and compared."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing

USUAL = Preprocessing(
    image_size=(224, 224),
    resize=256,
    crop=True,
    interpolation="bicubic",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    position_resize="timm",
)


def test_round_trip_through_json() -> None:
    for preprocessing in (USUAL, replace(USUAL, resize=(224, 224), crop=False), replace(USUAL, resize=(256, 240))):
        stored = json.loads(json.dumps(preprocessing.to_dict()))
        assert Preprocessing.from_dict(stored) == preprocessing


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"mean": None}, None),
        ({"colour": "rgb"}, None),
        ({"mean": [0.5, 0.5]}, "mean"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean"),
        ({"std": [0.5, 0.0, 0.5]}, "std"),
        ({"image_size": [224, -1]}, "image_size"),
        ({"image_size": [224, 224, 3]}, "image_size"),
        ({"image_size": 224.0}, "image_size"),
        ({"resize": True}, "resize"),
        ({"resize": 0}, "resize"),
        ({"resize": 200}, "resize"),
        ({"resize": [256, 200]}, "resize"),
        ({"crop": False}, "resize"),
        ({"crop": "yes"}, "crop"),
        ({"interpolation": "box"}, "interpolation"),
        ({"position_resize": "linear"}, "position_resize"),
        ({"pixel_range": [0, 0]}, "pixel_range"),
        ({"pixel_range": [0]}, "pixel_range"),
        ({"pixel_range": 4095}, "pixel_range"),
        ({"pixel_range": [0, float("inf")]}, "pixel_range"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], argument: str | None) -> None:
    stored = {key: value for key, value in {**USUAL.to_dict(), **change}.items() if value is not None}
    with pytest.raises(MemtokError) as caught:
        Preprocessing.from_dict(stored)
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)


def test_a_pixel_range_is_stored_where_there_is_one() -> None:
    """What earlier versions wrote stays as it was."""
    assert "pixel_range" not in USUAL.to_dict()
    ranged = replace(USUAL, pixel_range=[0, 4095])
    assert ranged.pixel_range == (0.0, 4095.0)
    assert Preprocessing.from_dict(json.loads(json.dumps(ranged.to_dict()))) == ranged
    assert ranged.with_image_size(56).pixel_range == (0.0, 4095.0)
    assert ranged.difference(USUAL) == "pixel_range (0.0, 4095.0) and None"


def test_from_dict_wants_a_table() -> None:
    with pytest.raises(MemtokError, match="table of settings"):
        Preprocessing.from_dict([1, 2])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("resize", "crop", "size", "expected"),
    [
        (256, True, 224, 256),
        (256, True, 56, 64),
        (256, True, 448, 512),
        (256, True, (112, 224), 256),
        (224, True, 100, 100),
        ((224, 224), False, 56, (56, 56)),
        ((224, 224), False, (56, 112), (56, 112)),
        ((256, 256), True, 112, (128, 128)),
        ((256, 256), True, (112, 224), (128, 256)),
    ],
)
def test_another_image_size_keeps_the_proportion(
    resize: Any, crop: bool, size: int | tuple[int, int], expected: int | tuple[int, int]
) -> None:
    changed = replace(USUAL, resize=resize, crop=crop).with_image_size(size)
    assert changed.image_size == (size if isinstance(size, tuple) else (size, size))
    assert changed.resize == expected
    assert changed.crop == crop
    assert (changed.mean, changed.interpolation) == (USUAL.mean, USUAL.interpolation)


def test_difference_names_what_differs() -> None:
    assert USUAL.difference(USUAL) == ""
    other = replace(USUAL, mean=(0.5, 0.5, 0.5), interpolation="bilinear")
    assert USUAL.difference(other) == (
        "interpolation bicubic and bilinear, mean (0.485, 0.456, 0.406) and (0.5, 0.5, 0.5)"
    )
