"""Many runs in one folder, as a sweep and a grid have them: killed and started again they end with the same bytes."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import memtok
from memtok.backbone import Backbone
from memtok.data import DataSource, open_data
from memtok.sweeps import SweepListener, SweepResult
from memtok.training import Progress
from memtok.training.state import read_run, write_run
from memtok_experiments.grid import Grid
from memtok_experiments.records import RunRecord
from memtok_experiments.runs import Listener
from memtok_experiments.settings import GridSettings
from tests.tiny import tiny_backbone

QUICK: dict[str, Any] = {"batch_size": 16, "device": "cpu", "workers": 0, "augment": "crop"}
STEPS = 16  # the first half of it is a rung of early stopping: a sixteenth and an eighth are warm-up


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def data() -> DataSource:
    """The digits 0 and 1."""
    return open_data("digits").only(["0", "1"])


@pytest.fixture(autouse=True)
def _quick(data: DataSource, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pictures are not drawn, files not waited for, and SIGINT has the handler of a program in a terminal."""
    monkeypatch.setattr("memtok.sweeps.picture.draw", lambda result, path: None)
    monkeypatch.setattr("os.fsync", lambda handle: None)
    monkeypatch.setattr(Grid, "source", lambda self, spec: data)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Kill:
    """Interrupts training number `number` of a call after step `step`; counts trainings and the steps of each."""

    def __init__(self, number: int = 0, step: int = 0) -> None:
        self.number, self.at = number, step
        self.steps: list[list[int]] = []

    def training(self, *_: Any) -> Progress:
        self.steps.append(steps := [])
        at = self.at if len(self.steps) == self.number else None

        class Steps(Progress):
            def step(self, step: int) -> None:
                steps.append(step)
                if step == at:
                    signal.raise_signal(signal.SIGINT)

        return Steps()


class SweepKill(Kill, SweepListener):
    """Of a sweep."""


class GridKill(Kill, Listener):
    """Of a grid."""


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of all that was trained and kept."""
    return {
        f"{path.relative_to(folder)}: {name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def check_same(one: Path, other: Path) -> None:
    """Bit for bit, and no remains of passes or runs."""
    found, expected = tensors(one), tensors(other)
    assert found.keys() == expected.keys()
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []
    assert not [path for path in one.rglob("*") if path.name in ("passes", "state.safetensors") or ".run" in path.name]


def sweep(backbone: Backbone, data: DataSource, out: Path, listener: Any = False, **more: Any) -> SweepResult:
    """Six configurations, of which three are stopped at half the steps, two in a pass."""
    space: dict[str, Any] = {"learning_rates": [0.05, 0.02, 1e-6], "memory": [0, 3], "halving": 2, "together": 2}
    shared = {"steps": STEPS, "compare_head": False, "keep_all": True, "progress": listener} | QUICK
    return memtok.sweep(backbone, data, out=out, **(space | shared | more))


@pytest.mark.twice
def test_a_sweep_that_is_killed_in_any_pass_ends_with_the_same_bytes(
    backbone: Backbone, data: DataSource, tmp_path: Path
) -> None:
    whole = sweep(backbone, data, tmp_path / "whole", counted := SweepKill())
    assert [(steps[0], steps[-1]) for steps in counted.steps] == [(1, 8)] * 3 + [(9, 16)] * 2
    for number, step in ((2, 3), (2, 6), (1, 8), (2, 12)):  # of what is left in each call
        with pytest.raises(KeyboardInterrupt):
            sweep(backbone, data, tmp_path / "killed", SweepKill(number, step))
    result = sweep(backbone, data, tmp_path / "killed", counted := SweepKill())
    assert [(steps[0], steps[-1]) for steps in counted.steps] == [(13, 16), (9, 16)]
    check_same(tmp_path / "killed" / "runs", tmp_path / "whole" / "runs")
    found, expected = (
        {trial.configuration: (trial.state, trial.looks, trial.right) for trial in one.data[0].trials}
        for one in (result, whole)
    )
    assert found == expected


def settings(out: Path, **changes: Any) -> GridSettings:
    """Four runs that share a pass, and two that train alone."""
    columns = ("head", "memory-1", "class-unmasked")
    given = {"recipe": "default", "steps": 8, "learning_rates": (0.01, 0.05)} | QUICK | changes
    return GridSettings(backbone="tiny", data=("digits",), out=out, columns=columns, **given)


def outcomes(records: list[RunRecord]) -> dict[tuple[str, float, int], Any]:
    """What was found of each run."""
    return {
        (record.column, record.learning_rate, record.seed): (record.chosen, record.validation, record.test)
        for record in records
    }


@pytest.mark.twice
def test_a_grid_that_is_killed_in_any_run_ends_with_the_same_bytes(backbone: Backbone, tmp_path: Path) -> None:
    whole = Grid(settings(tmp_path / "whole", seeds=(0, 1)), backbone).run()
    # Together, alone, and together with the second seed.
    for number, step, begins in ((1, 3, 1), (2, 5, 4), (3, 2, 6)):
        killed = GridKill(number, step)
        with pytest.raises(KeyboardInterrupt):
            Grid(settings(tmp_path / "killed", seeds=(0, 1)), backbone, listener=killed).run()
        assert killed.steps[0][0] == begins
    found = Grid(settings(tmp_path / "killed", seeds=(0, 1)), backbone).run()
    assert outcomes(found) == outcomes(whole)
    check_same(tmp_path / "killed" / "runs", tmp_path / "whole" / "runs")


@pytest.mark.twice
def test_a_pass_that_an_earlier_version_left_goes_on(backbone: Backbone, tmp_path: Path) -> None:
    """It called the tasks of a pass by numbers, and had a list of the runs beside."""
    whole = Grid(settings(tmp_path / "whole"), backbone).run()
    with pytest.raises(KeyboardInterrupt):
        Grid(settings(tmp_path / "old"), backbone, listener=GridKill(1, 5)).run()
    runs = tmp_path / "old" / "runs" / "digits"
    (path,) = runs.glob("passes/*.safetensors")
    state = read_run(path)
    assert state is not None
    path.unlink()
    for number, task in enumerate(state.tasks):
        task.config["name"] = f"task-{number}"
    write_run(runs / "together-01234567.safetensors", state)
    listed = [[column, rate, 0] for column in ("head", "memory-1") for rate in (0.01, 0.05)]
    (runs / "together-01234567.json").write_text(json.dumps(listed))
    counted = GridKill()
    found = Grid(settings(tmp_path / "old"), backbone, listener=counted).run()
    assert counted.steps[0] == [6, 7, 8]
    assert outcomes(found) == outcomes(whole)
    check_same(tmp_path / "old" / "runs", tmp_path / "whole" / "runs")
    assert not list(runs.glob("*together-*"))


def test_a_damaged_state_of_a_pass_is_told(backbone: Backbone, data: DataSource, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        sweep(backbone, data, tmp_path, SweepKill(1, 3))
    (path,) = (tmp_path / "runs" / "digits" / "passes").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(memtok.MemtokError) as caught:
        sweep(backbone, data, tmp_path)
    assert str(path) in str(caught.value)
    path.unlink()
    assert sweep(backbone, data, tmp_path).winner is not None


@pytest.mark.twice
def test_one_that_diverges_leaves_the_others_of_its_pass_alone(backbone: Backbone, tmp_path: Path) -> None:
    """Where it is computed beside them they are the same to rounding; where it trains alone, they never meet."""
    rates = {"recipe": "paper", "learning_rates": (0.01, 1e38)}
    records = Grid(settings(tmp_path / "two", **rates), backbone).run()
    alone = Grid(settings(tmp_path / "one", recipe="paper", learning_rates=(0.01,)), backbone).run()
    assert {record.learning_rate for record in records if record.diverged} == {1e38}
    assert outcomes([record for record in records if not record.diverged]) == outcomes(alone)
    found, expected = tensors(tmp_path / "two"), tensors(tmp_path / "one")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
