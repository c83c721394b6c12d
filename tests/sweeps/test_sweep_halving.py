"""Early stopping: losers are taken out of the model, survivors end as they would have without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import memtok
from memtok.sweeps.trials import ranked
from memtok.training.together import Together
from tests.sweeps.conftest import Quick
from tests.sweeps.test_sweep_run import Counted, Stop, Trained, same, winner_name

SPACE: dict[str, Any] = {"learning_rates": [0.02, 0.05, 1e-6, 1e-5], "memory": [0, 3]}


def test_survivors_end_as_without_it_and_later_steps_compute_only_them(
    quick: Quick, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, tuple[str, ...]]] = []
    step = Together.train_step

    def spy(self: Together, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append((self.step, tuple(task.name for task in self.model.tasks)))
        return step(self, images, labels)

    monkeypatch.setattr(Together, "train_step", spy)
    counted = Counted()
    result = quick(**SPACE, halving=2, keep_all=True, progress=counted)
    # Rungs at 1/8, 1/4 and 1/2 of 8 steps; the first lies in the warm-up of 5 steps at most, and so do the others here.
    assert counted.passes == [(8, 0, 8)]
    result = quick(**SPACE, halving=2, keep_all=True, steps=16, progress=counted, out=tmp_path / "halved")
    assert counted.passes[1:] == [(8, 0, 8), (4, 8, 16)]
    assert [len(names) for _, names in seen[8:]] == [8] * 8 + [4] * 8
    assert [number for number, _ in seen[8:]] == list(range(16))
    trials = result.data[0].trials
    assert [trial.state for trial in trials] == ["finished"] * 4 + ["stopped"] * 4
    assert set(seen[-1][1]) == {trial.configuration.name for trial in trials[:4]}
    assert [[look.step for look in trial.looks] for trial in (trials[0], trials[-1])] == [[8, 16], [8]]
    whole = quick(**SPACE, keep_all=True, steps=16, out=tmp_path / "whole")
    survivors, everyone = trained(tmp_path / "halved"), trained(tmp_path / "whole")
    assert survivors.keys() == {trial.configuration.name for trial in trials[:4]}
    for name, task in survivors.items():
        same(task, everyone[name])
    finals = {trial.configuration.name: trial.last for trial in whole.data[0].trials}
    for trial in trials[:4]:
        assert trial.last is not None
        other = finals[trial.configuration.name]
        assert other is not None
        assert trial.last.loss == pytest.approx(other.loss, rel=1e-3)


def test_the_outcome_does_not_depend_on_passes_or_kills(
    quick: Quick, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memtok.training.together.SAVE_SECONDS", 0.0)
    space = SPACE | {"halving": 2, "keep_all": True, "steps": 16}
    counted = Counted()
    split = quick(**space, together=3, out=tmp_path / "split", progress=counted)
    assert counted.passes == [(3, 0, 8), (3, 0, 8), (2, 0, 8), (3, 8, 16), (1, 8, 16)]
    for number, step in ((2, 4), (2, 11)):  # in the first stage, then in the second
        with pytest.raises(KeyboardInterrupt):
            quick(**space, together=4, progress=Stop(number, step))
    resumed = quick(**space, together=4)
    for one, other in zip(split.data[0].trials, resumed.data[0].trials, strict=True):
        assert (one.configuration, one.state) == (other.configuration, other.state)
    assert trained().keys() == trained(tmp_path / "split").keys()
    for name, task in trained().items():
        same(task, trained(tmp_path / "split")[name])


def test_diverged_ones_do_not_go_on(quick: Quick) -> None:
    counted = Counted()
    space: dict[str, Any] = {"learning_rates": [1e38, 0.9e38, 0.8e38, 0.02], "recipe": "paper", "steps": 16}
    result = quick(**space, halving=2, progress=counted)
    assert counted.passes == [(4, 0, 8), (1, 8, 16)]
    assert [trial.state for trial in result.data[0].trials] == ["finished"] + ["diverged"] * 3
    assert winner_name(result) == "memory-5-rate-0.02-decay-0-seed-0"
    assert ranked(result.data[0].trials) == list(result.data[0].trials)


def test_a_space_with_early_stopping_may_not_change(quick: Quick) -> None:
    quick(**SPACE, halving=2)
    with pytest.raises(memtok.MemtokError, match=r"space.memory \[0, 3\], found \[0\]"):
        quick(**(SPACE | {"memory": [0]}), halving=2)
