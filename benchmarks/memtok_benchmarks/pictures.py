"""The picture of the row `growth`, as PNG: a panel per axis, time over the trunk's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from memtok import plots
from memtok.plots import INK, MUTED

SERIES = {"training": ("training step", "#2767b0", "o"), "inference": ("inference", "#c2571a", "s")}
ACROSS = 3
LABELS = {
    "tasks": "tasks, each of one class token",
    "cells": "memory cells per layer",
    "batch": "images per batch",
    "image size": "image size, px",
    "depth": "layers",
}


def draw_growth(points: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Writes the PNG of the points that the row's JSON has; times are ratios of medians to the trunk's own pass."""
    axes_of: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        axes_of.setdefault(point["axis"], []).append(point)
    down = -(-len(axes_of) // ACROSS)
    with plots.new_figure(3.1 * ACROSS, 2.7 * down) as figure:
        panels = plots.panels(figure, len(axes_of), ACROSS)
        for index, (panel, (axis, mine)) in enumerate(zip(panels, axes_of.items(), strict=True)):
            draw_axis(panel, axis, mine)
            if index % ACROSS == 0:
                panel.set_ylabel("time over the trunk's pass")
        handles, _ = panels[0].get_legend_handles_labels()
        plots.legend(figure, handles, len(handles))
        plots.write_png(figure, path)


def draw_axis(panel: Axes, axis: str, points: Sequence[Mapping[str, Any]]) -> None:
    """One panel: both ratios over the size that changes, with the quartiles of the rounds, and the trunk at 1."""
    values = [point["value"] for point in points]
    most = 1.0
    for name, (label, color, marker) in SERIES.items():
        ratios = [point[name]["median"] / point["trunk"]["median"] for point in points]
        spread = [
            [
                abs(quartile / point["trunk"]["median"] - ratio)
                for point, ratio in zip(points, ratios, strict=True)
                for quartile in [point[name]["quartiles"][side]]
            ]
            for side in (0, 1)
        ]
        panel.errorbar(values, ratios, yerr=spread, color=color, marker=marker, markersize=4, elinewidth=1, label=label)
        most = max(most, *ratios)
    panel.axhline(1, color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
    panel.set(title=f"Growth with {axis}", xlabel=LABELS.get(axis, axis))
    panel.set_ylim(0, 1.12 * most)
    room = 0.07 * (max(values) - min(values))  # that a label needs
    shown = [values[0]]
    for value in values[1:]:
        if value - shown[-1] >= room:
            shown.append(value)
    panel.set_xticks(shown, [str(value) for value in shown])
    panel.tick_params(axis="y", labelcolor=INK)
    panel.grid(axis="y")
