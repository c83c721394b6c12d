"""Sweeps from kept traces: the trunk runs once per image for all passes, stages and batches; results as of `train`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import memtok
from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.sweeps import SweepListener
from memtok.sweeps.memory import SHARE
from memtok.sweeps.settings import SweepSettings, make_space
from memtok.traces import Needs
from memtok.training import train
from memtok.training.feed import traces_in_memory
from memtok.training.plan import make_plan
from memtok.training.settings import VIEWS, Settings
from tests.sweeps.conftest import QUICK, Quick
from tests.sweeps.test_sweep_run import Counted, Stop, Trained, same

SPACE: dict[str, Any] = {"learning_rates": [0.02, 0.05], "memory": [0, 3]}
LONG: dict[str, Any] = {"steps": 20, "validation_images": 10}  # 259 images: an epoch is 17 steps


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the trunk ran on beside those of the test part, call by call."""
    calls: list[int] = []
    original = Backbone.trace

    def trace(backbone: Backbone, images: torch.Tensor, **more: Any) -> Any:
        calls.append(len(images))
        return original(backbone, images, **more)

    monkeypatch.setattr(Backbone, "trace", trace)
    monkeypatch.setattr("memtok.sweeps.run.Sweep.test", lambda *_: None)
    return calls


class Told(SweepListener):
    """What the user is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.twice
@pytest.mark.parametrize("place", ["ram", "disk"])
def test_the_trunk_runs_once_per_image_for_a_whole_sweep(
    quick: Quick, data: DataSource, tmp_path: Path, computed: list[int], place: str
) -> None:
    """In two stages of two passes and one, each image of one epoch and of the validation is computed once."""
    counted = Counted()
    folder = {"trace_dir": tmp_path / "traces"} if place == "disk" else {}
    space = SPACE | LONG | {"halving": 2, "together": 2}
    quick(**space, **folder, keep_traces=place, progress=counted)
    assert counted.passes == [(2, 0, 10), (2, 0, 10), (2, 10, 20)]
    assert sum(computed) == len(data.train) + 10
    computed.clear()
    # A sweep from another place: traces on disk outlive the first, those in memory do not.
    quick(**space, **folder, keep_traces=place, out=tmp_path / "other")
    assert sum(computed) == (0 if place == "disk" else len(data.train) + 10)


def test_batches_of_optuna_share_the_traces(quick: Quick, data: DataSource, computed: list[int]) -> None:
    pytest.importorskip("optuna")
    counted = Counted()
    arguments: dict[str, Any] = {"search": "optuna", "trials": 4, "memory": [0, 3]}
    quick(**arguments, **LONG, keep_traces="ram", progress=counted)
    assert len(counted.passes) > 1
    assert sum(computed) == len(data.train) + 10


@pytest.mark.twice
def test_each_configuration_ends_as_train_from_kept_traces(
    quick: Quick, trained: Trained, backbone: Backbone, data: DataSource, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"steps": 20, "keep_traces": "disk", "augment": "crop", "views": 2}
    quick(learning_rates=[0.02], memory=[0, 3], **arguments, trace_dir=tmp_path / "swept", together=1, keep_all=True)
    found = trained()
    assert len(found) == 2
    for name, task in found.items():
        hyperparameters = task.record["hyperparameters"]
        alone = memtok.Task.create(
            backbone, name="digits", classes=data.classes, memory=3 if "memory-3" in name else 0, seed=0
        )
        single = train(
            alone, data, learning_rate=hyperparameters["learning_rate"], validate_every=20,
            trace_dir=tmp_path / "alone", **(QUICK | arguments),
        )  # fmt: skip
        same(task, alone)
        assert hyperparameters["views"] == 2
        assert task.record["traces"]["kept"] == "disk"
        # One epoch of 259 images, and three batches of 16 of the next one.
        assert single.record["traces"]["records"] == task.record["traces"]["records"] == 259 + 3 * 16
    # What the first pass wrote was there for the second.
    assert sorted(task.record["traces"]["reused"] for task in found.values()) == [0, 307]


def test_the_room_is_told_once(quick: Quick) -> None:
    told = Told()
    told.training = lambda *_: Forwarding(told)  # type: ignore[method-assign, assignment]
    quick(**SPACE, keep_traces="ram", together=1, progress=told)
    assert [line for line in told.lines if "traces" in line] == [
        "keeping traces (ram): 259 images x 1 view x 2.3 kB = 597 kB, and 29 validation images = 66.8 kB; the limit "
        "is " + told.lines[0].rsplit("is ", 1)[1]
    ]


class Forwarding(memtok.training.Progress):
    def __init__(self, listener: SweepListener) -> None:
        self.listener = listener

    def message(self, text: str) -> None:
        self.listener.message(text)


def test_several_data_sets_have_traces_of_their_own(
    backbone: Backbone, data: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setattr("memtok.sweeps.picture.draw", lambda result, path: None)
    other = replace(memtok.open_data("digits").only(["2", "3"]), spec="more digits")
    traces = tmp_path / "traces"
    memtok.sweep(
        backbone, [data, other], out=tmp_path / "out", learning_rates=[0.02], keep_traces="disk", trace_dir=traces,
        **(QUICK | {"steps": 2}),
    )  # fmt: skip
    assert [path.name.split("-")[0] for path in sorted(traces.iterdir())] == ["digits", "more"]
    assert all((path / "manifest.json").exists() for path in traces.iterdir())


def test_what_must_agree_when_a_sweep_goes_on(quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place may change; whether traces are kept, and in how many views, may not."""
    monkeypatch.setattr("memtok.training.run.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("memtok.training.run.SAVE_SHARE", math.inf)
    arguments: dict[str, Any] = SPACE | {"augment": "crop"}
    with pytest.raises(KeyboardInterrupt):
        quick(**arguments, keep_traces="ram", views=2, progress=Stop(1, 3))
    for changed, words in (({}, "views 2, found none"), ({"keep_traces": "ram"}, f"views 2, found {VIEWS}")):
        with pytest.raises(memtok.MemtokError, match=words):
            quick(**arguments, **changed)
    quick(**arguments, keep_traces="disk", trace_dir=tmp_path / "traces", views=2)
    quick(learning_rates=[0.02], out=tmp_path / "live")
    with pytest.raises(memtok.MemtokError, match="no views, found 1"):
        quick(learning_rates=[0.02], out=tmp_path / "live", keep_traces="ram")


def test_bad_arguments_are_one_line(quick: Quick, tmp_path: Path) -> None:
    for more, words in (
        ({"keep_traces": "tape"}, "expected keep_traces among ram, disk, gpu"),
        ({"views": 2}, "expected views where traces are kept"),
        ({"keep_traces": "ram", "views": 2}, "expected one view where images are not varied"),
        ({"keep_traces": "ram", "trace_dir": "x"}, "expected trace_dir where traces are kept on disk"),
        ({"keep_traces": "disk", "trace_dir": tmp_path / "sweep" / "runs" / "x"}, "expected trace_dir outside"),
    ):
        with pytest.raises(memtok.MemtokError, match=words):
            quick(**more)
    assert not (tmp_path / "sweep").exists()


def test_traces_in_memory_leave_less_for_a_pass(
    backbone: Backbone, data: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memtok.sweeps.run import Sweep

    monkeypatch.setattr("memtok.sweeps.memory.free_memory", lambda _: 10_000_000)
    cpu = torch.device("cpu")

    def limit(**more: Any) -> int:
        shared = QUICK | {"steps": 100} | more
        settings = SweepSettings(
            space=make_space(recipe="default", search="grid", trials=None), out=Path("unused"), shared=shared
        )
        return Sweep(settings, backbone, [data], SweepListener()).stages(data, "digits", cpu).budget.limit

    record, count = 2304, len(data.train) + len(data.validation)
    assert limit() == int(SHARE * 10_000_000)
    assert limit(keep_traces="disk") == int(SHARE * (10_000_000 - 32 * record))  # two batches
    assert limit(keep_traces="ram") == int(SHARE * (10_000_000 - (32 + count) * record))
    assert limit(keep_traces="ram", trace_limit=1e-4) == int(SHARE * (10_000_000 - 32 * record - 100_000))
    views = Settings(**(QUICK | {"augment": "crop", "keep_traces": "ram", "steps": 20}))  # 17 steps an epoch
    plan = make_plan(views, "memory", data)
    assert traces_in_memory(backbone, plan, views, Needs(), cpu) == (32 + 2 * 259 + plan.validation_images) * record
