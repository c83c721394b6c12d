"""A compiled sweep finds what one without compiling finds, and may go on from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import memtok
from tests.sweeps.conftest import Quick

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")


@pytest.mark.twice
def test_the_same_tasks(quick: Quick, trained: Callable[..., dict[str, memtok.Task]], tmp_path: Path) -> None:
    torch.compiler.reset()
    arguments = {"learning_rates": (0.02, 0.05), "regimes": ("head",), "keep_all": True}
    plain = quick(out=tmp_path / "plain", **arguments)
    quick(out=tmp_path / "compiled", compile="eager", **arguments)
    found, expected = trained(tmp_path / "compiled"), trained(tmp_path / "plain")
    assert list(found) == list(expected)
    for name, task in found.items():
        for one, other in zip(task.parameters(), expected[name].parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert quick(out=tmp_path / "compiled", **arguments).data[0].order == plain.data[0].order  # goes on, uncompiled
    torch.compiler.reset()
