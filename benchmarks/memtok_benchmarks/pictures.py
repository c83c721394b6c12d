"""The chart of the row `growth`, as PNG: a panel per axis, time over that of the trunk's pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from memtok.plots import LIGHT, legend, new_figure, panels, write_png

SERIES = {"training": ("training step", LIGHT.series[0], "o"), "inference": ("inference", LIGHT.series[1], "s")}
ACROSS = 3
LABELS = {
    "tasks": "tasks, each of one class token",
    "cells": "memory cells per layer",
    "batch": "images per batch",
    "image size": "image size, px",
    "depth": "layers",
}


def draw_growth(points: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Writes the PNG of the points in the row's JSON; times are ratios of medians to the trunk's own pass."""
    axes_of: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        axes_of.setdefault(point["axis"], []).append(point)
    down = -(-len(axes_of) // ACROSS)
    with new_figure(3.1 * ACROSS, 2.7 * down) as figure:
        shown = panels(figure, len(axes_of), ACROSS)
        for index, (panel, (axis, mine)) in enumerate(zip(shown, axes_of.items(), strict=True)):
            draw_axis(panel, axis, mine)
            if index % ACROSS == 0:
                panel.set_ylabel("time over the trunk's pass")
        handles, _ = shown[0].get_legend_handles_labels()
        legend(figure, handles, len(handles))
        write_png(figure, path)


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
    panel.axhline(1, color=LIGHT.muted, linewidth=0.8, linestyle=(0, (3, 2)))
    panel.set(title=f"Growth with {axis}", xlabel=LABELS.get(axis, axis))
    panel.set_ylim(0, 1.12 * most)
    room = 0.07 * (max(values) - min(values))  # that a label needs
    ticks = [values[0]]
    for value in values[1:]:
        if value - ticks[-1] >= room:
            ticks.append(value)
    panel.set_xticks(ticks, [str(value) for value in ticks])
    panel.grid(axis="y")
