"""Images with more than 8 bits: what is said of those that would become black, and the range that mends it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import memtok
import memtok.data
import memtok.data.transforms
from memtok.header import read_header
from tests.cli.conftest import Result, Run

BACKBONE = ("--backbone", "tiny.safetensors", "--device", "cpu")
TRAIN = ("train", *BACKBONE, "--data", "folder:deep", "--steps", "2", "--batch-size", "4", "--out", "new.safetensors")
SAID = "no value above 4095 of 65535"


@pytest.fixture
def deep(workspace: Path) -> Path:
    """Two classes of 12-bit pictures in 16-bit files, and beside it the same pictures in 8 bits."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (workspace / "deep" / name).mkdir(parents=True)
        (workspace / "plain" / name).mkdir(parents=True)
        for number in range(4):
            values = generator.integers(0, 256, (36, 34), dtype=np.uint16)
            values[0, 0] = 255
            Image.fromarray(values.astype(np.uint8)).save(workspace / "plain" / name / f"{number}.png")
            # 4095 / 255 is no whole number: rounded, so that each value is nearest to its own of 8 bits.
            Image.fromarray(np.rint(values * (4095 / 255)).astype(np.uint16)).save(
                workspace / "deep" / name / f"{number}.png"
            )
    return workspace / "deep"


def answers(found: Result, path: str = "o.json") -> list[Any]:
    assert found.code == 0, found.err
    return [image["tasks"] for image in json.loads(Path(path).read_text())["images"]]


def test_dark_images_are_named_with_the_range_that_they_have(deep: Path, run: Run) -> None:
    for _ in range(2):  # the second time what was looked at is remembered
        found = run(*TRAIN, "--overwrite")
        assert found.code == 0, found.err
        assert SAID in found.err
        assert "--pixel-range 0 4095" in found.err
    assert "pixel_range" not in read_header("new.safetensors")[0]["preprocessing"]
    for words in (("evaluate", "--data", "folder:deep"), ("predict", "--images", "deep/a/0.png")):
        assert SAID in run(words[0], "new.safetensors", *BACKBONE, *words[1:]).err
    for words in (("evaluate", "--data", "new=folder:plain"), ("predict", "--images", "plain/a/0.png")):
        found = run(words[0], "new.safetensors", *BACKBONE, *words[1:])
        assert found.code == 0
        assert SAID not in found.err


@pytest.mark.parametrize("regime", ["memory", "full"])
def test_the_range_belongs_to_the_task(regime: str, deep: Path, run: Run) -> None:
    """Given once, in training; from then on the images are what they are in 8 bits."""
    found = run(*TRAIN, "--regime", regime, "--pixel-range", "0", "4095")
    assert found.code == 0, found.err
    assert SAID not in found.err
    model = ("new.safetensors", *BACKBONE) if regime == "memory" else ("--backbone", "new.safetensors")
    asked = run("predict", *model, "--images", "deep", "--top", "2", "--json", "o.json")
    assert asked.err == ""
    expected = run("predict", *model, "--images", "plain", "--top", "2", "--json", "p.json")
    assert answers(asked) == answers(expected, "p.json")
    data = "folder:deep" if regime == "memory" else "base=folder:deep"
    assert SAID not in run("evaluate", *model, "--data", data).err
    if regime == "memory":
        assert read_header("new.safetensors")[0]["preprocessing"]["pixel_range"] == [0, 4095]
        refused = run("predict", "new.safetensors", "pets.safetensors", *BACKBONE, "--images", "deep")
        assert (refused.code, "pixel_range" in refused.error) == (1, True)


def test_the_range_is_that_of_what_a_task_extends(deep: Path, run: Run) -> None:
    assert run(*TRAIN, "--pixel-range", "0", "4095").code == 0
    more = (*TRAIN[:-1], "more.safetensors", "--extends", "new.safetensors")
    found = run(*more, "--pixel-range", "0", "1023")
    assert found.code == 1
    assert "expected the pixel range of what it extends" in found.err
    assert run(*more).code == 0
    assert read_header("more.safetensors")[0]["preprocessing"]["pixel_range"] == [0, 4095]


@pytest.mark.parametrize("words", [("0",), ("0", "1", "2"), ("5", "5"), ("9", "1"), ("0", "nan"), ("a", "b")])
def test_what_is_no_range(words: tuple[str, ...], workspace: Path, run: Run) -> None:
    found = run("train", *BACKBONE, "--data", "folder:photos", "--out", "new.safetensors", "--pixel-range", *words)
    assert found.code == 2
    assert "expected --pixel-range as " in found.error


def test_pictures_of_a_dataset_in_memory(deep: Path) -> None:
    """Their values come to the transform, which knows the range, and `data.train[i]` is RGB as ever."""

    class Pictures:
        classes = ("a", "b")

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.fromarray(np.full((40, 40), 4095, dtype=np.uint16)), index % 2

    data = memtok.data.from_dataset(Pictures(), validation=Pictures())
    backbone = memtok.load_backbone("tiny.safetensors")
    expected = {None: 16, (0.0, 4095.0): 255}
    assert data.train[0][0].getpixel((0, 0)) == (16, 16, 16)
    for pixel_range, value in expected.items():
        preprocessing = replace(backbone.preprocessing, pixel_range=pixel_range)
        for augment in memtok.data.AUGMENTATIONS:
            transform = memtok.data.transforms.training_pixels(preprocessing, augment)
            images, _, _ = next(iter(memtok.data.batches(data.train, transform, batch_size=4)))
            assert (images == value).all()
        seen: list[str] = []

        def foreign(image: Image.Image, seen: list[str] = seen) -> Any:
            seen.append(image.mode)
            return memtok.data.transforms.pixels_of(image)

        next(iter(memtok.data.batches(data.train, foreign, batch_size=4)))
        assert seen == ["RGB"] * 4
