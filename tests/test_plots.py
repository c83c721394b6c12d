"""The style of charts: nothing outside is touched, and both themes can be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from memtok.plots import DARK, LIGHT, Theme, new_figure, panels, png_bytes, write_png


def drawn(theme: Theme) -> bytes:
    with new_figure(3, 2, theme) as figure:
        figure.subplots().plot([1, 2], [1, 2], label="a")
        return png_bytes(figure)


@pytest.mark.twice
def test_charts_are_the_same_every_time_and_leave_matplotlib_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    assert drawn(LIGHT) == drawn(LIGHT) != drawn(DARK)
    assert dict(matplotlib.rcParams) == before


def test_no_pyplot() -> None:
    code = "import sys, memtok.plots, memtok.pages; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2.1 defines it."""
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_and_series_contrast_with_the_paper(theme: Theme) -> None:
    """4.5 to 1 or more, as WCAG 2.1 asks for text (AA)."""
    for color in (theme.ink, theme.muted, theme.good, theme.bad, *theme.series):
        light, dark = sorted((luminance(color), luminance(theme.paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_panels_that_are_not_used_are_hidden(tmp_path: Path) -> None:
    with new_figure(4, 3) as figure:
        used = panels(figure, 4, 3)
        assert [axes.get_visible() for axes in figure.axes] == [True] * 4 + [False] * 2
        assert used == figure.axes[:4]
        write_png(figure, tmp_path / "chart.png", dpi=100)
    with Image.open(tmp_path / "chart.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (400, 300))
