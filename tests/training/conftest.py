"""A small random backbone and a small piece of the bundled digits, for all tests of training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from memtok.backbone import Backbone
from memtok.data import DataSource, open_data
from tests.tiny import tiny_backbone
from tests.training.helpers import fingerprint


@pytest.fixture(scope="session")
def backbone() -> Iterator[Backbone]:
    """The small backbone. That no test of this folder changed it is checked at the end."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = tiny_backbone()
    before = fingerprint(made)
    yield made
    assert fingerprint(made) == before


@pytest.fixture(scope="session")
def data() -> DataSource:
    """The digits 0 and 1: some 250 images to train on, some 30 to validate on."""
    return open_data("digits").only(["0", "1"])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A path for a task file."""
    return tmp_path / "digits.safetensors"
