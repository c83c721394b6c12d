"""The paper's orderings in a table, and whether the differences are significant.

The uncertainty of an accuracy has two parts, and both parts of both cells add up as variances:

- Training: the standard deviation over the seeds, divided by the root of their number. With few seeds
  this estimate is noisy, so the larger one of the cell's and of the whole row's (pooled) is taken.
- Test: n images draw an accuracy p with the variance p (1 - p) / n, which no number of seeds makes smaller. The two
  cells are tested on the same images, so the variance of their difference is smaller than this.

A difference of more than two standard errors is significant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from memtok_experiments.published import PAPER, UNMASKED
from memtok_experiments.table import Cell, Row, Table, column_label, column_order

HOLDS, FAILS, NOISE = "holds", "does not hold", "within noise"
ERRORS = 2.0  # standard errors that a difference must exceed


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """One statement about two columns of a row.

    lower, upper: the columns; the statement is that `upper` is better, or, where `margin` is above 0, that `lower` is
    at most `margin` points below it (then `upper` is full fine-tuning).
    difference: accuracy of `upper` minus that of `lower`, error: its standard error, both in points (percent).
    seeds: of the cell that has fewer. spread_known: False if no cell of the row has two seeds, so that `error` lacks
    the part of the training. verdict: "holds", "does not hold" or "within noise".
    paper: whether the paper's figures for this data set, without regard to noise, say the same; None without figures.
    """

    row: Row
    lower: str
    upper: str
    margin: float
    difference: float
    error: float
    seeds: int
    spread_known: bool
    verdict: str
    paper: bool | None

    @property
    def statement(self) -> str:
        """In words, such as "head < head + class"."""
        lower, upper = column_label(self.lower), column_label(self.upper)
        return f"{lower} at most {self.margin:g} points below {upper}" if self.margin else f"{lower} < {upper}"


def orderings(table: Table) -> tuple[Ordering, ...]:
    """All statements about the rows of the table, row by row. Untested cells are ignored.

    head < head + class < 1 cell; head and head + class < the best number of cells; that number close to `full`
    (`table.close` points); each with and without mask. And propagated and additive memory < memory of as many cells,
    without the mask where the row has it, because they have none. The best number of cells is chosen on the validation
    part.
    """
    found: list[Ordering] = []
    for row in table.rows:
        cells = {column: cell for column, cell in row.cells.items() if cell.tests}
        spread = pooled_variance(cells.values())
        for lower, upper, margin in statements(cells, table.close):
            if lower in cells and upper in cells:
                found.append(compare(row, cells[lower], cells[upper], margin, spread))
    return tuple(found)


def statements(cells: dict[str, Cell], close: float) -> Iterator[tuple[str, str, float]]:
    """(lower, upper, margin) of every statement; columns may be absent."""
    for mask in ("", UNMASKED):
        yield "head", "class" + mask, 0.0
        yield "class" + mask, "memory-1" + mask, 0.0
        best = best_memory(cells, mask)
        if best is None:
            continue
        if best != "memory-1" + mask:
            yield "class" + mask, best, 0.0
        yield "head", best, 0.0
        yield best, "full", close
    for column in cells:
        kind, _, count = column.partition("-")
        if kind in ("propagated", "additive"):
            plain = f"memory-{count}"
            yield column, plain + UNMASKED if plain + UNMASKED in cells else plain, 0.0


def best_memory(cells: dict[str, Cell], mask: str) -> str | None:
    """The column of memory, with `mask` at its end, that is best on the validation part; of equal ones the smallest."""
    kind = column_order("memory-1" + mask)[0]
    columns = [column for column, cell in cells.items() if column_order(column)[0] == kind and cell.memory]
    return max(columns, key=lambda column: (cells[column].validation or 0.0, -cells[column].memory), default=None)


def compare(row: Row, lower: Cell, upper: Cell, margin: float, spread: float | None) -> Ordering:
    """The statement that `upper` is better than `lower`, or by no more than `margin` points where that is above 0.

    spread: the row's pooled variance over seeds, None if there is none.
    """
    difference = 100 * ((upper.mean or 0.0) - (lower.mean or 0.0))
    error = 100 * math.sqrt(sum(seed_variance(cell, spread) + sampling_variance(cell) for cell in (lower, upper)))
    excess = margin - difference if margin else difference
    verdict = HOLDS if excess > ERRORS * error else FAILS if excess < -ERRORS * error else NOISE
    return Ordering(
        row=row,
        lower=lower.column,
        upper=upper.column,
        margin=margin,
        difference=difference,
        error=error,
        seeds=min(len(lower.tests), len(upper.tests)),
        spread_known=spread is not None,
        verdict=verdict,
        paper=in_paper(row.data, lower.column, upper.column, margin),
    )


def pooled_variance(cells: Iterable[Cell]) -> float | None:
    """Variance over seeds of all cells together, each weighted by its seeds less one; None without two seeds."""
    parts = [(len(cell.tests) - 1, cell.std**2) for cell in cells if cell.std is not None]
    return sum(weight * variance for weight, variance in parts) / sum(weight for weight, _ in parts) if parts else None


def seed_variance(cell: Cell, spread: float | None) -> float:
    """Of the mean over the seeds."""
    return max((cell.std or 0.0) ** 2, spread or 0.0) / len(cell.tests)


def sampling_variance(cell: Cell) -> float:
    """Of an accuracy on so many images, one more right and one more wrong, so that 100 % is not taken as certain."""
    images = cell.images or 1
    share = ((cell.mean or 0.0) * images + 1) / (images + 2)
    return share * (1 - share) / images


def in_paper(data: str, lower: str, upper: str, margin: float) -> bool | None:
    """Whether the ordering holds in Table 2 for this data set; None if it has no such figures."""
    figures = PAPER.get(data, {})
    low, high = (figures.get(column.removesuffix(UNMASKED)) for column in (lower, upper))
    if low is None or high is None:
        return None
    return high - low <= margin + 1e-9 if margin else high > low
