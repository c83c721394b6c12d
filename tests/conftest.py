"""What all tests share: the files beside the checkout, thread limits, tests that need a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# Before torch is imported. Two tests run at once on two cores (`pytest -n 2`), so each gets one thread;
# more threads than cores make small models slower, not faster.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
# No test may reach the network: a Hub id that is not on this machine fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# A loaded machine is no failure; a failing example is printed so that it can be repeated.
hypothesis.settings.register_profile("memtok", deadline=None, print_blob=True)
hypothesis.settings.load_profile("memtok")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu`, visibly, where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the checkout: models and old checkpoints that are not committed."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder shared/ beside the checkout")
    return folder


@pytest.fixture
def print_seed(request: pytest.FixtureRequest) -> Callable[[int | None], int]:
    """A function that draws a seed, or takes the one given, prints it and returns it.

    pytest shows what was printed when a test fails; MEMTOK_TEST_SEED then repeats it.
    """

    def choose(seed: int | None = None) -> int:
        override = os.environ.get("MEMTOK_TEST_SEED")
        if override is not None:
            seed = int(override)
        elif seed is None:
            seed = int.from_bytes(os.urandom(4), "little")
        print(f"{request.node.nodeid}: seed {seed} (repeat with MEMTOK_TEST_SEED={seed})")
        return seed

    return choose
