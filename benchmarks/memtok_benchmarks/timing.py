"""Times of several contenders, measured in turns, so that disturbances of the machine affect all of them.

A figure of memtok's benchmarks is a ratio of medians of at least five rounds. Every contender runs once per round; the
order is rotated from round to round, so none always runs after the same other.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memtok.errors import MemtokError

LEAST_ROUNDS = 5

Clock = Callable[[], float]
Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """The seconds of one contender, one number per round. Raises MemtokError for fewer than five."""

    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        check_rounds(len(self.seconds))

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    def over(self, unit: Timing) -> float:
        """The ratio of the medians of this contender and of `unit`, which ran in the same rounds."""
        return self.median / unit.median

    def to_json(self) -> dict[str, Any]:
        """All times with their median, minimum and quartiles, in seconds."""
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return {
            "seconds": list(self.seconds),
            "median": self.median,
            "minimum": min(self.seconds),
            "quartiles": [first, third],
        }


def check_rounds(rounds: int) -> int:
    """Returns the number of rounds; MemtokError if they are too few for a median."""
    if rounds < LEAST_ROUNDS:
        raise MemtokError(
            f"expected {LEAST_ROUNDS} rounds or more, found {rounds}; a median needs more", argument="rounds"
        )
    return rounds


def turns(names: Sequence[str], number: int) -> list[str]:
    """The order of round `number`, from 0: each round begins one contender further on."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def race(
    contenders: Mapping[str, Run],
    *,
    rounds: int = LEAST_ROUNDS,
    warmup: int = 1,
    synchronize: Callable[[], None] | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Runs every contender `warmup` times untimed, then once in each of `rounds` rounds, and returns their times.

    synchronize: waits until the device has done what it was given; called before and after each timed run. Garbage
    is collected between the timed runs, never within one.
    """
    check_rounds(rounds)
    names = list(contenders)
    found: dict[str, list[float]] = {name: [] for name in names}
    wait = synchronize or (lambda: None)
    collecting = gc.isenabled()
    gc.freeze()  # objects that exist already are not scanned, so that collecting is fast
    try:
        for number in range(-warmup, rounds):
            for name in turns(names, max(number, 0)):
                gc.collect()
                gc.disable()
                wait()
                begun = clock()
                contenders[name]()
                wait()
                seconds = clock() - begun
                gc.enable()
                if number >= 0:
                    found[name].append(seconds)
    finally:
        gc.unfreeze()
        (gc.enable if collecting else gc.disable)()
    return {name: Timing(tuple(seconds)) for name, seconds in found.items()}
