"""`train` also says what a head alone gives on the same images, and changes nothing by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import memtok
from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.training import TrainResult
from tests.training.helpers import Recorder, fingerprint, new_task, quick

LONG: dict[str, Any] = {"steps": 40, "batch_size": 64, "validate_every": 10}  # 8 epochs of 5 steps


def alone(backbone: Backbone, data: DataSource, **arguments: Any) -> TrainResult:
    """A run of regime head with the numbers of a run of memory."""
    return quick(new_task(backbone, data, "head"), data, **arguments)


@pytest.mark.twice
@pytest.mark.parametrize(
    "traces", [{}, {"keep_traces": "ram"}, {"balance": "sampling"}, {"balance": "weights", "keep_traces": "ram"}]
)
@pytest.mark.parametrize("regime", ["memory", "head+class"])
def test_it_is_what_a_run_of_the_head_gives(
    backbone: Backbone, data: DataSource, regime: str, traces: dict[str, Any]
) -> None:
    if traces and regime != "memory":
        return  # its image tokens change as it trains
    task = new_task(backbone, data, regime)
    result = quick(task, data, **LONG, **traces, compare_head=True)
    found = result.head_alone
    assert found is not None
    expected = alone(backbone, data, **LONG, **traces)
    assert expected.head_alone is None
    assert (found.accuracy, found.step) == (expected.best_accuracy, expected.best_step)
    assert found.images == len(data.validation)
    assert found.gain.value == pytest.approx(result.best_accuracy - expected.best_accuracy)
    assert found.gain.low < found.gain.value < found.gain.high
    assert result.record["head_alone"] == found.to_json()
    assert task.record["head_alone"] == found.to_json()


def test_every_kept_view_is_trained_on(backbone: Backbone, data: DataSource) -> None:
    arguments: dict[str, Any] = LONG | {"augment": "crop", "keep_traces": "ram", "views": 3}
    found = quick(new_task(backbone, data), data, **arguments).head_alone  # kept: it costs little
    expected = alone(backbone, data, **arguments)
    assert found is not None
    assert (found.accuracy, found.step) == (expected.best_accuracy, expected.best_step)


@pytest.mark.twice
def test_it_changes_nothing(backbone: Backbone, data: DataSource, out: Path, tmp_path: Path) -> None:
    tasks = {wanted: new_task(backbone, data) for wanted in (True, False)}
    before = torch.get_rng_state()
    results = {
        wanted: quick(task, data, **LONG, out=tmp_path / f"{wanted}.safetensors", compare_head=wanted)
        for wanted, task in tasks.items()
    }
    assert torch.equal(torch.get_rng_state(), before)
    assert fingerprint(tasks[True]) == fingerprint(tasks[False])
    assert results[False].head_alone is None
    assert "head_alone" not in results[False].record
    written = memtok.load_task(tmp_path / "True.safetensors", backbone)
    assert written.record["head_alone"] == results[True].record["head_alone"]
    record = json.loads((tmp_path / "True.run" / "record.json").read_text())
    assert record["head_alone"] == written.record["head_alone"]
    # A run that goes on, and one that is over already, say the same.
    with pytest.raises(KeyboardInterrupt):
        quick(new_task(backbone, data), data, **LONG, out=out, compare_head=True, save_every=1, progress=Recorder(13))
    for _ in range(2):
        again = new_task(backbone, data)
        resumed = quick(again, data, **LONG, out=out, compare_head=True, resume=True)
        assert resumed.head_alone == results[True].head_alone
        assert fingerprint(again) == fingerprint(tasks[True])


def test_without_being_asked_it_must_cost_little(backbone: Backbone, data: DataSource) -> None:
    few: dict[str, Any] = {"batch_size": 259, "validate_every": 9}  # steps are epochs
    assert quick(new_task(backbone, data), data, steps=9, **few).head_alone is None
    told = Recorder()
    assert quick(new_task(backbone, data), data, steps=10, **few, progress=told).head_alone is not None
    assert any("head alone" in text for text in told.said("message"))
    assert quick(new_task(backbone, data), data, steps=10, **few, compare_head=False).head_alone is None
    assert quick(new_task(backbone, data, "head"), data, steps=10, **few).head_alone is None


@pytest.mark.twice
def test_an_interruption_leaves_a_finished_run(backbone: Backbone, data: DataSource, out: Path) -> None:
    class Interrupt(Recorder):
        def message(self, text: str) -> None:
            if "head alone" in text:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(new_task(backbone, data), data, **LONG, out=out, compare_head=True, progress=Interrupt())
    assert memtok.load_task(out, backbone).record["completed"]
    assert quick(new_task(backbone, data), data, **LONG, out=out, resume=True, compare_head=False).steps == 40


@pytest.mark.parametrize("regime", ["head", "full"])
def test_where_it_says_nothing_it_is_refused(backbone: Backbone, data: DataSource, regime: str) -> None:
    with pytest.raises(memtok.MemtokError, match=rf"no compare_head in regime '{regime}', found True; it is for"):
        quick(new_task(backbone, data, regime), data, compare_head=True)
    with pytest.raises(memtok.MemtokError, match="compare_head as True, False or None, found 1"):
        quick(new_task(backbone, data, regime), data, compare_head=1)
    with pytest.raises(memtok.MemtokError, match="no compare_head for tasks trained together"):
        memtok.train_together([new_task(backbone, data)], data, compare_head=True)
