"""A run that diverges stops by name, and what was good before stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import memtok
from memtok.data import DataSource
from memtok.errors import MemtokError
from memtok.training.trainer import Trainer
from tests.training.helpers import fingerprint, new_task, quick


def poison(monkeypatch: pytest.MonkeyPatch, at: int, loss: float, norm: float) -> None:
    """Step `at`, counted from 1, reports these numbers and breaks the parameters."""
    honest = Trainer.step

    def step(self: Trainer, number: int, images: Tensor, labels: Tensor) -> Tensor:
        told = honest(self, number, images, labels)
        if number + 1 < at:
            return told
        with torch.no_grad():
            next(self.tasks[0].parameters()).fill_(float("nan"))
        return torch.tensor([[loss, norm]])

    monkeypatch.setattr(Trainer, "step", step)


@pytest.mark.parametrize(
    ("loss", "norm", "words"),
    [(float("nan"), 1.0, "finite loss, found nan"), (1.0, float("inf"), "finite gradient norm, found inf")],
)
def test_step_rate_and_advice_are_named(
    backbone: memtok.Backbone,
    data: DataSource,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    loss: float,
    norm: float,
    words: str,
) -> None:
    poison(monkeypatch, 7, loss, norm)
    task = new_task(backbone, data)
    with pytest.raises(MemtokError) as caught:
        quick(task, data, out=out, steps=10, log_every=5, validate_every=5, learning_rate=0.02)
    text = str(caught.value)
    assert words in text
    assert "at step 7 with learning rate 0.0181;" in text  # 5 steps of warm-up, then the second of 5 of cosine
    assert "try learning_rate=0.002" in text
    assert "the state of step 5 stays" in text
    assert "\n" not in text
    # The task file holds the last good state, and so does the task.
    stored = load_file(out)
    assert all(bool(value.isfinite().all()) for value in stored.values())
    assert torch.equal(task.memory, stored["memory"])
    lines = (out.with_suffix(".run") / "metrics.jsonl").read_text()
    assert "NaN" not in lines
    assert "Infinity" not in lines
    state = load_file(out.with_suffix(".run") / "state.safetensors")
    assert all(bool(value.isfinite().all()) for value in state.values())


def test_without_a_state_the_task_is_as_before(
    backbone: memtok.Backbone, data: DataSource, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 2, float("inf"), 1.0)
    task = new_task(backbone, data)
    before = fingerprint(task)
    with pytest.raises(MemtokError, match=r"at step 2 .*the task is as it was before"):
        quick(task, data)
    assert fingerprint(task) == before
    with pytest.raises(MemtokError, match="the task is as it was before"):
        quick(task, data, out=out)
    assert not out.exists()


def test_parameters_are_looked_at_before_they_are_saved(
    backbone: memtok.Backbone, data: DataSource, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The loss of a step is that before its update; an update that breaks the parameters shows in them first.
    poison(monkeypatch, 3, 1.0, 1.0)
    with pytest.raises(MemtokError, match="expected a finite class_tokens, found nan at step 3"):
        quick(new_task(backbone, data), data, out=out, save_every=1)
    state: dict[str, Any] = load_file(out.with_suffix(".run") / "state.safetensors")
    assert all(bool(value.isfinite().all()) for value in state.values())


def test_a_rate_that_is_far_too_high_ends_in_the_message(backbone: memtok.Backbone, data: DataSource) -> None:
    with pytest.raises(MemtokError, match=r"expected a finite .* try learning_rate=1e\+36"):
        quick(new_task(backbone, data), data, learning_rate=1e37, steps=40)
