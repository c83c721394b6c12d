"""What can be trained: one row per regime. All but `full`, which trains the backbone, are tasks beside a frozen one.

Most are those of Table 2 and Figure 2b of Sandler et al., CVPR 2022 (arXiv 2203.15243); `readout` and `side` are
memtok's additions. Importing this module brings no torch along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from memtok.errors import MemtokError

NONE, BESIDE, ENTERING, UPDATED = "none", "beside", "entering", "updated"
"""What memory cells do: there are none; each layer has keys and values of its own; cells enter before the first layer
and pass through all layers as tokens do; the same, and every further layer adds a learned update to them."""

ALL = "all"
"""In place of a number: as many as the backbone has."""


@dataclass(frozen=True, kw_only=True)
class Regime:
    """What a task of one regime is made of, and how it meets the trunk.

    trains: what learns, in words. composable: image tokens never attend to the task, so it may share a pass with
    others; a task that is not composable runs on `reference.variant_outputs`. class_token: whether it has class tokens
    of its own; else its head reads the backbone's features. cells: `NONE`, `BESIDE`, `ENTERING` or `UPDATED`. needs:
    the options of parts that each of its tasks has, with their defaults there. whole: a copy of the backbone trains; no
    task.
    """

    name: str
    trains: str
    composable: bool = False
    class_token: bool = True
    cells: str = NONE
    needs: Mapping[str, int | str] = field(default_factory=dict, hash=False)
    whole: bool = False

    @property
    def memory(self) -> bool:
        """Whether it has memory cells."""
        return self.cells != NONE

    @property
    def enters(self) -> bool:
        """Whether memory cells pass through the layers as tokens do."""
        return self.cells in (ENTERING, UPDATED)

    @property
    def streams(self) -> bool:
        """Whether its class tokens pass through the layers beside the trunk."""
        return self.composable and self.class_token


FULL = "full"

REGIMES: dict[str, Regime] = {
    regime.name: regime
    for regime in (
        Regime(
            name="memory",
            trains="class token, memory cells in every layer and head; the backbone never attends to them",
            composable=True,
            cells=BESIDE,
        ),
        Regime(name="head", trains="a linear head on the backbone's features", composable=True, class_token=False),
        Regime(
            name="readout",
            trains="a linear head on the backbone's features and on statistics of all its levels, or of --readout N",
            composable=True,
            class_token=False,
            needs={"readout": ALL},
        ),
        Regime(
            name="side",
            trains="a linear head on the backbone's features and on a side stream over its patches",
            composable=True,
            class_token=False,
            needs={"side": 16},
        ),
        Regime(name="head+class", trains="a head and a copy of the class token that takes the place of the base one"),
        Regime(
            name="memory-shared",
            trains="as memory, but every token attends to class token and memory",
            cells=BESIDE,
        ),
        Regime(
            name="memory-propagated",
            trains="memory that enters before the first layer and passes through all layers as tokens do",
            cells=ENTERING,
        ),
        Regime(
            name="memory-additive",
            trains="as memory-propagated, with a learned update in every layer",
            cells=UPDATED,
        ),
        Regime(name=FULL, trains="the whole backbone and a head; saves a whole model", class_token=False, whole=True),
    )
}

TASK_REGIMES = tuple(name for name, regime in REGIMES.items() if not regime.whole)
COMPOSABLE = tuple(name for name, regime in REGIMES.items() if regime.composable)


def find_regime(name: str) -> Regime:
    """The regime of a name; MemtokError for another."""
    if name not in REGIMES:
        raise MemtokError(
            f"expected a regime among {', '.join(REGIMES)}, found {name!r}; choose one of these", argument="regime"
        )
    return REGIMES[name]


def task_regime(name: str) -> Regime:
    """The regime of a task; MemtokError for another name, and for `full`, which makes no task."""
    if find_regime(name).whole:
        raise MemtokError(
            f"expected a regime of tasks ({', '.join(TASK_REGIMES)}), found {name!r}, which trains a whole model; use "
            "memtok.FullModel",
            argument="regime",
        )
    return REGIMES[name]
