"""Early stopping: losers are taken out of the model, survivors end as they would have without it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import memtok
from memtok.sweeps.stages import as_of
from memtok.sweeps.trials import ranked
from memtok.training.state import Validation
from memtok.training.trainer import Trainer
from tests.sweeps.conftest import Quick
from tests.sweeps.test_sweep_run import Counted, Stop, Trained, same, trial, winner_name

SPACE: dict[str, Any] = {"learning_rates": [0.02, 0.05, 1e-6, 1e-5], "memory": [0, 3]}


@pytest.mark.twice
def test_survivors_end_as_without_it_and_later_steps_compute_only_them(
    quick: Quick, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, tuple[str, ...]]] = []
    step = Trainer.step

    def spy(self: Trainer, number: int, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append((number, tuple(task.name for task in self.tasks)))
        return step(self, number, images, labels)

    monkeypatch.setattr(Trainer, "step", spy)
    counted = Counted()
    result = quick(**SPACE, halving=2, keep_all=True, progress=counted)
    # All rungs of 8 steps lie in the warm-up of 5, and so do the first two of 16.
    assert counted.passes == [(8, 0, 8)]
    result = quick(**SPACE, halving=2, keep_all=True, steps=16, progress=counted, out=tmp_path / "halved")
    assert counted.passes[1:] == [(8, 0, 8), (4, 8, 16)]
    assert [len(names) for _, names in seen[8:]] == [8] * 8 + [4] * 8
    assert [number for number, _ in seen[8:]] == list(range(16))
    trials = result.data[0].trials
    assert [each.state for each in trials] == ["finished"] * 4 + ["stopped"] * 4
    assert set(seen[-1][1]) == {each.configuration.name for each in trials[:4]}
    assert [[look.step for look in each.looks] for each in (trials[0], trials[-1])] == [[8, 16], [8]]
    whole = quick(**SPACE, keep_all=True, steps=16, out=tmp_path / "whole")
    survivors, everyone = trained(tmp_path / "halved"), trained(tmp_path / "whole")
    assert survivors.keys() == {each.configuration.name for each in trials[:4]}
    for name, task in survivors.items():
        same(task, everyone[name])
    finals = {each.configuration.name: each.last for each in whole.data[0].trials}
    for one in trials[:4]:
        assert one.last is not None
        other = finals[one.configuration.name]
        assert other is not None
        assert one.last.loss == pytest.approx(other.loss, rel=1e-3)


@pytest.mark.twice
def test_the_outcome_does_not_depend_on_passes_or_kills(
    quick: Quick, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memtok.training.run.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("memtok.training.run.SAVE_SHARE", math.inf)
    space = SPACE | {"halving": 2, "keep_all": True, "steps": 16, "learning_rates": [0.02, 1e-6]}
    counted = Counted()
    split = quick(**space, together=1, out=tmp_path / "split", progress=counted)
    assert counted.passes == [(1, 0, 8)] * 4 + [(1, 8, 16)] * 2
    for number, step in ((2, 4), (2, 11)):  # in the first stage, then in the second
        with pytest.raises(KeyboardInterrupt):
            quick(**space, together=2, progress=Stop(number, step))
    resumed = quick(**space, together=2)
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
    assert [each.state for each in result.data[0].trials] == ["finished"] + ["diverged"] * 3
    assert winner_name(result) == "memory-5-rate-0.02-decay-0-seed-0"
    assert ranked(result.data[0].trials) == list(result.data[0].trials)


def test_a_space_with_early_stopping_may_not_change(quick: Quick) -> None:
    quick(**SPACE, halving=2)
    for change in ({"memory": [0]}, {"halving": None}):
        with pytest.raises(memtok.MemtokError) as caught:
            quick(**({**SPACE, "halving": 2} | change))
        assert caught.value.argument == next(iter(change))


def test_a_rung_is_judged_by_what_was_found_there() -> None:
    """Not by what came later: a configuration that went on and diverged then would give its place to a loser."""
    later = replace(
        trial((0.9, 0.2), 100, 0, "diverged", 16),
        looks=(Validation(step=8, top1=0.9, top5=1, loss=0.2), Validation(step=16, top1=0, top5=0, loss=0)),
    )
    loser = trial((0.5, 0.9), 100, 1, "stopped", 8)
    assert as_of(later, 8).state == "training"
    assert as_of(later, 16).state == "diverged"
    assert ranked([as_of(loser, 8), as_of(later, 8)])[0].configuration == later.configuration
    assert as_of(trial((0.0, 0.0), 100, 2, "diverged", 8), 8).state == "diverged"
