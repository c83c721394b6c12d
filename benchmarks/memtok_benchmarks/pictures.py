"""The picture of the row `growth`, as PNG: a panel per axis, time over the trunk's.

Drawn by matplotlib without pyplot, so no window and no style of the caller is touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from memtok.files import atomic_write
from memtok.plots import PNG_INK, PNG_RC
from memtok.plots import PNG_MUTED as MUTED

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
    with matplotlib.rc_context(PNG_RC | {"ytick.labelcolor": PNG_INK}):
        down = math.ceil(len(axes_of) / ACROSS)
        figure = Figure(figsize=(3.1 * ACROSS, 2.7 * down), layout="constrained")
        FigureCanvasAgg(figure)
        panels = list(figure.subplots(down, ACROSS, squeeze=False).flat)
        for index, (panel, (axis, mine)) in enumerate(zip(panels, axes_of.items(), strict=False)):
            draw_axis(panel, axis, mine)
            if index % ACROSS == 0:
                panel.set_ylabel("time over the trunk's pass")
        for panel in panels[len(axes_of) :]:
            panel.axis("off")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), fontsize=8.5)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=160)


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
    panel.grid(axis="y")
