"""Published figures, against the design page's table typed anew, and what is shown beside which column."""

from __future__ import annotations

from itertools import product

import pytest

from memtok.training.recipes import RECIPES
from memtok_experiments.columns import EVERY_COLUMN, PAPER_COLUMNS
from memtok_experiments.published import (
    CONCAT_UNMASKED,
    PAPER,
    REPRODUCTION,
    REPRODUCTION_STEPS,
    SOURCES,
    published,
)

TABLE_2 = """
sun397          76.9 75.9 76.4 77.0 76.8 76.9 76.9
inaturalist2017 54.0 46.3 48.7 49.4 50.1 50.0 50.0
cifar100        91.8 85.8 88.6 90.9 91.0 91.1 90.9
places365       55.9 50.9 52.4 53.3 53.8 53.9 54.1
"""


def test_table_2_of_the_paper() -> None:
    rows = [line.split() for line in TABLE_2.strip().splitlines()]
    assert {name: list(PAPER[name].values()) for name, *_ in rows} == {
        name: [float(figure) for figure in figures] for name, *figures in rows
    }
    assert all(tuple(row) == PAPER_COLUMNS for row in PAPER.values())


def test_figures_of_the_reproduction() -> None:
    assert REPRODUCTION == {"sun397": 80.96, "inaturalist2017": 58.70, "cifar100": 64.08, "places365": 50.47}
    assert RECIPES["reproduction"].steps_by_data == REPRODUCTION_STEPS


def test_second_hand_figures_of_concatenation() -> None:
    assert (CONCAT_UNMASKED.data, CONCAT_UNMASKED.alone) == ("inaturalist2017", 50.0)
    assert CONCAT_UNMASKED.unmasked == {"places365": 28.1, "cifar100": 27.8, "sun397": 17.3}


def test_whether_table_2_was_masked_is_unknown_so_it_stands_beside_both() -> None:
    assert published("cifar100", "memory-5") == published("cifar100", "memory-5-unmasked") == {"paper": 91.0}
    assert published("cifar100", "class") == published("cifar100", "class-unmasked") == {"paper": 88.6}


def test_the_reproduction_has_one_masked_column() -> None:
    found = [
        (data, column) for data, column in product(PAPER, EVERY_COLUMN) if "reproduction" in published(data, column)
    ]
    assert found == [(data, "memory-1") for data in PAPER]
    assert published("places365", "memory-1") == {"paper": 53.3, "reproduction": 50.47}


@pytest.mark.parametrize(
    ("data", "column"),
    [("mnist", "memory-1"), ("cifar10", "full"), ("cifar100", "propagated-5"), ("cifar100", "memory-7")],
)
def test_nothing_is_made_up(data: str, column: str) -> None:
    assert published(data, column) == {}


def test_every_source_is_named() -> None:
    assert set(SOURCES) == {"paper", "reproduction", "second-hand"}
    assert "2203.15243" in SOURCES["paper"]
    assert "necrashter/transformers-learnable-memory" in SOURCES["reproduction"]
