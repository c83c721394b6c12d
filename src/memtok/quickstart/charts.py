"""The charts of the quickstart's report, each drawn into a figure in the colours of a theme. Shares are in [0, 1]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from memtok.intervals import wilson
from memtok.plots import Theme, legend
from memtok.quickstart.result import TrainedRun

DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (7, 2, 1.5, 2)), (0, (3, 1.5)), (0, (9, 3)))
WIDTH = 7.4  # inches of every chart
ROOM = 0.08  # least height of a bar with its number in it, as a share


def curves(figure: Figure, theme: Theme, runs: Sequence[TrainedRun]) -> None:
    """Training loss on the left, accuracy on validation images on the right; dashes distinguish runs without colour."""
    left, right = figure.subplots(1, 2)
    for run, dashes in zip(runs, cycle(DASHES), strict=False):
        steps, accuracies = zip(*run.validation, strict=True)
        left.plot(*zip(*run.loss, strict=True), linestyle=dashes, label=run.label)
        right.plot(steps, 100 * np.array(accuracies), linestyle=dashes, marker="o", markersize=3.5)
    left.set(title="Training loss", xlabel="step", xlim=(0, None), ylim=(0, None))
    right.set(title="Accuracy on validation images, %", xlabel="step", xlim=(0, None))
    right.margins(y=0.15)
    for axes in (left, right):
        axes.grid(axis="y")
    legend(figure, left.lines, min(len(runs), 4), handlelength=2.5, columnspacing=1)


def bars(figure: Figure, theme: Theme, runs: Sequence[TrainedRun]) -> None:
    """Test accuracy of each run as a horizontal bar with its value, and a whisker over its 95 % interval."""
    axes = figure.subplots()
    values = 100 * np.array([run.test_top1 for run in runs])
    ends = 100 * np.array([wilson(run.test_top1, run.test_images) for run in runs]).T  # (2, runs)
    drawn = axes.barh([run.label for run in runs], values, height=0.62, color=theme.series)
    whiskers: Any = {"xerr": abs(ends - values), "fmt": "none", "elinewidth": 1.1, "capsize": 3}
    axes.errorbar(values, range(len(runs)), color=theme.ink, **whiskers)
    for bar, value in zip(drawn, values, strict=True):
        place = 1, bar.get_y() + bar.get_height() / 2
        axes.text(*place, f"{value:.1f} %", va="center", color=theme.paper, fontweight="bold")
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, labelcolor=theme.ink)
    axes.set(title=f"Accuracy on {runs[0].test_images} test images", xlim=(0, 100), xlabel="%")
    axes.spines["left"].set_visible(False)


def mask(
    figure: Figure,
    theme: Theme,
    seen: NDArray[np.bool_],
    rows: Sequence[tuple[str, int]],
    columns: Sequence[tuple[str, int]],
) -> None:
    """The attention mask (rows, columns), where token i attends to token j; the groups (label, tokens) along its edges.

    Each group of rows has its colour.
    """
    groups = np.repeat(np.arange(1, len(rows) + 1), [count for _, count in rows])
    colors = ListedColormap([theme.paper, theme.muted, *theme.series][: len(rows) + 1])
    axes = figure.subplots()
    shown = groups[:, None] * seen  # 0 where masked
    axes.pcolormesh(shown, cmap=colors, vmin=0, vmax=len(rows), edgecolors=theme.paper, linewidth=1.5)
    for axis, names in ((axes.yaxis, rows), (axes.xaxis, columns)):
        edges = np.cumsum([0, *(count for _, count in names)])
        axis.set_ticks(edges, minor=True)
        axis.set_ticks([(low + high) / 2 for low, high in pairwise(edges)], [name for name, _ in names])
    axes.grid(which="minor", linewidth=0.9)
    axes.set_axisbelow(False)
    axes.set(xlim=(0, seen.shape[1]), ylim=(seen.shape[0], 0))
    axes.xaxis.tick_top()
    axes.tick_params(which="both", length=0, labelcolor=theme.ink)
    for label in axes.get_xticklabels():
        label.set(rotation=55, ha="left", rotation_mode="anchor")
    axes.spines[:].set_visible(True)


def layer_shares(figure: Figure, theme: Theme, tasks: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Stacked bars per layer, a panel per task: task -> part -> share in each layer. The parts add up to 1."""
    everyone = np.atleast_1d(figure.subplots(1, len(tasks), sharey=True))
    for axes, (name, parts) in zip(everyone, tasks.items(), strict=True):
        layers = np.arange(1, 1 + len(next(iter(parts.values()))))
        below = np.zeros(len(layers))
        for (label, shares), color in zip(parts.items(), cycle((theme.muted, *theme.series)), strict=False):
            height = 100 * np.array(shares)
            drawn = axes.bar(layers, height, bottom=below, color=color, edgecolor=theme.paper, label=label)
            numbers = [f"{value:.0f}" if value >= 100 * ROOM else "" for value in height]
            axes.bar_label(drawn, numbers, label_type="center", color=theme.paper, fontsize=8)
            below += height
        axes.set(title=f"Class token “{name}”", xlabel="layer", ylim=(0, 100), xticks=layers)
    everyone[0].set_ylabel("share of the attention weights, %")
    legend(figure, everyone[0].containers, len(everyone[0].containers), handlelength=1.2)


def heat_map(heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, columns, 3): a heat map by itself, from white for 0 to dark blue for its largest value."""
    pixels: NDArray[np.uint8] = matplotlib.colormaps["Blues"](heat / max(float(heat.max()), 1e-12), bytes=True)
    return pixels[..., :3]
