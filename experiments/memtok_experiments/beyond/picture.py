"""The table of `memtok reproduce beyond` as a picture: a panel per row, a line per column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from memtok.plots import INK, LINE, PAPER, legend, new_figure, panels, title, write_png
from memtok_experiments.beyond.columns import COLUMNS
from memtok_experiments.beyond.table import Cell

COMPOSES, CHANGES = "#2767b0", "#c2571a"
ROOM = 2.0  # points of accuracy beside the outermost dots


def draw(cells: Sequence[Cell], path: str | Path) -> None:
    """Writes a PNG of the cells at equal steps; there must be one at least.

    A dot is the mean over the seeds, its bar one standard deviation to either side, the number beside it the mean in
    percent. Behind the name of a column stands what it adds to the trunk's pass at inference, in class tokens.
    """
    untimed = [cell for cell in cells if not cell.timed]
    rows = list(dict.fromkeys(cell.row for cell in untimed))
    names = [name for name in COLUMNS if any(cell.column == name for cell in untimed)]
    across = min(3, len(rows))
    down = -(-len(rows) // across)
    with new_figure(2.2 + 3.0 * across, 0.7 + down * (0.7 + 0.24 * len(names))) as figure:
        for axes, row in zip(panels(figure, len(rows), across, sharey=True), rows, strict=True):
            panel(axes, [cell for cell in untimed if cell.row == row], names)
        for axes in figure.axes[::across]:
            axes.set_yticks([-place for place in range(len(names))], labels(untimed, names))
        for axes in figure.axes[len(rows) - across : len(rows)]:
            axes.set_xlabel("top-1 of the test images, %")
        marks = [
            Line2D([], [], color=COMPOSES, marker="o", linestyle="", label="composes: one pass of the trunk for all"),
            Line2D([], [], color=CHANGES, marker="o", linestyle="", label="needs a pass of its own"),
            Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="full fine-tuning"),
        ]
        legend(figure, marks, across)
        write_png(figure, path)


def labels(cells: Sequence[Cell], names: Sequence[str]) -> list[str]:
    """The titles of columns, with their cost on the first row that has them."""
    cost = {name: next(cell.cost for cell in cells if cell.column == name) for name in names}
    return [f"{COLUMNS[name].title} ({cost[name]:.2g})" for name in names]


def panel(axes: Axes, cells: Sequence[Cell], names: Sequence[str]) -> None:
    """One row of the table."""
    for cell in cells:
        place, top1 = -names.index(cell.column), 100 * cell.mean
        color = COMPOSES if COLUMNS[cell.column].composes else CHANGES
        if cell.std:
            axes.plot([top1 - 100 * cell.std, top1 + 100 * cell.std], [place, place], color=color, linewidth=1.2)
        axes.plot(top1, place, marker="o", color=color, markersize=5, markeredgecolor=PAPER, zorder=3)
        axes.annotate(
            f"{top1:.1f}",
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
        if cell.column == "full":
            axes.axvline(top1, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    low, high = min(cell.mean for cell in cells), max(cell.mean for cell in cells)
    axes.set_xlim(100 * low - ROOM, 100 * high + ROOM)
    axes.set_ylim(0.6 - len(names), 0.4)
    axes.grid(axis="y", color=LINE)
    axes.tick_params(length=0)
    title(axes, cells[0].row, fontweight="bold")
