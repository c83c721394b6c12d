"""The style of every chart and what they are made with: figures of matplotlib without pyplot, written as PNG.

No window is opened and no style of the caller is touched. Charts in a file are drawn in `LIGHT`; a page
(`memtok.pages`) shows each chart in the theme of its reader, `LIGHT` or `DARK`, and takes its own colours from here.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from memtok.errors import printable
from memtok.files import atomic_write


@dataclass(frozen=True)
class Theme:
    """Colours: text, text of less weight, lines, paper, boxes, verdicts, and one per series."""

    ink: str
    muted: str
    line: str
    paper: str
    tint: str
    good: str
    bad: str
    series: tuple[str, ...]


LIGHT = Theme(
    ink="#1d2125",
    muted="#5c666f",
    line="#d5d9dc",
    paper="#ffffff",
    tint="#f1f3f3",
    good="#1b7a3d",
    bad="#b3261e",
    series=("#2f6fb2", "#b8560f", "#1a7d65", "#9a4f9c", "#8a6d00", "#c02a55"),
)
DARK = Theme(
    ink="#e4e7e9",
    muted="#9aa5ae",
    line="#3a4148",
    paper="#14171a",
    tint="#1e2327",
    good="#6bcf8e",
    bad="#ff8a80",
    series=("#7fb2ea", "#f0a063", "#63c9af", "#d49ad6", "#d8bd55", "#f48aa6"),
)
INK, MUTED, LINE, PAPER = LIGHT.ink, LIGHT.muted, LIGHT.line, LIGHT.paper
DPI = 160
DRAWING = Lock()  # matplotlib has one set of settings per process, and runs in several threads may end at once


def style(theme: Theme) -> Any:  # matplotlib's own type lists every key
    """matplotlib's settings."""
    return {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": theme.ink,
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=theme.series),
        "grid.color": theme.line,
        "grid.linewidth": 0.6,
        "xtick.color": theme.line,
        "ytick.color": theme.line,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "legend.frameon": False,
        "legend.labelcolor": theme.ink,
        "lines.linewidth": 1.8,
    }


@contextmanager
def new_figure(width: float, height: float, theme: Theme = LIGHT) -> Iterator[Figure]:
    """A figure in inches, to be drawn and written inside the block."""
    with DRAWING, matplotlib.rc_context(style(theme)):
        yield Figure(figsize=(width, height), layout="constrained")


def panels(figure: Figure, count: int, across: int, **options: Any) -> list[Axes]:
    """`count` axes in rows of `across`, from the top left; options: of `Figure.subplots`."""
    axes: list[Axes] = figure.subplots(-(-count // across), across, squeeze=False, **options).ravel().tolist()
    for unused in axes[count:]:
        unused.set_visible(False)
    return axes[:count]


def legend(figure: Figure, handles: Sequence[Any], columns: int, **options: Any) -> None:
    """A legend below all panels; every handle has its label."""
    style = {"loc": "outside lower left", "ncols": columns, "fontsize": 8.5, **options}
    figure.legend(handles=list(handles), **style)


def title(axes: Axes, text: str, **options: Any) -> None:
    """A title with names from outside in it: no control characters, and a `$` is no formula."""
    axes.set_title(printable(text), parse_math=False, **options)


def png_bytes(figure: Figure, dpi: float = DPI) -> bytes:
    """The figure as a PNG; the same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def write_png(figure: Figure, path: str | Path, dpi: float = DPI) -> None:
    """Writes `png_bytes` to a file, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(png_bytes(figure, dpi))
