"""The plot of a sweep: which panels it has, and that every mark is drawn where it belongs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

import memtok
from memtok import plots
from memtok.sweeps import Configuration, DataResult, Range, Space, SweepResult, Trial
from memtok.sweeps.picture import draw
from memtok.sweeps.trials import ranked
from memtok.training.plan import Plan, make_plan
from memtok.training.settings import Settings
from memtok.training.state import Validation


def outcome(configuration: Configuration, number: int) -> Trial:
    """Some stop early, some diverge."""
    state = "diverged" if configuration.learning_rate > 0.5 else "stopped" if number % 5 == 4 else "finished"
    look = Validation(step=50 if state == "stopped" else 100, top1=0.5 + 0.4 * (number * 7 % 10) / 10, top5=1.0, loss=1)
    return Trial(
        configuration=configuration,
        state=state,
        looks=(look,),
        trained_parameters=1000,
        seconds=1.0,
        diverged_at=3 if state == "diverged" else None,
        data="digits",
        split="",
        fingerprint="",
    )


def plan() -> Plan:
    """Of a sweep of digits."""
    return make_plan(Settings(steps=100), "memory", memtok.open_data("digits"))


def result(tmp_path: Path, **space: Any) -> SweepResult:
    made = Space(**space)
    order = made.listed(0) or []
    trials = ranked(outcome(each, number) for number, each in enumerate(order))
    rest: dict[str, Any] = {"test": None, "best": None, "plan": plan(), "halving": 2}
    one = DataResult(data="digits", trials=tuple(trials), order=tuple(order), space=made, **rest)
    return SweepResult((one,), tmp_path)


RATES = [1e-3, 1e-2, 1e-1, 1.0]
DOT = 5.0  # points across


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Any]]:
    """Draws a sweep and returns its panels, as they would be written."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "write_png", lambda figure, path: figures.append(figure))

    def panels(made: SweepResult) -> list[Any]:
        draw(made, tmp_path / "unused.png")
        return [axes for axes in figures[-1].axes if axes.get_visible()]

    return panels


def points(axes: Any, marker: str, size: float | None = None) -> list[tuple[float, float, float]]:
    """x, y and the points to the right of it, of all single marks of a kind."""
    found = []
    for line in axes.lines:
        if line.get_marker() == marker and size in (None, line.get_markersize()) and len(line.get_xdata()) == 1:
            (x,), (y,) = line.get_data()
            moved = line.get_transform().transform((x, y)) - axes.transData.transform((x, y))
            found.append((float(x), float(y), round(float(moved[0]) * 72 / axes.figure.dpi, 3)))
    return found


GRID = {"learning_rates": RATES, "memory": [1, 5, 20], "seeds": [0, 1], "regimes": ["head", "memory"]}
SEARCH = {"learning_rates": Range(1e-3, 1.0), "memory": Range(0, 20), "search": "random", "trials": 30}


@pytest.mark.parametrize(
    ("space", "titles"),
    [
        (GRID, ["digits"]),
        (
            {"learning_rates": RATES, "memory": [1, 5], "queries": [1, 2], "weight_decays": [0, 0.1]},
            [f"digits, queries {queries}, weight decay {decay}" for queries in (1, 2) for decay in ("0", "0.1")],
        ),
        ({"learning_rates": [0.1], "weight_decays": [0, 0.1]}, ["digits"]),
        ({"learning_rates": [0.1], "memory": [1, 5]}, ["digits"]),
        ({"learning_rates": [0.1], "regimes": ["head"]}, ["digits"]),
        ({"learning_rates": [1.0], "regimes": ["head"]}, ["digits"]),  # all diverged
        (SEARCH, ["digits, by learning rate", "digits, by cells"]),
    ],
)
def test_panels(tmp_path: Path, drawn: Callable[..., list[Any]], space: dict[str, Any], titles: list[str]) -> None:
    """In a grid each trial is in one panel, in a search in all."""
    made = result(tmp_path, **space)
    panels = drawn(made)
    assert [axes.get_title(loc="left") for axes in panels] == titles
    for axes in panels:
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        assert all(left < x < right and low < y < high for x, y, _ in points(axes, "o"))
        assert all(left < x < right for x, _, _ in points(axes, "x"))
    marks = [len(points(axes, "o", DOT) + points(axes, "x")) for axes in panels]
    assert (sum(marks) if isinstance(space["learning_rates"], list) else marks[0]) == len(made.data[0].trials)


@pytest.mark.parametrize(
    "space",
    [
        {**GRID, "memory": [1, 5], "queries": [1, 2]},
        SEARCH,
        {"learning_rates": [1.0], "regimes": ["head"]},  # all diverged
        {"learning_rates": [1e-3, 1e30], "memory": [1, 5], "weight_decays": [0, 0.1]},
    ],
)
def test_the_file_is_a_picture_that_everything_fits_into(tmp_path: Path, space: dict[str, Any]) -> None:
    """The outermost pixels are paper all around."""
    made = result(tmp_path, **space)
    draw(made, made.picture)
    with Image.open(made.picture) as picture:
        assert picture.format == "PNG"
        grey = picture.convert("L")
    width, height = grey.size
    assert min(grey.size) > 300
    frame = [(0, 0, width, 2), (0, height - 2, width, height), (0, 0, 2, height), (width - 2, 0, width, height)]
    assert [grey.crop(edge).getextrema() for edge in frame] == [(255, 255)] * 4
    assert grey.getextrema()[0] < 100


def test_every_cross_is_seen(tmp_path: Path, drawn: Callable[..., list[Any]]) -> None:
    """Those of one rate stand above each other, and below every dot; one far away does not squeeze the others."""
    rates = [1e-3, 1e-1, 1.0, 1e30]
    made = result(tmp_path, learning_rates=rates, memory=[0, 5], seeds=[0, 1], regimes=["memory", "head"])
    (axes,) = drawn(made)
    crosses = points(axes, "x")
    assert len(set(crosses)) == len(crosses) == 12
    edge = 30 * 1e-1  # what trained, and a factor of 30
    assert sorted({x for x, _, _ in crosses}) == pytest.approx([1.0, edge])
    low, high = axes.get_ylim()
    bars = [end for line in axes.lines if len(set(line.get_xdata())) == 1 for end in line.get_ydata() if end > 1]
    assert low + (high - low) * max(y for _, y, _ in crosses) < min(bars)
    assert [text.get_text() for text in axes.texts if "1e+30" in text.get_text()] == ["1e+30 →"]


def test_dots_of_one_value_stand_beside_each_other_and_the_best_at_its_value(
    tmp_path: Path, drawn: Callable[..., list[Any]]
) -> None:
    space = {"learning_rates": Range(1e-3, 0.4), "memory": [1, 6], "search": "random", "trials": 20}
    _, by_cells = drawn(result(tmp_path, **space))
    dots = points(by_cells, "o", DOT)
    for cells in (1, 6):
        own = [(y, aside) for x, y, aside in dots if x == cells]
        assert own[0][1] == 0.0
        assert len(set(own)) == len(own) > 5


def test_a_folder_is_called_by_its_name(tmp_path: Path, drawn: Callable[..., list[Any]]) -> None:
    one = result(tmp_path, learning_rates=[0.1], regimes=["head"]).data[0]

    def titles(*data: str) -> list[str]:
        made = SweepResult(tuple(replace(one, data=name) for name in data), tmp_path)
        return [axes.get_title(loc="left") for axes in drawn(made)]

    assert titles("digits", "folder:/data/of/mine/photos") == ["digits", "photos"]
    assert titles("folder:/a/photos", "folder:b/photos") == ["a/photos", "b/photos"]
    assert titles("folder:.") == ["."]


def test_the_head_to_beat_and_the_intervals_are_drawn(tmp_path: Path, drawn: Callable[..., list[Any]]) -> None:
    made = result(tmp_path, learning_rates=[1e-3, 1e-2], memory=[1, 5], regimes=["head", "memory"])
    choice = made.data[0].choice
    assert choice is not None
    assert choice.head is not None
    (axes,) = drawn(made)
    across = [line.get_ydata() for line in axes.lines if list(line.get_xdata()) == [0, 1]]
    assert [list(values) for values in across] == [[100 * choice.head.top1] * 2]
    (band,) = axes.patches
    low, high = (100 * end for end in choice.head.interval)
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((low, high))
    bars = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 2 and len(set(line.get_xdata())) == 1]
    wanted = sorted(100 * end for setting in choice.settings for end in setting.interval)
    assert sorted(float(end) for bar in bars for end in bar) == pytest.approx(wanted)
    rings = points(axes, "o", 11)
    specials = [choice.chosen, *([] if choice.best is choice.chosen else [choice.best])]
    assert sorted(y for _, y, _ in rings) == pytest.approx(
        sorted(100 * each.trials[0].last.top1 for each in specials if each.trials[0].last)
    )
