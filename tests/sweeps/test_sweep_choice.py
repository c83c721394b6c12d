"""What a sweep chooses: the simplest setting that the validation images cannot tell from the best, and its head."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import memtok
from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.intervals import packed
from memtok.sweeps import Configuration, Range, Trial
from memtok.sweeps.choice import choose
from memtok.training.plan import Plan, make_plan
from memtok.training.settings import Settings
from memtok.training.state import Validation
from tests.sweeps.conftest import Quick
from tests.sweeps.test_sweep_run import Counted, Stop

IMAGES = 200


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Of a sweep with 200 validation images, and the default recipe's rate of 0.01."""
    return make_plan(Settings(steps=100, validation_images=IMAGES), "memory", many_digits())


def many_digits() -> DataSource:
    from dataclasses import replace

    digits = memtok.open_data("digits")
    return replace(digits, validation=digits.train)


def finished(
    cells: int | None, right: int, *, rate: float = 0.01, seed: int = 0, start: int = 0, known: bool = True, **more: Any
) -> Trial:
    """A trial that answers `right` images right, from number `start` on; cells None: a head alone."""
    answers = np.zeros(IMAGES, dtype=bool)
    answers[start : start + right] = True
    values = {
        "regime": "memory" if cells is not None else "head",
        "memory": cells or 0,
        "queries": 1,
        "adapter_rank": 0,
    }
    look = Validation(step=100, top1=right / IMAGES, top5=1.0, loss=1 - right / IMAGES)
    rest: dict[str, Any] = {"seconds": 1.0, "diverged_at": None, "data": "digits", "split": "", "fingerprint": ""}
    return Trial(
        configuration=Configuration.of(values | {"learning_rate": rate, "weight_decay": 0.0, "seed": seed}),
        looks=(look,),
        trained_parameters=10 if cells is None else 20 + cells,
        right=packed(answers) if known else None,
        **(rest | {"state": "finished"} | more),
    )


def chosen(plan: Plan, *trials: Trial, beside: tuple[Trial, ...] = ()) -> Any:
    return choose([*trials, *beside], [trial.configuration for trial in trials], plan)


def test_the_simplest_of_those_that_cannot_be_told_apart(plan: Plan) -> None:
    best, near, far = finished(20, 190), finished(1, 188), finished(0, 170)
    found = chosen(plan, best, near, far)
    assert found.best.trials == (best,)
    assert [one.trials[0] for one in found.tied] == [best, near]  # 2 of 200 images are no difference, 20 are
    assert found.winner == near
    assert chosen(plan, best, far).winner == best


def test_image_by_image(plan: Plan) -> None:
    """Nine images that only one knows are a difference; as many more right among many different answers are none."""
    best, nested = finished(5, 180), finished(1, 171)
    assert not chosen(plan, best, nested).best.minus(chosen(plan, best, nested).settings[1]).tied
    assert chosen(plan, best, nested).winner == best
    crossed = finished(1, 171, start=29)
    assert chosen(plan, best, crossed).winner == crossed
    unknown = finished(1, 171, known=False)  # a record of an earlier version: two separate intervals
    assert chosen(plan, best, unknown).winner == unknown


def test_of_equally_many_parameters_the_more_accurate_then_the_rate_nearest_the_recipe(plan: Plan) -> None:
    slow, usual, fast = (finished(5, 180, rate=rate) for rate in (0.001, 0.02, 0.1))
    assert plan.learning_rate == 0.01
    assert chosen(plan, slow, usual, fast).winner == usual
    better = finished(5, 181, rate=0.3)
    assert chosen(plan, slow, usual, fast, better).winner == better


def test_seeds_are_one_setting(plan: Plan) -> None:
    lucky = [finished(1, 190, seed=0), finished(1, 150, seed=1)]
    steady = [finished(5, 186, seed=0), finished(5, 188, seed=1)]
    found = chosen(plan, *lucky, *steady)
    assert (found.best.top1, found.best.spread) == (pytest.approx(0.935), pytest.approx(0.00707, abs=1e-4))
    assert found.best.trials == (steady[1], steady[0])
    assert found.winner in (lucky[0], steady[1])
    # What is left of a setting that lost a seed is the better part of it.
    lost = finished(1, 199, seed=0), finished(1, 10, seed=1, state="stopped")
    assert chosen(plan, *lost, *steady).settings[0].trials == (lost[0],)
    assert chosen(plan, *lost, *steady).winner == steady[1]
    assert chosen(plan, *lost).winner == lost[0]


def test_a_head_beside_is_the_line_to_beat_and_cannot_win(plan: Plan) -> None:
    memory, head, slow = finished(5, 180), finished(None, 179), finished(None, 100, rate=0.001)
    found = chosen(plan, memory, beside=(head, slow))
    assert found.winner == memory
    assert found.head.trials == (head,)
    assert found.over_head.value == pytest.approx(0.005)
    assert found.over_head.tied
    assert not chosen(plan, memory, beside=(slow,)).over_head.tied
    listed = chosen(plan, memory, head)
    assert (listed.winner, listed.over_head) == (head, None)
    assert chosen(plan, beside=(head,)) is None


# Through `sweep`


def test_heads_are_trained_beside_and_compared_with(quick: Quick, tmp_path: Path) -> None:
    result = quick(learning_rates=[0.02, 0.05], memory=[0, 3], seeds=[0, 1], compare_head=True, keep_all=True)
    (one,) = result.data
    heads = {trial.configuration.name for trial in one.trials if trial.configuration.regime == "head"}
    assert heads == {f"head-rate-{rate}-decay-0.01-seed-{seed}" for rate in ("0.02", "0.05") for seed in (0, 1)}
    assert len(one.order) == 8
    assert not heads & {each.name for each in one.order}
    assert one.winner is not None
    assert one.winner.configuration.regime == "memory"
    written = one.to_json()
    assert written["head"] in heads
    assert written["winner_minus_head"].keys() == {"value", "low", "high", "tied"}
    by_name = {row["name"]: row for row in written["configurations"]}
    for row in by_name.values():
        assert row["top1_low"] <= row["top1"] <= row["top1_high"]
        assert row["from_best_low"] <= row["from_best"] <= row["from_best_high"]
    assert by_name[written["highest"]]["from_best"] == 0
    assert written["tied"] == sum(row["tied"] for row in by_name.values() if row["regime"] != "head") / 2 - 1
    columns, lines, _ = result.table()
    assert {"95 % interval", "mean of seeds", "from the highest"} <= set(columns)
    states = [line[-1] for line in lines]
    assert sum("chosen" in state for state in states) == sum("line to beat" in state for state in states) == 1
    assert any("a head alone has" in sentence for sentence in result.sentences())
    counted = Counted()
    again = quick(learning_rates=[0.02, 0.05], memory=[0, 3], seeds=[0, 1], compare_head=True, progress=counted)
    assert again.to_json() == result.to_json()
    assert counted.passes == []


def test_what_each_configuration_answers_is_that_of_its_task(
    quick: Quick, backbone: Backbone, data: DataSource, tmp_path: Path
) -> None:
    result = quick(learning_rates=[0.05], memory=[3], compare_head=True, keep_all=True)
    for trial in result.data[0].trials:
        right = trial.answered(len(data.validation))
        assert right is not None
        assert trial.last is not None
        assert right.mean() == pytest.approx(trial.last.top1)
        path = tmp_path / "sweep" / "runs" / "digits" / f"{trial.configuration.name}.safetensors"
        task = memtok.load_task(path, backbone)
        images = [memtok.evaluation_transform(task.preprocessing)(data.validation[i][0]) for i in range(len(right))]
        logits = memtok.MemoryViT(backbone, [task])(torch.stack(images))[task.name]
        assert (logits.argmax(dim=1).numpy() == data.validation.labels).tolist() == right.tolist()


@pytest.mark.twice
def test_heads_go_on_where_others_are_stopped(quick: Quick, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("memtok.training.run.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("memtok.training.run.SAVE_SHARE", math.inf)
    space: dict[str, Any] = {"learning_rates": [0.05, 1e-6], "memory": [0, 3], "halving": 2, "steps": 16}
    counted = Counted()
    result = quick(**space, compare_head=True, progress=counted)
    assert counted.passes == [(6, 0, 8), (4, 8, 16)]
    states = {trial.configuration.name: trial.state for trial in result.data[0].trials}
    assert [state for name, state in states.items() if name.startswith("head")] == ["finished", "finished"]
    assert (
        sorted(state for name, state in states.items() if name.startswith("memory"))
        == ["finished"] * 2 + ["stopped"] * 2
    )
    with pytest.raises(KeyboardInterrupt):
        quick(**space, compare_head=True, progress=Stop(2, 12), out=tmp_path / "killed")
    resumed = quick(**space, compare_head=True, out=tmp_path / "killed")
    assert [trial.looks for trial in resumed.data[0].trials] == [trial.looks for trial in result.data[0].trials]
    with pytest.raises(memtok.MemtokError, match="no heads_compared, found false"):
        quick(**space, compare_head=False)


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_a_search_has_heads_of_its_own(quick: Quick, search: str) -> None:
    if search == "optuna":
        pytest.importorskip("optuna")
    arguments: dict[str, Any] = {"learning_rates": Range(1e-3, 1e-1), "memory": Range(0, 3), "trials": 2, "steps": 2}
    quick(search=search, **arguments)
    counted = Counted()
    result = quick(search=search, **arguments, compare_head=True, progress=counted)
    (one,) = result.data
    heads = [trial.configuration for trial in one.trials if trial.configuration.regime == "head"]
    assert sorted(each.learning_rate for each in heads) == [0.003, 0.01, 0.03]
    assert len(one.order) == 2
    assert counted.passes == [(3, 0, 2)]  # the others were done


@pytest.mark.twice
def test_a_folder_of_an_earlier_version_goes_on(quick: Quick, tmp_path: Path) -> None:
    """Records that do not say which images were answered right are compared by their accuracies."""
    quick(learning_rates=[0.05], memory=[0, 3])
    for path in (tmp_path / "sweep" / "runs" / "digits").glob("*.json"):
        record = json.loads(path.read_text())
        for key in ("right", "content", "sha256"):
            del record[key]
        path.write_text(json.dumps(record))
    counted = Counted()
    result = quick(learning_rates=[0.05], memory=[0, 3], compare_head=True, progress=counted)
    assert [count for count, _, _ in counted.passes][:1] == [1]  # the head
    choice = result.data[0].choice
    assert choice is not None
    assert choice.over_head is not None
