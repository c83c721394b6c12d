"""Draws the pictures of docs/method.md: `python docs/images/method.py`.

layer.png, masks.png and variants.png, beside this file. The masks are computed by `memtok.attention_mask`, not drawn
by hand.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer

import memtok

HERE = Path(__file__).resolve().parent
INK, MUTED, FROZEN, PAPER, IMAGE = "#22303c", "#6b7a88", "#dfe6ec", "#ffffff", "#aab8c4"
PETS, BIRDS, BREEDS = "#e07a5f", "#3d8a6e", "#4f6db8"
COLORS = {"pets": PETS, "birds": BIRDS, "breeds": BREEDS}


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str = "", **style: object) -> None:
    """A rounded box with a text; x and y are its lower left corner."""
    fill, edge = style.pop("fill", PAPER), style.pop("edge", INK)
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.1", facecolor=fill, edgecolor=edge, lw=1.2
        )
    )
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", **({"fontsize": 10, "color": INK} | style))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK, **style: object) -> None:
    """A straight arrow, or a bent one with connectionstyle=."""
    shape = {"arrowstyle": "-|>", "mutation_scale": 11, "shrinkA": 0, "shrinkB": 0, "lw": 1.3} | style
    axes.add_patch(FancyArrowPatch(start, end, color=color, **shape))


def path(axes: Axes, points: list[tuple[float, float]], color: str = INK) -> None:
    """A line through points that ends in an arrow."""
    xs, ys = zip(*points[:-1], strict=True)
    axes.plot(xs, ys, color=color, lw=1.3, solid_joinstyle="round")
    arrow(axes, points[-2], points[-1], color)


def tokens(axes: Axes, y: float, left: float = 1.2) -> None:
    """A row of tokens: the base class token, patches, and the class token of a task."""
    for index in range(6):
        fill = {0: INK, 5: PETS}.get(index, IMAGE)
        axes.add_patch(Rectangle((left + 0.55 * index, y), 0.38, 0.38, facecolor=fill, edgecolor="none"))


def cells(axes: Axes, x: float, y: float, color: str, count: int = 3, height: float = 0.38) -> None:
    """Memory cells, as small bars."""
    for index in range(count):
        axes.add_patch(
            FancyBboxPatch(
                (x + 0.27 * index, y),
                0.13,
                height,
                boxstyle="round,pad=0,rounding_size=0.06",
                facecolor=color,
                edgecolor="none",
            )
        )


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty sheet whose units are the same both ways."""
    figure, axes = plt.subplots(figsize=(width * 0.9, height * 0.9), dpi=130)
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return figure, axes


def draw_layer() -> Figure:
    """One layer: where memory joins, what it passes through, and where it ends."""
    figure, axes = canvas(12, 9.2)
    note = {"fontsize": 9.5, "color": INK, "va": "center"}
    column, side = 2.77, 5.43  # the middle of the tokens, and of the memory

    tokens(axes, 0.75)
    cells(axes, 5.1, 0.75, PETS)
    axes.text(column, 0.42, "tokens $z_l$", ha="center", **note)
    axes.text(side, 0.42, "memory $M_l$", ha="center", **note)
    axes.text(6.6, 0.94, "this layer's own cells, drawn from N(0, 0.02)\nand trained; as wide as a token", **note)

    box(axes, 0.95, 1.75, 5.1, 0.55, "LayerNorm (frozen)", fill=FROZEN)
    axes.text(6.6, 2.02, "memory joins before the norm and passes through it", **note)
    arrow(axes, (column, 1.2), (column, 1.75))
    arrow(axes, (side, 1.2), (side, 1.75), PETS)

    box(axes, 0.95, 2.95, 5.1, 1.25, "", fill=FROZEN)
    axes.text(3.5, 3.92, "attention (frozen)", ha="center", **note)
    box(axes, 1.15, 3.1, 1.45, 0.5, "queries", fontsize=9)
    box(axes, 2.8, 3.1, 3.05, 0.5, "keys and values", fontsize=9)
    arrow(axes, (1.87, 2.3), (1.87, 3.1))
    arrow(axes, (3.5, 2.3), (3.5, 3.1))
    arrow(axes, (side, 2.3), (side, 3.1), PETS)
    axes.text(6.6, 3.58, "tokens attend under the mask of Table 1; memory\nhas keys and values, but no queries", **note)

    axes.plot([column, column], [4.2, 4.65], color=INK, lw=1.3)
    axes.plot([side, side], [4.2, 4.5], color=PETS, lw=1.3)
    axes.plot([side - 0.22, side + 0.22], [4.5, 4.5], color=PETS, lw=2.6)
    axes.text(6.6, 4.6, "the rows of the tokens go on; memory is dropped", **note)

    plus = {"ha": "center", "va": "center", "fontsize": 13, "color": INK}
    for y in (4.98, 7.3):
        axes.add_patch(plt.Circle((column, y), 0.17, facecolor=PAPER, edgecolor=INK, lw=1.2))
        axes.text(column, y - 0.01, "+", **plus)
    arrow(axes, (column, 4.6), (column, 4.81))
    path(axes, [(column, 1.45), (0.5, 1.45), (0.5, 4.98), (column - 0.17, 4.98)], MUTED)
    axes.text(0.33, 3.2, "residual", rotation=90, ha="center", va="center", fontsize=9, color=MUTED)

    box(axes, 1.2, 5.45, 3.15, 0.5, "LayerNorm (frozen)", fill=FROZEN)
    box(axes, 1.2, 6.3, 3.15, 0.5, "MLP (frozen)", fill=FROZEN)
    for low, high in ((5.15, 5.45), (5.95, 6.3), (6.8, 7.13), (7.47, 7.95)):
        arrow(axes, (column, low), (column, high))
    path(axes, [(column, 5.28), (0.5, 5.28), (0.5, 7.3), (column - 0.17, 7.3)], MUTED)
    axes.text(0.33, 6.3, "residual", rotation=90, ha="center", va="center", fontsize=9, color=MUTED)
    axes.text(6.6, 6.3, "memory never reaches the MLP", **note)

    tokens(axes, 7.98)
    cells(axes, 5.1, 7.98, PETS)
    axes.text(column, 8.7, "tokens $z_{l+1}$", ha="center", **note)
    axes.text(side, 8.7, "memory $M_{l+1}$", ha="center", **note)
    axes.text(6.6, 8.17, "the next layer brings cells of its own", **note)

    legend = ((INK, "base class token"), (IMAGE, "patches"), (PETS, "class token of the task"))
    x = 6.6
    for color, label in legend:
        axes.add_patch(Rectangle((x, 0.05), 0.24, 0.24, facecolor=color, edgecolor="none"))
        axes.text(x + 0.34, 0.17, label, fontsize=8.5, color=MUTED, va="center")
        x += 0.62 + 0.098 * len(label)
    return figure


def tasks_of(extended: bool) -> list[memtok.Task]:
    """Three tasks beside a tiny backbone; with `extended`, `breeds` extends `pets`."""
    backbone = memtok.load_backbone(tiny_vit())
    made: dict[str, memtok.Task] = {}
    for name, memory in (("pets", 3), ("birds", 2), ("breeds", 2)):
        extends = [made["pets"]] if extended and name == "breeds" else []
        made[name] = memtok.Task.create(backbone, name=name, classes=["a"], memory=memory, extends=extends, seed=0)
    return list(made.values())


def tiny_vit() -> VisionTransformer:
    """A backbone for the sake of its tasks' shapes."""
    vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=1, num_classes=0)
    vit.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return vit


def draw_masks() -> Figure:
    """Table 1 as matrices: concatenation, and extension of one of the tasks."""
    figure, both = plt.subplots(1, 2, figsize=(12.4, 5.3), dpi=130, layout="constrained")
    for axes, extended in zip(both, (False, True), strict=True):
        tasks = tasks_of(extended)
        draw_mask(axes, memtok.attention_mask(5, tasks).numpy(), tasks)
        title = "extension: breeds also attends to pets" if extended else "concatenation: each attends to its own only"
        axes.set_title(title, fontsize=12, color=INK, loc="left", pad=8)
    both[0].set_ylabel("query: attends", fontsize=10, color=MUTED)
    return figure


def draw_mask(axes: Axes, seen: NDArray[np.bool_], tasks: list[memtok.Task]) -> None:
    """A filled square in row i, column j: token i sees token j. It has the colour of what is seen."""
    owners = [INK] + [IMAGE] * 4 + [COLORS[task.name] for task in tasks]
    owners += [COLORS[task.name] for task in tasks for _ in range(task.cells)]
    for i, row in enumerate(seen):
        for j, sees in enumerate(row):
            fill = owners[j] if sees else "#f4f6f8"
            axes.add_patch(Rectangle((j + 0.05, i + 0.05), 0.9, 0.9, facecolor=fill, edgecolor="none"))
    height, width = seen.shape
    for edge in (1, 5, 8):
        axes.axvline(edge, color=INK, lw=0.9)
        if edge < height:
            axes.axhline(edge, color=INK, lw=0.9)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.set_yticks(
        [0.5, 3, 5.5, 6.5, 7.5], ["base class token", "patches", *(f"class token, {t.name}" for t in tasks)]
    )
    start, places, labels = 8, [0.5, 3.0, 6.5], ["base", "patches", "class tokens"]
    for task in tasks:
        places.append(start + task.cells / 2)
        labels.append(f"memory,\n{task.name}")
        start += task.cells
    axes.set_xticks(places, labels, fontsize=8.5)
    axes.xaxis.tick_bottom()
    axes.set_xlabel("key: attended to", fontsize=10, color=MUTED)
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_color(INK)


def draw_variants() -> Figure:
    """Three layers of each variant: what happens to the memory between them, and who sees it."""
    figure, axes = canvas(16.2, 6.2)
    panels = (
        ("memory", "new cells in every layer;\nonly the task attends to them"),
        ("memory-shared", "new cells in every layer;\nevery token attends to them"),
        ("memory-propagated", "cells enter once and pass\nthrough as ordinary tokens"),
        ("memory-additive", "the same, and every layer\nadds a learned update"),
    )
    for index, (name, words) in enumerate(panels):
        draw_variant(axes, 0.3 + 3.9 * index, name)
        axes.text(1.9 + 3.9 * index, 5.85, name, ha="center", fontsize=11.5, color=INK, family="monospace")
        axes.text(1.9 + 3.9 * index, 0.35, words, ha="center", va="center", fontsize=9.5, color=INK)
    return figure


def draw_variant(axes: Axes, left: float, name: str) -> None:
    """One panel. Image tokens are a grey stream, the class token and its memory have the task's colour."""
    layers = (1.75, 3.05, 4.35)
    masked, travels = name == "memory", name in ("memory-propagated", "memory-additive")
    image, own, memory = left + 0.45, left + 1.4, left + 2.2
    for y in layers:
        box(axes, left + 0.1, y, 1.75 if not travels else 2.9, 0.62, "", fill=FROZEN)
        if not travels:
            cells(axes, memory, y + 0.12, PETS)
            arrow(axes, (memory - 0.06, y + 0.31), (left + 1.87, y + 0.31), PETS, mutation_scale=9)
        if masked:  # the image does not see the task
            axes.plot([left + 0.95, left + 0.95], [y + 0.06, y + 0.56], color=INK, lw=1.1, ls=(0, (2, 2)))
            arrow(axes, (left + 0.72, y + 0.31), (left + 1.22, y + 0.31), MUTED, mutation_scale=8, lw=1.1)
        else:
            arrow(
                axes,
                (left + 0.7, y + 0.31),
                (left + 1.18, y + 0.31),
                MUTED,
                mutation_scale=8,
                lw=1.1,
                arrowstyle="<|-|>",
            )
        if travels:
            arrow(
                axes,
                (own + 0.28, y + 0.31),
                (memory, y + 0.31),
                MUTED,
                mutation_scale=8,
                lw=1.1,
                arrowstyle="<|-|>",
            )
    stops = [1.3, *(y for y in layers), 5.35]
    for low, high in itertools.pairwise(stops):
        start = low if low == 1.3 else low + 0.62
        arrow(axes, (image, start), (image, high), MUTED)
        arrow(axes, (own, start), (own, high), PETS)
        if travels and high != 5.35:
            arrow(axes, (memory + 0.33, start), (memory + 0.33, high), PETS)
        if name == "memory-additive" and low != 1.3 and high != 5.35:
            plus = (start + high) / 2 - 0.05
            axes.add_patch(plt.Circle((memory + 0.33, plus), 0.13, facecolor=PAPER, edgecolor=PETS, lw=1.2))
            axes.text(memory + 0.33, plus - 0.01, "+", ha="center", va="center", fontsize=9, color=PETS)
            cells(axes, memory + 0.82, plus - 0.16, PETS, height=0.32)
            arrow(axes, (memory + 0.76, plus), (memory + 0.47, plus), PETS, mutation_scale=8)
    for offset in (-0.24, 0, 0.24):
        axes.add_patch(Rectangle((image + offset - 0.09, 1.02), 0.18, 0.24, facecolor=IMAGE, edgecolor="none"))
    axes.add_patch(Rectangle((own - 0.12, 1.02), 0.24, 0.24, facecolor=PETS, edgecolor="none"))
    if travels:
        cells(axes, memory, 0.95, PETS, height=0.33)


def main() -> None:
    """Writes the three pictures."""
    for name, draw in (("layer", draw_layer), ("masks", draw_masks), ("variants", draw_variants)):
        draw().savefig(HERE / f"{name}.png", bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main()
