"""Which configurations there are, how they are drawn, and what is said of a space that makes none."""

from __future__ import annotations

import math
from typing import Any

import pytest

from memtok.errors import MemtokError
from memtok.sweeps import Configuration, Range, Space
from memtok.sweeps.halving import find_rungs, going_on
from memtok.sweeps.settings import make_space
from memtok.sweeps.space import FIELDS
from tests.tiny import tiny_backbone


def test_a_grid_is_the_product_in_order() -> None:
    space = Space(learning_rates=[0.1, 0.01], memory=[1, 5], seeds=[0, 1])
    names = [each.name for each in space.grid()]
    assert len(names) == len(set(names)) == space.size == 8
    assert names[:3] == [
        "memory-1-rate-0.1-decay-0-seed-0",
        "memory-1-rate-0.1-decay-0-seed-1",
        "memory-1-rate-0.01-decay-0-seed-0",
    ]
    assert names[-1] == "memory-5-rate-0.01-decay-0-seed-1"


def test_a_head_has_no_cells_and_so_stands_once() -> None:
    space = Space(learning_rates=[0.1, 0.2], memory=[1, 5, 10], queries=[1, 2], regimes=["head", "memory"])
    heads = [each for each in space.grid() if each.regime == "head"]
    assert [each.name for each in heads] == ["head-rate-0.1-decay-0-seed-0", "head-rate-0.2-decay-0-seed-0"]
    assert len(space.grid()) == space.size == 2 + 12


def test_names_and_values_come_back() -> None:
    made = Configuration.of(dict(zip(FIELDS, ("memory", 3, 2, 4, 6, 16, 0.012345678, 1e-05, 7), strict=True)))
    assert made.name == "memory-3-queries-2-rank-4-readout-6-side-16-rate-0.0123457-decay-1e-05-seed-7"
    assert made.learning_rate == 0.0123457  # the name tells the value
    assert Configuration.of(made.to_dict()) == made


def test_a_readout_reads_all_levels_unless_told_otherwise() -> None:
    backbone = tiny_backbone()  # 2 layers
    space = Space(learning_rates=[0.1], memory=[2], regimes=["readout", "head", "memory"], trunk=backbone)
    names = ["readout-3-rate-0.1-decay-0-seed-0", "head-rate-0.1-decay-0-seed-0", "memory-2-rate-0.1-decay-0-seed-0"]
    assert [each.name for each in space.grid()] == names
    assert [each.readout for each in space.largest()] == [3, 0, 0]
    assert [Configuration.of(each.to_dict()) for each in space.grid()] == space.grid()
    space = Space(learning_rates=[0.1], readouts=[1, "all"], regimes=["readout", "head"], trunk=backbone)
    assert [each.name.split("-rate")[0] for each in space.grid()] == [
        *("readout-1", "readout-3"),
        *("head-readout-1", "head-readout-3"),
    ]
    assert space.size == 4
    assert not any(each.is_head for each in space.grid())


def test_random_draws_are_different_seeded_and_inside() -> None:
    many = {"learning_rates": Range(1e-4, 1e-1), "memory": Range(0, 20), "weight_decays": [0.0, 0.1]}
    drawn = Space(**many, search="random", trials=200).draw(0)
    assert len(set(drawn)) == 200
    assert all(1e-4 <= each.learning_rate <= 1e-1 and 0 <= each.memory <= 20 for each in drawn)
    assert {each.weight_decay for each in drawn} == {0.0, 0.1}
    assert {each.memory for each in drawn} == set(range(21))
    # Uniform in the logarithm: as many below the geometric mean as above it.
    below = sum(math.log10(each.learning_rate) < -2.5 for each in drawn)
    assert 70 < below < 130
    assert Space(**many, search="random", trials=50).draw(0) == drawn[:50]  # more trials begin with the same
    assert Space(**many, search="random", trials=50).draw(1) != drawn[:50]


def test_all_of_a_small_space_can_be_drawn() -> None:
    space = Space(learning_rates=[0.1, 0.01], memory=Range(1, 3), search="random", trials=6)
    assert len(set(space.draw(0))) == space.size == 6


@pytest.mark.parametrize(
    ("axes", "argument"),
    [
        ({"learning_rates": []}, "learning_rates"),
        ({"learning_rates": "0.1"}, "learning_rates"),
        ({"learning_rates": [0.0]}, "learning_rates"),
        ({"learning_rates": [0.1, float("nan")]}, "learning_rates"),
        ({"learning_rates": [0.1, 0.10000001]}, "learning_rates"),
        ({"learning_rates": Range(1e-3, 1e-1)}, "learning_rates"),
        ({"weight_decays": [-1.0]}, "weight_decays"),
        ({"weight_decays": Range(0.0, 0.1), "search": "random", "trials": 3}, "weight_decays"),
        ({"memory": [-1]}, "memory"),
        ({"memory": [1.5]}, "memory"),
        ({"memory": Range(0.5, 3.0), "search": "random", "trials": 3}, "memory"),
        ({"queries": [0]}, "queries"),
        ({"memory": ["all"]}, "memory"),
        ({"readouts": ["most"]}, "readouts"),
        ({"readouts": [0, 1], "regimes": ["head", "readout"]}, "readouts"),
        ({"seeds": Range(0, 3), "search": "random", "trials": 3}, "seeds"),
        ({"regimes": ["full"]}, "regimes"),
        ({"search": "best"}, "search"),
        ({"search": "random"}, "trials"),
        ({"search": "random", "trials": 0}, "trials"),
        ({"search": "random", "trials": 3}, "trials"),
        ({"trials": 3}, "trials"),
        ({"memory": range(400), "seeds": range(400)}, None),
    ],
)
def test_a_space_that_makes_none(axes: dict[str, Any], argument: str | None) -> None:
    with pytest.raises(MemtokError) as caught:
        Space(**({"learning_rates": [0.1]} | axes))
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)


def test_ranges() -> None:
    assert Range.parse("1e-4..1e-1") == Range(1e-4, 1e-1)
    assert Range.parse("0..20", int) == Range(0, 20)
    assert Range.parse("0.1") is None
    for text in ("1..x", "3..1", "1..1", "nan..1"):
        with pytest.raises(ValueError, match=r"\.|x|nan"):
            Range.parse(text)
    with pytest.raises(MemtokError, match="LOW below HIGH"):
        Range(2, 1)


def test_what_is_left_out_is_as_the_recipe_has_it() -> None:
    grid = make_space(recipe="paper", search="grid", trials=None)
    assert grid.learning_rates == (0.03, 0.1, 0.3)
    assert grid.weight_decays == (0.0,)
    search = make_space(recipe="default", search="random", trials=4)
    assert search.learning_rates == Range(0.001, 0.1)
    assert search.weight_decays == (0.01,)


@pytest.mark.parametrize(
    ("eta", "count", "steps", "warmup", "rungs"),
    [
        (None, 24, 900, 0, ()),
        (3, 24, 900, 45, (100, 300)),
        (3, 27, 900, 20, (33, 100, 300)),
        (2, 24, 800, 40, (100, 200, 400)),
        (2, 24, 800, 150, (200, 400)),  # nobody is compared in the warm-up
        (4, 3, 800, 0, ()),  # too few to lose
        (2, 8, 3, 0, (1,)),
    ],
)
def test_rungs(eta: int | None, count: int, steps: int, warmup: int, rungs: tuple[int, ...]) -> None:
    assert find_rungs(eta, count=count, steps=steps, warmup=warmup) == rungs


def test_who_goes_on() -> None:
    assert [going_on(3, count) for count in (24, 8, 3, 2, 1)] == [8, 3, 1, 1, 1]
