"""Pictures of tables: files of a sensible size with the right marks at the right places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from memtok.errors import MemtokError
from memtok_experiments import pictures
from memtok_experiments.pictures import BeforeAfter, draw, draw_before_after
from memtok_experiments.records import Score
from memtok_experiments.table import make_table
from tests.experiments.records import grid, run


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, in place of files."""
    figures: list[Figure] = []
    monkeypatch.setattr(pictures, "write_png", lambda figure, path: figures.append(figure))
    return figures


def marks(axes: Any, marker: str) -> set[tuple[float, float]]:
    """Places of all marks of one kind, rounded."""
    lines = [line for line in axes.get_lines() if line.get_marker() == marker]
    return {
        (round(float(x), 2), round(float(y), 2))
        for line in lines
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }


def test_marks_are_where_the_figures_are(drawn: list[Figure]) -> None:
    runs = [
        run("full", test=Score(top1=0.9, images=100)),
        run("memory-1", test=Score(top1=0.8, images=100)),
        run("memory-1", seed=1, test=Score(top1=0.84, images=100)),
    ]
    draw(make_table(runs), "unused.png")
    (axes,) = drawn[0].axes
    assert marks(axes, "o") == {(90.0, 0), (82.0, -1)}  # means
    assert {x for x, _ in marks(axes, ".")} == {80.0, 84.0}  # seeds
    assert marks(axes, "D") == {(91.8, 0), (90.9, -1)}  # the paper
    assert marks(axes, "s") == {(64.08, -1)}  # the reproduction
    upright = [line for line in axes.get_lines() if line.get_linestyle() == "--" and len(line.get_xdata()) == 2]
    assert [set(line.get_xdata()) for line in upright] == [{90.0}]  # full fine-tuning, from top to bottom
    assert [label.get_text() for label in axes.get_yticklabels()] == ["full", "1 cell"]
    assert {text.get_text() for text in axes.texts} >= {"90.0", "82.0"}
    assert axes.get_title(loc="left") == "cifar100"


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_a_panel_per_row(rows: int, drawn: list[Figure]) -> None:
    records = [run(column, data=f"folder:{row}") for row in range(rows) for column in ("head", "memory-5")]
    draw(make_table(records), "unused.png")
    shown = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == [f"folder:{row}" for row in range(rows)]


def test_the_legend_names_only_what_is_there(drawn: list[Figure]) -> None:
    draw(make_table([run("head", data="mnist")]), "unused.png")
    draw(make_table(grid(seeds=2)), "unused.png")
    labels = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn]
    assert labels[0] == []
    assert labels[1][:3] == ["full fine-tuning", "with mask", "without mask"]
    assert labels[1][-2:] == ["paper (ViT-B/32)", "public reproduction (ViT-B/32)"]


def test_a_png_that_everything_fits_into(tmp_path: Path) -> None:
    """Nothing is cut off: the outermost pixels are paper all around."""
    draw(make_table(grid(seeds=2) + grid("sun397", seeds=2)), tmp_path / "table2.png")
    with Image.open(tmp_path / "table2.png") as picture:
        assert picture.format == "PNG"
        grey = picture.convert("L")
    width, height = grey.size
    assert 800 < width < 2400
    assert 600 < height < 2400
    edges = [(0, 0, width, 2), (0, height - 2, width, height), (0, 0, 2, height), (width - 2, 0, width, height)]
    assert all(grey.crop(edge).getextrema() == (255, 255) for edge in edges)
    assert [path.name for path in tmp_path.iterdir()] == ["table2.png"]


@pytest.mark.twice
def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        draw(make_table([run("head")]), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_before_and_after(drawn: list[Figure]) -> None:
    rows = [
        BeforeAfter(task="mnist", before=0.9, after_masked=0.9, before_unmasked=0.92, after_unmasked=0.2),
        BeforeAfter(task="digits", before=0.8, after_masked=0.8),
    ]
    draw_before_after(rows, "unused.png")
    (axes,) = drawn[0].axes
    assert sorted(round(bar.get_height(), 1) for bar in axes.patches) == [20.0, 80.0, 80.0, 90.0, 90.0, 92.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["mnist", "digits"]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        "alone, with mask",
        "together, with mask",
        "alone, without mask",
        "together, without mask",
    ]


def test_before_and_after_without_the_unmasked_bar(drawn: list[Figure]) -> None:
    draw_before_after([BeforeAfter(task="digits", before=1.0, after_masked=1.0)], "unused.png")
    assert len(drawn[0].axes[0].patches) == 2


def test_what_extends_stands_beside_the_same_without_extending(drawn: list[Figure]) -> None:
    rows = [
        BeforeAfter(task="digits", before=0.8, after_masked=0.8),
        BeforeAfter(task="mnist", before=0.9, after_masked=0.9, without_extending=0.7),
    ]
    draw_before_after(rows, "unused.png")
    (axes,) = drawn[0].axes
    bars = sorted((bar.get_x() + bar.get_width() / 2, round(bar.get_height())) for bar in axes.patches)
    assert [height for _, height in bars] == [80, 80, 70, 90, 90]
    assert sum(place for place, _ in bars[:2]) / 2 == pytest.approx(0)  # in the middle of their group
    assert sum(place for place, _ in bars[2:]) / 3 == pytest.approx(1)
    assert "without extending" in drawn[0].legends[0].get_texts()[0].get_text()


def test_nothing_to_draw_and_impossible_shares_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MemtokError, match="tested run"):
        draw(make_table([run("head", chosen=False, data="mnist")]), tmp_path / "a.png")
    with pytest.raises(MemtokError, match="task"):
        draw_before_after([], tmp_path / "a.png")
    with pytest.raises(MemtokError, match=r"after_masked of digits .* 80\.0"):
        BeforeAfter(task="digits", before=0.8, after_masked=80.0)
    assert list(tmp_path.iterdir()) == []
