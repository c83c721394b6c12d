"""Charts of reproduced tables, as PNG: accuracies of all regimes, and of tasks before and after composition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from memtok.errors import MemtokError
from memtok.plots import INK, LINE, MUTED, PAPER, legend, new_figure, panels, title, write_png
from memtok_experiments.columns import find_column
from memtok_experiments.published import BACKBONE
from memtok_experiments.table import Cell, Row, Table, column_label

MASKED, UNMASKED, OTHER = "#2767b0", "#c2571a", "#2f7d4f"
MASKED_ALONE, UNMASKED_ALONE = "#a9c4e2", "#e6bfa6"  # paler: before composition
# Regime -> colour.
COLORS = {
    "full": INK,
    "head": MUTED,
    "memory": MASKED,
    "head+class": UNMASKED,
    "memory-shared": UNMASKED,
    "memory-propagated": OTHER,
    "memory-additive": OTHER,
}
GROUPS = {MASKED: "with mask", UNMASKED: "without mask", OTHER: "propagated and additive memory"}
PUBLISHED = {"paper": ("D", "paper"), "reproduction": ("s", "public reproduction")}


@dataclass(frozen=True, kw_only=True)
class BeforeAfter:
    """Accuracy of a task in [0, 1]: alone and beside others, with the mask and, if it was tried, without it.

    without_extending: of a task that extends others, what the same task reaches that extends none.
    """

    task: str
    before: float
    after_masked: float
    before_unmasked: float | None = None
    after_unmasked: float | None = None
    without_extending: float | None = None

    def __post_init__(self) -> None:
        always = ("before", "after_masked")
        for name in (*always, "before_unmasked", "after_unmasked", "without_extending"):
            value = getattr(self, name)
            if not (value is None and name not in always) and not 0 <= value <= 1:
                raise MemtokError(f"expected {name} of {self.task} as a share in [0, 1], found {value!r}; correct it")


def draw(table: Table, path: str | Path) -> None:
    """Writes a PNG with a panel per row of the table and a line per regime.

    A dot is the mean over the seeds, its bar one standard deviation to either side, small dots the single seeds; the
    dashed line is full fine-tuning; hollow marks are published figures. The number at the right is the mean in percent.
    Regimes that no row has tested, and that have no published figure, are left out.
    """
    columns = [column for column in table.columns if any(shown(row.cells.get(column)) for row in table.rows)]
    if not columns:
        raise MemtokError("expected at least one tested run for a picture, found none; test first")
    across = {1: 1, 2: 2, 3: 3, 4: 2}.get(len(table.rows), 3)
    down = -(-len(table.rows) // across)
    with new_figure(1.9 + 3.6 * across, 0.75 + down * (0.95 + 0.27 * len(columns))) as figure:
        for axes, row in zip(panels(figure, len(table.rows), across, sharey=True), table.rows, strict=True):
            panel(axes, row, columns)
        legend(figure, legend_entries(table, columns), across + 1)
        write_png(figure, path)


def panel(axes: Axes, row: Row, columns: Sequence[str]) -> None:
    """One row of the table."""
    places = {column: -index for index, column in enumerate(columns)}
    for column, place in places.items():
        cell = row.cells.get(column)
        if cell is not None:
            dot(axes, cell, place)
    full = row.cells.get("full")
    if full is not None and full.mean is not None:
        axes.axvline(100 * full.mean, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for above, below in pairwise(columns):
        if color(above) != color(below):
            axes.axhline(places[above] - 0.5, color=LINE, linewidth=0.8, zorder=0)
    title(axes, row.data, fontweight="bold", pad=17)
    axes.annotate(
        caption(row), (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=7.5, color=MUTED
    )
    axes.set_yticks(list(places.values()), [column_label(column) for column in columns])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(-len(columns) + 0.5, 0.5)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    axes.set_xlabel("top-1 accuracy on the test images, %")


def dot(axes: Axes, cell: Cell, place: float) -> None:
    """Mean, spread, seeds and published figures of a regime."""
    paint = color(cell.column)
    for name, percent in cell.published.items():
        marker, _ = PUBLISHED[name]
        style: Any = {"markerfacecolor": PAPER, "markeredgecolor": MUTED, "markersize": 5.5, "linestyle": "none"}
        axes.plot([percent], [place], marker=marker, zorder=2, **style)
    if cell.mean is None:
        return
    mean = 100 * cell.mean
    if cell.std is not None:
        axes.errorbar([mean], [place], xerr=[100 * cell.std], color=paint, elinewidth=1.4, capsize=2.5, zorder=3)
        tests = [100 * test.top1 for test in cell.tests]
        axes.plot(tests, [place - 0.27] * len(tests), ".", color=paint, markersize=3.5, alpha=0.7, zorder=3)
    axes.plot([mean], [place], "o", color=paint, markersize=6, zorder=4)
    right = axes.get_yaxis_transform()
    axes.text(1.01, place, f"{mean:.1f}", transform=right, va="center", ha="left", fontsize=8, color=paint)


def caption(row: Row) -> str:
    """Under the title: the backbone and how many images were tested with how many seeds."""
    tested = [cell for cell in row.cells.values() if cell.tests]
    backbone = row.backbone.rstrip("/").rsplit("/", 1)[-1]
    if not tested:
        return backbone
    seeds = sorted({len(cell.tests) for cell in tested})
    count = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else "1 seed" if seeds == [1] else f"{seeds[0]} seeds"
    images = max(cell.images or 0 for cell in tested)
    return f"{backbone}, {row.image_size[0]} px, {row.steps:,} steps, {count}, {images:,} test images"


def legend_entries(table: Table, columns: Sequence[str]) -> list[Line2D]:
    """The legend of the marks that occur."""
    cells = [cell for row in table.rows for cell in row.cells.values()]
    entries: list[tuple[bool, str, Any]] = [
        ("full" in columns, "full fine-tuning", {"color": INK, "linestyle": (0, (4, 3)), "linewidth": 1})
    ]
    for paint, label in GROUPS.items():
        used = any(color(column) == paint for column in columns)
        entries.append((used, label, {"color": paint, "marker": "o", "linestyle": "none", "markersize": 6}))
    several = any(cell.std is not None for cell in cells)
    entries.append((several, "single seeds", {"color": MUTED, "marker": ".", "linestyle": "none", "markersize": 4}))
    for name, (marker, label) in PUBLISHED.items():
        style = {"marker": marker, "markerfacecolor": PAPER, "markeredgecolor": MUTED, "linestyle": "none"}
        found = any(name in cell.published for cell in cells)
        entries.append((found, f"{label} ({BACKBONE.partition(',')[0]})", {**style, "markersize": 5.5}))
    return [Line2D([], [], label=label, **style) for used, label, style in entries if used]


def shown(cell: Cell | None) -> bool:
    """Whether there is anything to draw."""
    return cell is not None and bool(cell.tests or cell.published)


def color(column: str) -> str:
    """The colour of a column's regime."""
    return COLORS[find_column(column).regime]


def draw_before_after(tasks: Sequence[BeforeAfter], path: str | Path) -> None:
    """Writes a PNG with a group of bars per task: alone and beside the others, with the mask and without it.

    A task that extends others stands beside the same task that extends none; only it has that bar.
    MemtokError for no tasks.
    """
    if not tasks:
        raise MemtokError("expected at least one task for a picture, found none; evaluate first")
    extending = any(task.without_extending is not None for task in tasks)
    alone = "alone (with what it extends), with mask" if extending else "alone, with mask"
    series: list[tuple[str, str, list[float | None]]] = [
        ("the same task without extending", OTHER, [task.without_extending for task in tasks]),
        (alone, MASKED_ALONE, [task.before for task in tasks]),
        ("together, with mask", MASKED, [task.after_masked for task in tasks]),
        ("alone, without mask", UNMASKED_ALONE, [task.before_unmasked for task in tasks]),
        ("together, without mask", UNMASKED, [task.after_unmasked for task in tasks]),
    ]
    series = [row for row in series if any(value is not None for value in row[2])]
    with new_figure(max(4.6, 1.2 + 2.2 * len(tasks)), 3.4) as figure:
        axes = figure.subplots()
        axes.tick_params(axis="y", labelcolor=INK)
        width = 0.84 / len(series)
        for number, (label, paint, values) in enumerate(series):
            bars = [
                (index + beside(series, number, index) * width, 100 * value)
                for index, value in enumerate(values)
                if value is not None
            ]
            axes.bar([place for place, _ in bars], [value for _, value in bars], 0.92 * width, color=paint, label=label)
            for place, value in bars:
                label_box: Any = {
                    "facecolor": PAPER,
                    "edgecolor": "none",
                    "pad": 0.8,
                }  # hides the grid behind the number
                axes.text(place, value + 1.2, f"{value:.1f}", ha="center", va="bottom", fontsize=8, bbox=label_box)
        axes.set_xticks(range(len(tasks)), [task.task for task in tasks])
        axes.tick_params(axis="x", length=0, labelcolor=INK)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(0, 108)
        axes.set_yticks(range(0, 101, 20))
        axes.set_ylabel("top-1 accuracy on the test images, %")
        axes.grid(axis="y")
        legend(figure, axes.containers, 2, handlelength=1.2)
        write_png(figure, path)


def beside(series: Sequence[tuple[str, str, list[float | None]]], number: int, index: int) -> float:
    """The offset of series `number` from the middle of group `index`, in bars; other series may lack a bar."""
    there = [each for each, (_, _, values) in enumerate(series) if values[index] is not None]
    return there.index(number) - (len(there) - 1) / 2
