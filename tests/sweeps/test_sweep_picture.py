"""The plot of a sweep: which panels it has, and that every mark is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from memtok.sweeps import Configuration, DataResult, Range, Space, SweepResult, Trial
from memtok.sweeps.picture import LinePanel, ScatterPanel, draw, panels_of
from memtok.sweeps.trials import ranked
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


def result(tmp_path: Path, **space: Any) -> SweepResult:
    made = Space(**space)
    order = made.listed(0) or []
    trials = ranked(outcome(each, number) for number, each in enumerate(order))
    rest: dict[str, Any] = {"test": None, "best": None, "plan": None, "halving": 2}
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
    ],
)
def test_draw(tmp_path: Path, space: dict[str, Any]) -> None:
    made = result(tmp_path, **space)
    draw(made, made.picture)
    pixels = imread(made.picture)
    assert pixels.shape[0] > 300
    assert pixels.std() > 0.02
