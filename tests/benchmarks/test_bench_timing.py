"""Timing in turns: who runs when, what is refused, and what the ratios are. No test reads a real clock."""

from __future__ import annotations

import gc
from itertools import count

import pytest

from memtok.errors import MemtokError
from memtok_benchmarks.timing import Timing, check_rounds, race, turns


def test_every_round_begins_one_further_on() -> None:
    ran: list[str] = []
    contenders = {name: lambda name=name: ran.append(name) for name in "abc"}
    race(contenders, rounds=6, warmup=1)
    rounds = ["".join(ran[start : start + 3]) for start in range(0, len(ran), 3)]
    assert rounds == ["abc", "abc", "bca", "cab", "abc", "bca", "cab"]  # the first is the warm-up
    assert turns(["a", "b"], 3) == ["b", "a"]


def test_times_are_those_of_the_clock() -> None:
    """Each look at the clock is a second later than the last; a step that looks too takes longer."""
    ticks = count()

    def clock() -> float:
        return float(next(ticks))

    timings = race({"quick": lambda: None, "slow": lambda: [clock(), clock()]}, rounds=5, clock=clock)
    assert timings["quick"].seconds == (1.0,) * 5
    assert timings["slow"].seconds == (3.0,) * 5
    assert timings["slow"].over(timings["quick"]) == 3.0


def test_waits_for_the_device_before_and_after() -> None:
    events: list[str] = []
    race({"a": lambda: events.append("run")}, rounds=5, warmup=0, synchronize=lambda: events.append("wait"))
    assert events == ["wait", "run", "wait"] * 5


def test_ratio_is_that_of_medians() -> None:
    """One slow round and one quick round move neither."""
    slow = Timing((2.0, 2.0, 0.5, 90.0, 2.0))
    assert slow.over(Timing((1.0, 1.0, 0.1, 1.0, 40.0))) == 2.0
    assert slow.to_json()["minimum"] == 0.5
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0)).to_json()["quartiles"] == [2.0, 4.0]


@pytest.mark.parametrize("rounds", [0, 1, 4])
def test_fewer_than_five_rounds_are_refused(rounds: int) -> None:
    with pytest.raises(MemtokError) as error:
        race({"a": lambda: None}, rounds=rounds)
    assert error.value.argument == "rounds"
    with pytest.raises(MemtokError) as error:
        Timing((1.0,) * rounds)
    assert error.value.argument == "rounds"
    assert check_rounds(5) == 5


def test_garbage_is_collected_between_runs_only() -> None:
    within: list[bool] = []
    assert gc.isenabled()
    race({"a": lambda: within.append(gc.isenabled())}, rounds=5)
    assert within == [False] * 6
    assert gc.isenabled()


def test_garbage_collection_comes_back_after_an_error() -> None:
    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - whatever a contender raises
        race({"a": fail}, rounds=5)
    assert gc.isenabled()
