"""Intervals: they hold what they promise, and pairs tell apart what two separate counts do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from memtok.intervals import paired, unpaired, wilson


def test_wilson_holds_what_it_promises(print_seed: Callable[[int], int]) -> None:
    generator = np.random.default_rng(print_seed(0))
    for share in (0.5, 0.92, 0.99):
        counts = generator.binomial(359, share, size=4000) / 359
        covered = np.mean([low <= share <= high for low, high in (wilson(count, 359) for count in counts)])
        assert 0.93 <= covered <= 1.0
    assert wilson(1.0, 100) == pytest.approx((0.963, 1.0), abs=1e-3)  # all right on few images proves little
    assert wilson(0.0, 100)[0] == 0.0


def test_paired_holds_what_it_promises(print_seed: Callable[[int], int]) -> None:
    """Two classifiers of known accuracies that agree on most images, many times over."""
    generator = np.random.default_rng(print_seed(1))
    for images, gain in ((143, 0.0), (143, 0.05), (1000, 0.02)):
        covered = []
        for _ in range(1500):
            draws = generator.random(images)
            other = draws < 0.90
            one = (draws < 0.86) | (draws > 0.96 - gain)  # 4 % only the other knows, 4 % + gain only this one
            found = paired([one], [other])
            covered.append(found.low <= gain <= found.high)
        assert 0.93 <= np.mean(covered) <= 0.99


def test_weighted_classes_hold_it_too(print_seed: Callable[[int], int]) -> None:
    """One class of 9 in 10 images and one of the others; the gain is the mean of those in each."""
    generator = np.random.default_rng(print_seed(2))
    labels = np.repeat([0, 1], [540, 60])
    weights = 600 / (2 * np.array([540, 60]))[labels]
    covered = []
    for _ in range(1500):
        draws = generator.random(600)
        other = draws < 0.80
        one = draws < np.where(labels == 0, 0.78, 0.90)
        found = paired([one], [other], weights=weights)
        covered.append(found.low <= (-0.02 + 0.10) / 2 <= found.high)
    assert 0.92 <= np.mean(covered) <= 0.99
    assert paired([one], [other], weights=np.ones(600)) == paired([one], [other])


def test_against_the_formula_of_agresti_and_min() -> None:
    one, other = np.zeros(100, dtype=bool), np.zeros(100, dtype=bool)
    one[:60], other[:50] = True, True  # 50 both, 10 only the one
    other[60:62] = True  # 2 only the other
    found = paired([one], [other])
    more, fewer, trials = 10.5, 2.5, 102
    centre = (more - fewer) / trials
    half = 1.96 * np.sqrt(more + fewer - (more - fewer) ** 2 / trials) / trials
    assert found.value == pytest.approx(0.08)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))
    assert not found.tied
    apart = unpaired([one.mean()], [other.mean()], 100)
    assert apart.tied  # separate counts cannot tell
    assert apart.low < found.low < found.high < apart.high
    turned = paired([other], [one])
    assert (-found).value == turned.value
    assert ((-found).low, (-found).high) == pytest.approx((turned.low, turned.high))


def test_the_spread_over_seeds_widens_the_interval() -> None:
    rows = np.zeros((4, 200), dtype=bool)
    rows[0, :150], rows[1, :190], rows[2, :150], rows[3, :190] = True, True, True, True
    steady = paired([rows[1], rows[1]], [rows[0], rows[0]])
    spread = paired([rows[0], rows[1]], [rows[2], rows[3]])
    assert not steady.tied
    assert spread.value == 0
    assert spread.high - spread.low > steady.high - steady.low
    assert unpaired([0.75, 0.95], [0.75, 0.95], 200).tied


def test_the_same_answers_are_tied() -> None:
    rows = np.ones(10, dtype=bool)
    found = paired([rows], [rows])
    assert (found.value, found.tied) == (0.0, True)
    assert found.low < 0 < found.high
    assert str(found).startswith("+0.0 points (95 % interval -")
