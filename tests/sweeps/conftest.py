"""A small random backbone, a small piece of the bundled digits, and a way to sweep them quickly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import memtok
from memtok.backbone import Backbone
from memtok.data import DataSource, open_data
from memtok.sweeps import SweepResult, sweep
from tests.tiny import bytes_of, tiny_backbone

QUICK: dict[str, Any] = {"steps": 8, "batch_size": 16, "device": "cpu", "workers": 0, "augment": "none", "log_every": 2}

Quick = Callable[..., SweepResult]


@pytest.fixture(scope="session")
def backbone() -> Iterator[Backbone]:
    """The small backbone. That no test of this folder changed it is checked at the end."""
    made = tiny_backbone()
    before = bytes_of(made)
    yield made
    assert bytes_of(made) == before


@pytest.fixture(scope="session")
def data() -> DataSource:
    """The digits 0 and 1: some 250 images to train on, some 30 to validate on."""
    return open_data("digits").only(["0", "1"])


@pytest.fixture
def quick(backbone: Backbone, data: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Quick:
    """`sweep` with a few small steps into `tmp_path/sweep`, unless told otherwise; no heads beside it, no picture.

    Nor does it wait for the disk, of which no test can see anything.
    """
    monkeypatch.setattr("memtok.sweeps.picture.draw", lambda result, path: None)
    monkeypatch.setattr("os.fsync", lambda handle: None)

    def start(**arguments: Any) -> SweepResult:
        return sweep(backbone, data, **(QUICK | {"out": tmp_path / "sweep", "compare_head": False} | arguments))

    return start


@pytest.fixture
def trained(backbone: Backbone, tmp_path: Path) -> Callable[..., dict[str, memtok.Task]]:
    """The kept tasks of a sweep, by the name of their configuration."""

    def read(folder: Path | None = None) -> dict[str, memtok.Task]:
        runs = (folder or tmp_path / "sweep") / "runs" / "digits"
        return {path.stem: memtok.load_task(path, backbone) for path in sorted(runs.glob("*.safetensors"))}

    return read
