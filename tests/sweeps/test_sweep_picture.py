"""The plot of a sweep: which panels it has, and that every mark is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import memtok
from memtok.sweeps import Configuration, DataResult, Range, Space, SweepResult, Trial
from memtok.sweeps.picture import (
    LinePanel,
    ScatterPanel,
    asides,
    crosses,
    draw,
    draw_head,
    limits,
    panels_of,
    reach,
    titles_of,
)
from memtok.sweeps.trials import ranked
from memtok.training.settings import Plan, Settings, make_plan
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


@pytest.mark.parametrize(
    ("space", "kind", "count"),
    [
        ({"learning_rates": RATES, "memory": [1, 5, 20], "seeds": [0, 1], "regimes": ["head", "memory"]}, LinePanel, 1),
        ({"learning_rates": RATES, "memory": [1, 5], "queries": [1, 2], "weight_decays": [0, 0.1]}, LinePanel, 4),
        ({"learning_rates": [0.1], "weight_decays": [0, 0.1]}, LinePanel, 1),
        ({"learning_rates": [0.1], "memory": [1, 5]}, LinePanel, 1),
        ({"learning_rates": [0.1], "regimes": ["head"]}, LinePanel, 1),
        ({"learning_rates": [1.0], "regimes": ["head"]}, LinePanel, 1),
        (
            {"learning_rates": Range(1e-3, 1.0), "memory": Range(0, 20), "search": "random", "trials": 30},
            ScatterPanel,
            2,
        ),
    ],
)
def test_panels(tmp_path: Path, space: dict[str, Any], kind: type, count: int) -> None:
    made = result(tmp_path, **space)
    panels = panels_of(made.data[0])
    assert len(panels) == count
    assert all(isinstance(panel, kind) for panel in panels)
    if kind is LinePanel:  # each trial is in one panel
        held = [trial for panel in panels for trial in made.data[0].trials if panel.holds(trial)]  # type: ignore[union-attr]
        assert len(held) == len(made.data[0].trials)


@pytest.mark.parametrize(
    "space",
    [
        {"learning_rates": RATES, "memory": [1, 5], "seeds": [0, 1], "regimes": ["head", "memory"], "queries": [1, 2]},
        {"learning_rates": Range(1e-3, 1.0), "memory": Range(0, 20), "search": "random", "trials": 30},
        {"learning_rates": [1.0], "regimes": ["head"]},  # all diverged
        {"learning_rates": [1e-3, 1e30], "memory": [1, 5], "weight_decays": [0, 0.1]},
        {"learning_rates": Range(1e-3, 1e30), "memory": Range(0, 5), "search": "random", "trials": 20},
    ],
)
def test_draw(tmp_path: Path, space: dict[str, Any]) -> None:
    made = result(tmp_path, **space)
    draw(made, made.picture)
    pixels = imread(made.picture)
    assert pixels.shape[0] > 300
    assert pixels.std() > 0.02


def test_every_cross_is_seen(tmp_path: Path) -> None:
    """Those of one rate stand above each other, and below every dot; one far away does not squeeze the others."""
    rates = [1e-3, 1e-1, 1.0, 1e30]
    one = result(tmp_path, learning_rates=rates, memory=[0, 5], seeds=[0, 1], regimes=["memory", "head"]).data[0]
    placed = crosses(one.trials, "learning_rate", "memory")
    assert len(placed) == 12
    assert len({(x, row) for _, x, row in placed}) == len(placed)
    low, high = reach(one.trials, "learning_rate")
    assert (low, high) == pytest.approx((1e-3 / 30, 3.0))
    assert {x for _, x, _ in placed} == {1.0, high}
    bottom, top = limits(one, panels_of(one))
    rows = max(row for _, _, row in placed)
    assert one.choice is not None
    least = min(100 * setting.interval[0] for setting in one.choice.settings)
    assert bottom + (top - bottom) * (0.02 + 0.045 * rows) < least
    assert reach(one.trials, "memory") == (-float("inf"), float("inf"))


def test_dots_of_one_value_stand_beside_each_other_and_the_best_at_its_value(tmp_path: Path) -> None:
    space = {"learning_rates": Range(1e-3, 0.4), "memory": [1, 6], "search": "random", "trials": 20}
    trials = result(tmp_path, **space).data[0].trials
    found = asides(trials, "memory", 0.3)
    for cells in (1, 6):
        own = [
            (aside, round(100 * trial.last.top1, 6))
            for aside, trial in zip(found, trials, strict=True)
            if trial.configuration.memory == cells and trial.last
        ]
        assert own[0][0] == 0.0
        assert len(set(own)) == len(own) > 5


def test_a_folder_is_called_by_its_name() -> None:
    assert titles_of(["digits", "folder:/data/of/mine/photos"]) == ["digits", "photos"]
    assert titles_of(["folder:/a/photos", "folder:b/photos"]) == ["a/photos", "b/photos"]
    assert titles_of(["folder:."]) == ["."]


def test_the_head_to_beat_and_the_intervals_are_drawn(tmp_path: Path) -> None:
    one = result(tmp_path, learning_rates=[1e-3, 1e-2], memory=[1, 5], regimes=["head", "memory"]).data[0]
    assert one.choice is not None
    assert one.choice.head is not None
    axes = Figure().subplots()
    draw_head(axes, one)
    (line,) = axes.lines
    assert list(line.get_ydata()) == [100 * one.choice.head.top1] * 2
    (band,) = axes.patches
    low, high = (100 * end for end in one.choice.head.interval)
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((low, high))
    panels_of(one)[0].draw(axes, one)
    bars = [each.get_ydata() for each in axes.lines if len(each.get_xdata()) == 2 and len(set(each.get_xdata())) == 1]
    wanted = sorted(100 * end for setting in one.choice.settings for end in setting.interval)
    assert sorted(float(end) for bar in bars for end in bar) == pytest.approx(wanted)
