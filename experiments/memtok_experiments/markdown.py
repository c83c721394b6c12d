"""A table of `memtok_experiments.table` in GitHub's Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memtok.display import markdown_table, markdown_text
from memtok_experiments.columns import find_column
from memtok_experiments.orderings import ERRORS, orderings
from memtok_experiments.published import BACKBONE, SOURCES, published
from memtok_experiments.render import NONE, percent, said, share
from memtok_experiments.table import Cell, Row, Table, column_label

NAMES = ("paper", "reproduction")
MASKED = ("full", "head", "memory")  # regimes of the first table; the others get one of their own


def to_markdown(table: Table) -> str:
    """Accuracies in percent with the published figures under each row; then the orderings; then rates and sizes.

    The regimes without the mask and the paper's alternatives are in a second table, so that neither is too wide.
    """
    parts = ["### Top-1 accuracy on the test images, %", ""]
    first = [column for column in table.columns if find_column(column).regime in MASKED]
    for columns in (first, [column for column in table.columns if column not in first]):
        if columns:
            parts += [*accuracies(table, columns), ""]
    parts += [*notes(table), *ordering_lines(table), *rate_lines(table)]
    return "\n".join(parts) + "\n"


def accuracies(table: Table, columns: Sequence[str]) -> Iterator[str]:
    """One table of top-1 accuracies on the test part."""
    names, labels = row_names(table), [column_label(column) for column in columns]
    common = common_seeds(table)
    lines: list[list[str]] = []
    for row in table.rows:
        cells = [row.cells.get(column) for column in columns]
        if not any(cells):
            continue
        lines.append([*row_name(table, row), *(accuracy(cell, common) for cell in cells)])
        for name in NAMES:
            figures = [published(row.data, column).get(name) for column in columns]
            if any(figures):
                shown = (f"*{percent(share(figure))}*" if figure else "" for figure in figures)
                lines.append([f"*{name}*", *[""] * (len(names) - 1), *shown])
    yield from markdown_table([*names, *labels], lines, labels)


def accuracy(cell: Cell | None, common: int | None) -> str:
    """81.4 ± 0.3, with the number of seeds unless all cells have `common`."""
    if cell is None or cell.mean is None:
        return "" if cell is None else NONE
    spread = "" if cell.std is None else f" ± {percent(cell.std)}"
    return f"{percent(cell.mean)}{spread}" + (f" ({len(cell.tests)})" if common is None else "")


def notes(table: Table) -> Iterator[str]:
    """Notes on the numbers of the tables above."""
    common = common_seeds(table)
    if common is None:
        yield "± is the standard deviation over the seeds, whose number is in brackets."
    elif common == 1:
        yield "One seed each, so the spread over seeds is not known."
    elif common:
        yield f"Mean ± standard deviation over {common} seeds."
    yield ""
    for row in table.rows:
        images = sorted({cell.images for cell in row.cells.values() if cell.images})
        tested = f", {', '.join(f'{count:,}' for count in images)} test images" if images else ""
        yield markdown_text(f"- {row.data}: {row.backbone}, {row.setting}{tested}.")
    cells = [cell for row in table.rows for cell in row.cells.values()]
    for name in NAMES:
        if any(name in cell.published for cell in cells):
            yield f"- *{name}*: {SOURCES[name]}; {BACKBONE}."
    if any("paper" in cell.published and cell.regime not in MASKED for cell in cells):
        yield "- Whether the paper's table was made with the mask is not known, so its figures are listed for both."


def ordering_lines(table: Table) -> Iterator[str]:
    """The paper's orderings and whether they hold."""
    statements = orderings(table)
    if not statements:
        return
    yield from ("", "### The paper's orderings", "")
    heads = [*row_names(table), "statement", "difference", "verdict", "in the paper"]
    lines = []
    for found in statements:
        difference = f"{found.difference:+.1f} ± {found.error:.1f}"
        lines.append([*row_name(table, found.row), found.statement, difference, found.verdict, said(found.paper)])
    yield from markdown_table(heads, lines, ["difference"])
    yield ""
    yield (
        "Difference in points: right side minus left. ± is one standard error, from the spread over seeds and from the "
        f"number of test images; more than {ERRORS:g} of them count."
    )
    if not all(found.spread_known for found in statements):
        yield "Where no regime has two seeds it comes from the test images alone and is too small."


def rate_lines(table: Table) -> Iterator[str]:
    """Per cell: learning rates tried and chosen, and trained parameters."""
    yield from ("", "### Learning rates, chosen on the validation part", "")
    heads = [*row_names(table), "regime", "rate: validation accuracy, %", "trained parameters", "seconds"]
    lines = [[*row_name(table, row), *rate_cells(cell)] for row in table.rows for cell in row.cells.values()]
    yield from markdown_table(heads, lines, heads[-2:])
    yield ""
    yield "The chosen rate is bold. Seconds of training over all rates and seeds; runs of one pass share its time."


def rate_cells(cell: Cell) -> list[str]:
    """The end of a line of the last table."""
    tried = (
        f"{rate.learning_rate:g}: {percent(rate.validation)}{' (diverged)' if rate.diverged else ''}"
        for rate in cell.rates
    )
    chosen = (rate.learning_rate in cell.chosen_rates for rate in cell.rates)
    rates = " · ".join(f"**{found}**" if bold else found for found, bold in zip(tried, chosen, strict=True))
    share_of_all = 100 * cell.trained_parameters / cell.total_parameters
    parameters = f"{cell.trained_parameters:,} ({share_of_all:.3g} %)"
    return [column_label(cell.column), rates, parameters, f"{cell.seconds:,.0f}"]


def common_seeds(table: Table) -> int | None:
    """The number of seeds that all tested cells have (0: none is tested); None if they differ."""
    counts = {len(cell.tests) for row in table.rows for cell in row.cells.values() if cell.tests}
    return None if len(counts) > 1 else counts.pop() if counts else 0


def row_names(table: Table) -> list[str]:
    """Headings of the columns that name a row: the backbone only if there are several."""
    return ["data", "backbone"] if len({row.backbone for row in table.rows}) > 1 else ["data"]


def row_name(table: Table, row: Row) -> list[str]:
    """The cells under `row_names`."""
    return [row.data, row.backbone][: len(row_names(table))]
