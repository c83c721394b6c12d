"""Image folders that are made: from packages that lie there already, without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memtok.data import open_data
from memtok_experiments.beyond.sets import LEAST, SETS, TEST, TRAIN, main


def noise(path: Path, seed: int, size: tuple[int, int] = (40, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_parts_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "packages" / "photographs" / "python3-skimage"
    for name in ("coffee", "moon", "other"):
        pixels = np.zeros((60, 120, 3), dtype=np.uint8)
        pixels[:, 60:] = 255  # the half that is tested
        (package / "skimage" / "data").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(package / "skimage" / "data" / f"{name}.png")
    assert main([str(tmp_path), "photographs"]) == 0
    assert f"{4 * TRAIN * 2:,} images in 2 classes" in capsys.readouterr().out
    source = open_data(f"folder:{tmp_path / 'photographs'}", data_dir=tmp_path)
    assert source.classes == ("coffee", "moon")
    assert len(source.test) == 2 * 4 * TEST
    assert {np.asarray(source.test[index][0]).min() for index in range(4)} == {255}
    assert {np.asarray(source.train[index][0]).max() for index in range(4)} == {0}


def test_collected_pictures(tmp_path: Path) -> None:
    root = tmp_path / "packages" / "symbols" / "oxygen-icon-theme" / "base" / "64x64"
    for name, count in (("apps", LEAST), ("few", LEAST - 1)):
        for index in range(count):
            noise(root / name / f"{index:02}.png", seed=1000 * len(name) + index)
    noise(root / "apps" / "zz.png", seed=4000)  # one that is there already
    (root / "apps" / "broken.png").symlink_to("nowhere.png")
    (root / "devices").mkdir()
    for index in range(2 * LEAST):
        noise(root / "devices" / f"{index:02}.png", seed=5000 + index)
    assert main([str(tmp_path), "symbols"]) == 0
    counts = {
        (part.name, place.name): len(list(place.iterdir()))
        for part in (tmp_path / "symbols").iterdir()
        for place in part.iterdir()
    }
    assert counts == {("train", "apps"): 15, ("test", "apps"): 5, ("train", "devices"): 30, ("test", "devices"): 10}
    before = sorted(path.read_bytes() for path in (tmp_path / "symbols").rglob("*.png"))
    assert main([str(tmp_path), "symbols"]) == 0  # it is left as it is
    assert sorted(path.read_bytes() for path in (tmp_path / "symbols").rglob("*.png")) == before


def test_arguments(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([]) == 2
    assert main([str(tmp_path), "paintings"]) == 2
    told = capsys.readouterr().err
    assert all(name in told for name in SETS)
