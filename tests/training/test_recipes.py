"""Recipes and the schedule, against values worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from memtok.errors import MemtokError
from memtok.training.recipes import RECIPES, find_recipe, images_seen, learning_rate_at

PAPER = RECIPES["paper"]
REPRODUCTION = RECIPES["reproduction"]


def rates(steps: int, warmup: int, peak: float = 1.0) -> list[float]:
    return [learning_rate_at(step, peak=peak, warmup=warmup, steps=steps) for step in range(steps)]


def test_paper_is_what_the_paper_and_the_issue_say() -> None:
    assert (PAPER.optimizer, PAPER.momentum, PAPER.clip_norm) == ("sgd", 0.9, 1.0)
    assert (PAPER.batch_size, PAPER.steps, PAPER.warmup_steps) == (512, 20_000, 5)
    assert PAPER.length(images=50_000, batch_size=512) == 20_000
    assert PAPER.warmup(20_000) == 5


def test_paper_warms_up_in_five_steps_then_falls_as_a_cosine_to_zero() -> None:
    found = rates(steps=13, warmup=5, peak=0.1)
    assert found[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    # 8 steps of cosine: half at the middle, 1/2 (1 + cos(pi k / 8)) in between.
    assert found[5] == pytest.approx(0.1)
    assert found[7] == pytest.approx(0.1 * 0.5 * (1 + math.sqrt(0.5)))
    assert found[9] == pytest.approx(0.05)
    assert found[11] == pytest.approx(0.1 * 0.5 * (1 - math.sqrt(0.5)))
    assert found[12] == pytest.approx(0.1 * 0.5 * (1 - math.cos(math.pi / 8)))
    assert learning_rate_at(13, peak=0.1, warmup=5, steps=13) == pytest.approx(0.0, abs=1e-12)


def test_rate_never_rises_again_after_the_warm_up() -> None:
    # The public reproduction steps its schedule per batch but counts epochs, so its rate swings for ever.
    found = rates(steps=2000, warmup=PAPER.warmup(2000), peak=PAPER.learning_rate)
    assert all(later <= earlier for earlier, later in pairwise(found[4:]))
    assert found[-1] < 1e-6


def test_reproduction_is_what_its_code_and_readme_say() -> None:
    assert (REPRODUCTION.optimizer, REPRODUCTION.learning_rate, REPRODUCTION.momentum) == ("sgd", 0.1, 0.9)
    assert (REPRODUCTION.weight_decay, REPRODUCTION.clip_norm) == (0.0, 1.0)
    assert (REPRODUCTION.batch_size, REPRODUCTION.warmup(15_640)) == (64, 5)
    lengths = {"cifar100": 15_640, "inaturalist2017": 84_400, "sun397": 13_600, "places365": 84_560}
    assert lengths == {name: REPRODUCTION.length(images=1000, batch_size=64, data=name) for name in lengths}


def test_reproduction_takes_ten_epochs_of_other_data() -> None:
    assert REPRODUCTION.length(images=6_400, batch_size=64, data="folder:cifar100") == 1_000
    assert REPRODUCTION.length(images=6_401, batch_size=64) == 1_010


def test_fault_4_schedule_of_the_reproduction_is_counted_in_steps() -> None:
    """Its code warms up for five epochs' worth of batches and then swings; here the rate rises once and falls once."""
    steps = REPRODUCTION.length(images=50_000, batch_size=64, data="cifar100")
    found = rates(steps=steps, warmup=REPRODUCTION.warmup(steps), peak=REPRODUCTION.learning_rate)
    assert found[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert all(later < earlier for earlier, later in pairwise(found[5:]))
    # Its own rate is still 0.1 after one epoch of 782 steps and for four more; this one has left it.
    assert found[782] < 0.0995
    assert found[-1] < 1e-8


def test_warm_up_longer_than_the_run_and_none() -> None:
    assert rates(steps=3, warmup=5) == pytest.approx([0.2, 0.4, 0.6])
    assert rates(steps=2, warmup=0) == pytest.approx([1.0, 0.5])


def test_default_runs_by_the_size_of_the_data_within_bounds() -> None:
    recipe = replace(RECIPES["default"], epochs=10, least_steps=500, most_steps=20_000, batch_size=64)
    assert recipe.length(images=100, batch_size=64) == 500
    assert recipe.length(images=6_400, batch_size=64) == 1_000
    assert recipe.length(images=10_000_000, batch_size=64) == 20_000
    assert replace(recipe, warmup_steps=5, warmup_share=0.05).warmup(1_000) == 50
    assert replace(recipe, warmup_steps=5, warmup_share=0.05).warmup(20) == 5


def test_images_seen_counts_the_smaller_last_batch() -> None:
    # 10 images in batches of 4: 4, 4, 2 an epoch.
    assert [images_seen(step, 10, 4) for step in range(8)] == [0, 4, 8, 10, 14, 18, 20, 24]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimizer": "adam"}, "sgd or adamw"),
        ({"learning_rate": 0.0}, "learning_rate above 0"),
        ({"clip_norm": -1.0}, "clip_norm above 0"),
        ({"momentum": 1.0}, "momentum in"),
        ({"betas": (0.9, 1.5)}, "beta 2 in"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"label_smoothing": 1.0}, "label_smoothing in"),
        ({"steps_by_data": {"cifar100": 0}}, r"steps_by_data\['cifar100'\] above 0, found 0"),
    ],
)
def test_bad_recipe_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(MemtokError, match=words):
        find_recipe(replace(PAPER, **change))  # type: ignore[arg-type]


def test_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(MemtokError, match=r"paper, reproduction, default, found 'papr'"):
        find_recipe("papr")
