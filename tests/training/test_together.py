"""Tasks that are trained together end as they do alone, whatever the others do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import memtok
from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.training import train, train_together
from memtok.training.state import RunState, joined, read_run
from tests.training.helpers import Recorder, fingerprint, new_task

SHARED: dict[str, Any] = {
    "steps": 8,
    "batch_size": 16,
    "device": "cpu",
    "workers": 0,
    "augment": "none",
    "log_every": 2,
}
CONFIGURATIONS: list[dict[str, Any]] = [
    {"memory": 0},
    {"memory": 3},
    {"memory": 3, "seed": 1},
    {"memory": 1, "queries": 2},
    {"memory": 2, "adapter_rank": 2},
    {"regime": "head", "memory": None},
]
RATES = [0.02, 0.05, 0.01, 0.02, 0.03, 0.1]
DECAYS = [0.0, 0.1, 0.01, 0.0, 0.2, 0.05]


def fresh(backbone: Backbone, data: DataSource) -> list[memtok.Task]:
    """A new task for every configuration."""
    return [new_task(backbone, data, name=f"task-{n}", **more) for n, more in enumerate(CONFIGURATIONS)]


@pytest.mark.twice
@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_each_task_ends_as_it_does_alone(backbone: Backbone, data: DataSource, recipe: str) -> None:
    before = fingerprint(backbone)
    together = fresh(backbone, data)
    results = train_together(together, data, learning_rates=RATES, weight_decays=DECAYS, recipe=recipe, **SHARED)
    assert fingerprint(backbone) == before
    for index, alone in enumerate(fresh(backbone, data)):
        single = train(
            alone,
            data,
            recipe=recipe,
            learning_rate=RATES[index],
            weight_decay=DECAYS[index],
            validate_every=SHARED["steps"],
            **SHARED,
        )
        for (name, one), other in zip(together[index].named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
        mine, others = results[index].score, single.score
        assert mine is not None
        assert others is not None
        assert [row.images for row in mine.per_class] == [row.images for row in others.per_class]
        assert mine.balanced == results[index].best_balanced == results[index].record["metrics"]["validation_balanced"]
        assert mine.balanced == pytest.approx(others.balanced, abs=0.05)
        assert results[index].final_accuracy == pytest.approx(single.final_accuracy, abs=0.02)
        assert results[index].record["hyperparameters"]["learning_rate"] == RATES[index]
        assert results[index].record["together"] == len(CONFIGURATIONS)


@pytest.mark.twice
def test_accumulation_gives_the_same(backbone: Backbone, data: DataSource) -> None:
    whole, parts = fresh(backbone, data)[:2], fresh(backbone, data)[:2]
    train_together(whole, data, **SHARED)
    train_together(parts, data, accumulate=3, **SHARED)
    for one, other in zip(whole, parts, strict=True):
        for left, right in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.twice
def test_one_that_diverges_does_not_touch_the_others(backbone: Backbone, data: DataSource) -> None:
    tasks = fresh(backbone, data)[:3]
    start = fingerprint(tasks[1])
    results = train_together(tasks, data, learning_rates=[0.02, 1e38, 0.01], recipe="paper", **SHARED)
    assert results[1].diverged_at is not None
    assert results[1].final_accuracy == 0
    assert fingerprint(tasks[1]) == start  # its initial values
    quiet = fresh(backbone, data)
    train_together([quiet[0], quiet[2]], data, learning_rates=[0.02, 0.01], recipe="paper", **SHARED)
    for one, other in ((tasks[0], quiet[0]), (tasks[2], quiet[2])):
        for left, right in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.twice
def test_goes_on_from_its_saved_state(
    backbone: Backbone, data: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memtok.training.run.SAVE_SECONDS", 0.0)  # after every step
    monkeypatch.setattr("memtok.training.run.SAVE_SHARE", math.inf)
    state = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train_together(fresh(backbone, data), data, state=state, progress=Recorder(stop=5), **SHARED)
    resumed, straight = fresh(backbone, data), fresh(backbone, data)
    train_together(resumed, data, state=state, **SHARED)
    train_together(straight, data, **SHARED)
    assert [fingerprint(task) for task in resumed] == [fingerprint(task) for task in straight]
    with pytest.raises(memtok.MemtokError, match="batch_size"):
        train_together(fresh(backbone, data), data, state=state, **(SHARED | {"batch_size": 8}))


@pytest.mark.twice
def test_some_tasks_go_on_from_where_all_stopped(backbone: Backbone, data: DataSource, tmp_path: Path) -> None:
    rates = dict(zip(range(6), RATES, strict=True))
    halfway = fresh(backbone, data)
    two = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    first = train_together(halfway[:3], data, learning_rates=RATES[:3], state=two[0], until=4, **SHARED)
    train_together(halfway[3:], data, learning_rates=RATES[3:], state=two[1], until=4, **SHARED)
    assert [result.steps for result in first] == [4, 4, 4]
    chosen = [4, 0, 2]  # out of two runs, in another order
    one, other = (read_run(path) for path in two)
    assert one is not None
    assert other is not None
    assert one.step == other.step == 4
    begun = joined([other.pick([1]), one.pick([0, 2])])
    later = [fresh(backbone, data)[number] for number in chosen]
    later_rates = [rates[number] for number in chosen]
    results = train_together(later, data, learning_rates=later_rates, begun=begun, **SHARED)
    whole = fresh(backbone, data)
    straight = train_together(whole, data, learning_rates=RATES, **SHARED)
    for number, task, result in zip(chosen, later, results, strict=True):
        for left, right in zip(task.parameters(), whole[number].parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
        assert [row["step"] for row in result.history] == [row["step"] for row in straight[number].history]
    for words, more in (("3 tasks", {"begun": one.pick([0])}), ("until from 1 to 8", {"until": 9})):
        with pytest.raises(memtok.MemtokError, match=words):
            train_together(fresh(backbone, data)[:3], data, **(SHARED | more))
    with pytest.raises(memtok.MemtokError, match="step 3 at most"):
        train_together(fresh(backbone, data)[:3], data, learning_rates=RATES[:3], begun=one, until=3, **SHARED)
    with pytest.raises(memtok.MemtokError, match="learning_rate"):
        train_together(fresh(backbone, data)[:3], data, begun=one, **SHARED)
    with pytest.raises(memtok.MemtokError, match="same step"):
        joined([one, RunState([], 5)])


def test_bad_arguments_are_one_line(backbone: Backbone, data: DataSource) -> None:
    task = fresh(backbone, data)[0]
    other = new_task(backbone, data, regime="memory-shared", name="other")
    for arguments, words in (
        (([], data), "list of tasks"),
        (([task, other], data), "composable"),
        (([task, task], data), "each task once"),
    ):
        with pytest.raises(memtok.MemtokError, match=words):
            train_together(*arguments, **SHARED)  # type: ignore[arg-type]
    for more, words in (
        ({"learning_rates": [0.1, 0.2]}, "expected 1 learning_rates"),
        ({"learning_rates": [0.0]}, "above 0"),
        ({"out": "x.safetensors"}, "no out"),
        ({"steps": 3, "epochs": 1}, "steps or epochs"),
    ):
        with pytest.raises(memtok.MemtokError, match=words):
            train_together([task], data, **(SHARED | more))
