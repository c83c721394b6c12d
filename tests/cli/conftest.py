"""A folder with a tiny backbone, task files and pictures, and a way to run `memtok` in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import memtok
from memtok.checkpoint import save_checkpoint
from memtok.cli import main
from tests.tiny import tiny_backbone, tiny_task, tiny_vit

CLASSES = ("class 0", "class 1", "class 2")


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error; fails if there is more or less than one."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


Run = Callable[..., Result]


def write_pictures(folder: Path, count: int = 4) -> None:
    """One folder per class with `count` random pictures."""
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (36, 34, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once; tests get copies."""
    folder = tmp_path_factory.mktemp("original")
    preprocessing = tiny_backbone().preprocessing
    save_checkpoint(tiny_vit(), preprocessing, folder / "tiny.safetensors")
    save_checkpoint(tiny_vit(seed=5), preprocessing, folder / "stranger.safetensors")
    backbone = memtok.load_backbone(folder / "tiny.safetensors")
    backbone.source = "tiny.safetensors"
    pets = tiny_task(backbone, "pets", seed=1)
    pets.save(folder / "pets.safetensors")
    tiny_task(backbone, "more", seed=2, extends=[pets]).save(folder / "more.safetensors")
    tiny_task(backbone, "head", seed=3, regime="head").save(folder / "head.safetensors")
    tiny_task(backbone, "shared", seed=4, regime="memory-shared").save(folder / "shared.safetensors")
    stranger = memtok.load_backbone(folder / "stranger.safetensors")
    tiny_task(stranger, "strange", seed=5).save(folder / "strange.safetensors")
    larger = memtok.load_backbone(folder / "tiny.safetensors", image_size=48)
    tiny_task(larger, "large", seed=6).save(folder / "large.safetensors")
    write_pictures(folder / "photos")
    return folder


@pytest.fixture
def workspace(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy, which is the current folder; data sets are remembered in it and not in the user's cache."""
    folder = tmp_path / "workspace"
    shutil.copytree(original, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MEMTOK_DATA", str(tmp_path / "data"))
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("inspect", "a.safetensors")` runs the command in this process."""

    def start(*words: object) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return start
