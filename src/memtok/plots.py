"""Charts as SVG text that stands inside an HTML page and takes its colours and its font.

Figures are drawn by matplotlib without pyplot, so no window, no registry of figures and no style of the caller is
touched. Colours are marks that are replaced by the page's CSS variables (`memtok.report.STYLE`): one picture is
readable on light and on dark paper. All shares are in [0, 1].
"""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

# What is drawn in the mark's colour gets the CSS value when the SVG is written. Colours that nothing else uses.
INK, MUTED, LINE, PAPER = "#010a01", "#010a02", "#010a03", "#010a04"
SERIES = ("#010b01", "#010b02", "#010b03", "#010b04", "#010b05")
CSS = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)", PAPER: "var(--paper)"} | {
    mark: f"var(--series-{number})" for number, mark in enumerate(SERIES, start=1)
}
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (7, 2, 1.5, 2)), (0, (3, 1.5)))

RC: Any = {  # matplotlib's own type lists every key
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "memtok",  # the same picture gives the same bytes
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
}

# Pictures in PNG have colours of their own, for they cannot follow the page that shows them.
PNG_INK, PNG_MUTED, PNG_LINE, PNG_PAPER = "#1a1d21", "#5b626b", "#d5d9de", "#ffffff"
PNG_RC: Any = RC | {
    "text.color": PNG_INK,
    "axes.edgecolor": PNG_LINE,
    "axes.labelcolor": PNG_MUTED,
    "axes.titlecolor": PNG_INK,
    "grid.color": PNG_LINE,
    "xtick.color": PNG_LINE,
    "ytick.color": PNG_LINE,
    "xtick.labelcolor": PNG_MUTED,
    "ytick.labelcolor": PNG_MUTED,
    "legend.labelcolor": PNG_INK,
    "figure.facecolor": PNG_PAPER,
    "axes.facecolor": PNG_PAPER,
}

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and values."""


def curves(losses: Mapping[str, Curve], accuracies: Mapping[str, Curve], *, name: str = "curves") -> str:
    """Training loss on the left, accuracy on validation images (shares) on the right, one line per label.

    name: what ids inside begin with; two charts of a page need two names.
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.4, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        for index, (label, (steps, values)) in enumerate(losses.items()):
            left.plot(steps, values, color=series(index), linestyle=dashes(index), label=label)
        for index, (label, (steps, values)) in enumerate(accuracies.items()):
            style = {"color": series(index), "linestyle": dashes(index), "label": label}
            right.plot(steps, [100 * value for value in values], marker="o", markersize=3.5, **style)
        left.set(title="Training loss", xlabel="step", ylim=(0, None))
        right.set(title="Accuracy on validation images, %", xlabel="step")
        top = max((value for _, values in accuracies.values() for value in values), default=1.0)
        low = min((value for _, values in accuracies.values() for value in values), default=0.0)
        right.set_ylim(max(0.0, 100 * low - 5), min(102.0, 100 * top + 5))
        for axes in (left, right):
            axes.grid(axis="y")
            axes.set_xlim(0, None)
        handles, labels = right.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower left", ncols=len(labels), handlelength=2, columnspacing=1, fontsize=8.5
        )
        return svg(figure, name)


def bars(labels: Sequence[str], shares: Sequence[float], ranges: Sequence[tuple[float, float]], title: str) -> str:
    """One horizontal bar per label with its value, and a whisker over its range (low, high); all are shares."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.4, 0.7 + 0.36 * len(labels)), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(labels))[::-1]
        values = 100 * np.asarray(shares)
        axes.barh(places, values, height=0.62, color=[series(index) for index in range(len(labels))])
        whiskers = np.abs(100 * np.asarray(ranges).T - values)  # (2, labels): to the left, to the right
        axes.errorbar(values, places, xerr=whiskers, fmt="none", color=INK, elinewidth=1.1, capsize=3)
        for place, value in zip(places, values, strict=True):
            axes.text(1, place, f"{value:.1f} %", va="center", ha="left", color=PAPER, fontweight="bold")
        axes.set_yticks(places, labels, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.set(title=title, xlim=(0, 100), xlabel="%")
        axes.spines["left"].set_visible(False)
        return svg(figure, "bars")


def mask(seen: NDArray[np.bool_], rows: Sequence[tuple[str, int]], columns: Sequence[tuple[str, int]]) -> str:
    """Who sees whom: `seen` (rows, columns) bool, drawn with the groups (label, how many) along both edges.

    A filled square in row i and column j: token i attends to token j. Rows take the colour of their group.
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.4, 4.4), layout="constrained")
        axes = figure.subplots()
        start = 0
        for index, (_, count) in enumerate(rows):
            for i in range(start, start + count):
                for j in np.flatnonzero(seen[i]):
                    color = MUTED if index == 0 else series(index - 1)
                    axes.add_patch(Rectangle((float(j) + 0.06, i + 0.1), 0.88, 0.8, facecolor=color, linewidth=0))
            start += count
        for edge in edges(rows)[1:-1]:
            axes.axhline(edge, color=LINE, linewidth=0.9)
        for edge in edges(columns)[1:-1]:
            axes.axvline(edge, color=LINE, linewidth=0.9)
        axes.set(xlim=(0, seen.shape[1]), ylim=(seen.shape[0], 0))
        axes.set_yticks(middles(rows), [label for label, _ in rows], color=INK)
        axes.set_xticks(middles(columns), [label for label, _ in columns], color=INK, rotation=55, ha="left")
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(True)
        return svg(figure, "mask")


def layer_shares(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Stacked bars per layer, one panel per key: panel -> part -> share in each layer. The parts add up to 1."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.4, 2.9), layout="constrained")
        everyone = list(np.atleast_1d(figure.subplots(1, len(panels), sharey=True)))
        for axes, (title, parts) in zip(everyone, panels.items(), strict=True):
            stack(axes, parts)
            axes.set(title=title, xlabel="layer", ylim=(0, 100))
        everyone[0].set_ylabel("share of the attention, %")
        handles, labels = everyone[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), handlelength=1.2)
        return svg(figure, "layers")


def stack(axes: Axes, parts: Mapping[str, Sequence[float]]) -> None:
    """Draws the parts on top of each other, a bar per layer, with the number where there is room for it."""
    below = np.zeros(len(next(iter(parts.values()))))
    layers = range(1, len(below) + 1)
    for index, (label, shares) in enumerate(parts.items()):
        height = 100 * np.asarray(shares)
        color = MUTED if index == 0 else series(index - 1)
        axes.bar(layers, height, bottom=below, width=0.8, color=color, edgecolor=PAPER, linewidth=0.8, label=label)
        for layer, bottom, size in zip(layers, below, height, strict=True):
            if size >= 8:
                axes.text(layer, bottom + size / 2, f"{size:.0f}", ha="center", va="center", color=PAPER, fontsize=8)
        below = below + height
    axes.set_xticks(layers, [str(layer) for layer in layers])


def series(index: int) -> str:
    """The colour of line or bar number `index`."""
    return SERIES[index % len(SERIES)]


def dashes(index: int) -> Any:
    """Its kind of line, so that it can be told apart without its colour."""
    return DASHES[index % len(DASHES)]


def edges(groups: Sequence[tuple[str, int]]) -> list[int]:
    """Where the groups begin and end."""
    return [0, *np.cumsum([count for _, count in groups]).tolist()]


def middles(groups: Sequence[tuple[str, int]]) -> list[float]:
    """The middle of each group."""
    found = edges(groups)
    return [(start + end) / 2 for start, end in itertools.pairwise(found)]


def svg(figure: Figure, name: str) -> str:
    """A figure as an SVG element: ids of its own, colours and font of the page, as wide as there is room."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[\d.]+pt" height="[\d.]+pt"', r"\1", text, count=1)
    text = re.sub(r'id="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", text)
    # matplotlib places text by its own font; the page's is near enough, and what must line up is anchored.
    text = re.sub(r"font: (?:(\w+) )?([\d.]+)px [^;\"]*", font, text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for mark, value in CSS.items():
        text = text.replace(mark, value)
    return text.strip()


def font(match: re.Match[str]) -> str:
    """The CSS of a text without its family."""
    weight, size = match.groups()
    return f"font-size: {size}px" + (f"; font-weight: {weight}" if weight else "")


def png(pixels: NDArray[np.uint8] | Image.Image, size: int) -> str:
    """A `data:` address of a picture, (height, width) or (height, width, 3), at `size` px without smoothing."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    image.resize((size, size), Image.Resampling.NEAREST).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def heat_map(heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(rows, columns, 3): a heat map by itself, from white for 0 to dark blue for its largest value."""
    color = matplotlib.colormaps["Blues"](heat / max(float(heat.max()), 1e-12))[..., :3]
    pixels: NDArray[np.uint8] = np.rint(255 * color).astype(np.uint8)
    return pixels
