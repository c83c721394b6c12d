"""Draws docs/images/overview.png: `python docs/images/overview.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE = Path(__file__).resolve().parent
INK, FROZEN, PAPER = "#22303c", "#dfe6ec", "#ffffff"
TASKS = (("pets", "#e07a5f", 3), ("birds", "#3d8a6e", 2), ("breeds, extends pets", "#4f6db8", 2))
LAYERS = ("layer 1", "layer 2", "layer L")
ROWS = (1.55, 2.75, 4.35)


def box(
    axes: Axes, x: float, y: float, width: float, height: float, fill: str, text: str = "", **style: object
) -> None:
    """A rounded box around a text."""
    edge = style.pop("edge", INK)
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.09", facecolor=fill, edgecolor=edge, lw=1.1
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", **({"fontsize": 10, "color": INK} | style))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK, **style: object) -> None:
    """An arrow from one point to another."""
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=11, color=color, shrinkA=0, shrinkB=0, **({"lw": 1.2} | style)
        )
    )


def draw() -> Figure:
    """The trunk on the left, the streams of three tasks on the right."""
    figure, axes = plt.subplots(figsize=(11, 5.6), dpi=130)
    axes.set_xlim(0, 11)
    axes.set_ylim(-0.15, 6.25)
    axes.axis("off")
    box(axes, 0.3, 0.35, 3.0, 0.6, PAPER, "image tokens + base class token", fontsize=8.3)
    for name, y in zip(LAYERS, ROWS, strict=True):
        box(axes, 0.3, y, 3.0, 0.75, FROZEN, f"{name}   (frozen)")
    for low, high in ((0.95, 1.55), (2.30, 2.75), (5.10, 5.55)):
        arrow(axes, (1.8, low), (1.8, high))
    axes.text(1.8, 3.93, "...", ha="center", va="center", fontsize=14, color=INK)
    box(axes, 0.3, 5.55, 3.0, 0.55, PAPER, "base output, bitwise unchanged", fontsize=8.3)

    left = 4.9
    for index, (name, color, cells) in enumerate(TASKS):
        x = left + index * 2.05
        box(axes, x, 0.35, 1.0, 0.6, color, "class\ntoken", color="white", edge=color, fontsize=8.5)
        for y in ROWS:
            box(axes, x, y + 0.1, 1.0, 0.55, PAPER, "same\nweights", edge=color, fontsize=7.5)
            for cell in range(cells):
                box(axes, x + 1.17 + cell * 0.2, y + 0.24, 0.1, 0.27, color, edge=color)
            arrow(axes, (x + 1.15, y + 0.375), (x + 1.03, y + 0.375), color)
        for low, high in ((0.97, 1.62), (2.23, 2.82), (5.03, 5.52)):
            arrow(axes, (x + 0.5, low), (x + 0.5, high), color)
        axes.text(x + 0.5, 3.93, "...", ha="center", va="center", fontsize=14, color=color)
        box(axes, x - 0.1, 5.55, 1.75, 0.55, color, name, color="white", edge=color, fontsize=8.3)
    for y in ROWS:
        axes.plot(
            [3.34, 3.55, 3.55, left + 5.1], [y + 0.5, y + 0.5, y + 0.86, y + 0.86], color=INK, lw=1.1, ls=(0, (4, 3))
        )
        for index in range(len(TASKS)):
            x = left + index * 2.05 + 0.25
            arrow(axes, (x, y + 0.86), (x, y + 0.68), lw=1.1)
        axes.text(4.25, y + 0.94, "keys and values", ha="center", va="bottom", fontsize=8.5, color=INK)
        first, last = left + 1.75, left + 2 * 2.05 - 0.03
        axes.annotate(
            "",
            (last, y + 0.2),
            (first - 0.2, y + 0.2),
            arrowprops={"arrowstyle": "-|>", "color": TASKS[0][1], "lw": 1.1, "connectionstyle": "arc3,rad=0.22"},
        )
    axes.text(
        left + 3.0,
        0.02,
        "trained: class tokens, memory cells (small bars) and heads; nothing else",
        ha="center",
        fontsize=9,
        color=INK,
    )
    return figure


if __name__ == "__main__":
    draw().savefig(HERE / "overview.png", bbox_inches="tight", facecolor="white")
