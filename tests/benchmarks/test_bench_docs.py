"""What docs/performance.md says of rows and floors is what the code has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memtok_benchmarks import floor
from memtok_benchmarks.rows import ROWS
from memtok_benchmarks.scene import make_vit
from memtok_benchmarks.sizes import Sizes


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "performance.md").read_text(encoding="utf-8")


def test_every_row_is_explained(page: str) -> None:
    explained = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert explained == set(ROWS)


def test_the_floors_are_those_that_are_computed(page: str) -> None:
    with torch.device("meta"):
        geometry = floor.Geometry.of(make_vit(Sizes()))
    parts = {**floor.trunk_parts(geometry), "all": floor.trunk(geometry)}
    rows = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.endswith(" M |")}
    assert set(rows) == set(parts)
    for name, value in parts.items():
        assert rows[name].endswith(f"| {value / 1e6:,.0f} M |")
    table = floor.table(geometry, cells=5, training_cells=10, classes=100, batch=32)
    text = " ".join(page.split())
    assert f"comes to {table['training step, 1 task']:.2f} of the trunk's own pass" in text
    dense = table["training step of the dense masked form, gradients everywhere"]
    assert f"gradients everywhere to {dense:.2f}" in text
    assert f"24 of them come to {table['training step, 24 configurations']:.2f} trunk passes" in text
    assert f"pay 24 × {dense:.2f} = {24 * dense:.0f}" in text
    assert f"a step 1 / {1 / table['step on kept traces over a live step, 1 task']:.0f} of a live one" in text
    kept = 1 - floor.skipped(geometry) / floor.trunk(geometry)
    assert f"stops at keys and values: {kept:.2f} of the trunk's pass" in text
    assert "which is 29 for ViT-B/32" in text
