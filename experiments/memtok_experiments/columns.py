"""The columns of Table 2: a name for each regime that is compared, and what it trains.

full, head                  all of the backbone; a linear head
class, memory-N             class token and head, with N memory cells per layer, under the mask
class-unmasked, memory-N-unmasked   the same, but every token attends to class token and memory
propagated-N, additive-N    the paper's alternatives (Figure 2b): memory that is propagated through the layers
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from memtok.errors import MemtokError

PAPER_COLUMNS = ("full", "head", "class", "memory-1", "memory-5", "memory-10", "memory-20")
EVERY_COLUMN = (
    *PAPER_COLUMNS,
    "class-unmasked",
    "memory-1-unmasked",
    "memory-5-unmasked",
    "memory-10-unmasked",
    "memory-20-unmasked",
    "propagated-5",
    "additive-5",
)

FIXED = {"full": ("full", None), "head": ("head", None), "class": ("memory", 0), "class-unmasked": ("head+class", None)}
NUMBERED = {
    r"memory-([1-9][0-9]{0,5})": "memory",
    r"memory-([1-9][0-9]{0,5})-unmasked": "memory-shared",
    r"propagated-([1-9][0-9]{0,5})": "memory-propagated",
    r"additive-([1-9][0-9]{0,5})": "memory-additive",
}


@dataclass(frozen=True)
class Column:
    """regime, cells: what `memtok.training.create` makes; cells is None where the regime has no memory."""

    name: str
    regime: str
    cells: int | None

    @property
    def composable(self) -> bool:
        """Whether it shares the trunk's pass with others."""
        return self.regime in ("memory", "head")


def find_column(name: str) -> Column:
    """The column of this name; MemtokError for another."""
    if name in FIXED:
        return Column(name, *FIXED[name])
    for pattern, regime in NUMBERED.items():
        match = re.fullmatch(pattern, name)
        if match:
            return Column(name, regime, int(match[1]))
    raise MemtokError(
        f"expected a column ({', '.join(EVERY_COLUMN)}, or another number of cells), found {name!r}; choose one",
        argument="columns",
    )


def find_columns(names: Sequence[str]) -> tuple[Column, ...]:
    """The columns of these names, each once; `all` stands for all of them, `paper` for those of the paper's table."""
    groups = {"all": EVERY_COLUMN, "paper": PAPER_COLUMNS}
    spelled = [name for word in names for name in groups.get(word, (word,))]
    return tuple(find_column(name) for name in dict.fromkeys(spelled))
