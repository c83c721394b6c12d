"""Successive halving: when the configurations of a sweep are compared before their end, and how many go on."""

from __future__ import annotations

import math

from memtok.errors import Argument, MemtokError

MOST_RUNGS = 3


def check_halving(eta: int | None) -> None:
    """MemtokError unless it is None or a whole number of 2 or more."""
    if eta is not None and (isinstance(eta, bool) or not isinstance(eta, int) or eta < 2):
        raise MemtokError(
            f"expected {Argument('halving')} as a whole number of 2 or more, found {eta!r}; 3 keeps a third each time"
        )


def find_rungs(eta: int | None, *, count: int, steps: int, warmup: int) -> tuple[int, ...]:
    """The steps after which `count` configurations are compared in runs of `steps`, ascending; none without `eta`.

    They lie at 1/eta, 1/eta^2 and 1/eta^3 of the run: as many of them as leave at least one configuration, and none
    before the warm-up is over, when nobody has trained at its own rate yet.
    """
    if eta is None:
        return ()
    found: list[int] = []
    for power in range(1, MOST_RUNGS + 1):
        step = steps // eta**power
        if eta**power <= count and step > warmup:
            found.append(step)
    return tuple(reversed(found))


def going_on(eta: int, count: int) -> int:
    """How many of `count` configurations go on after a rung."""
    return math.ceil(count / eta)
