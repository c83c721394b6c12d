"""Training a readout: what is measured and kept, at which rate its parts learn, and that a run goes on bitwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import memtok
from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.traces.manifest import MANIFEST
from memtok.training import train_together
from memtok.training.measure import LEAST_SPREAD, moments
from memtok.training.recipes import RECIPES
from memtok.training.state import RunFolder, read_run, write_run
from tests.tiny import bytes_of, tiny_images
from tests.training.helpers import Recorder, fingerprint, new_task, quick

ONE_RATE = replace(RECIPES["default"], by_part=False, label_smoothing=0.0)


def reading(backbone: Backbone, data: DataSource, **more: Any) -> memtok.Task:
    return new_task(backbone, data, "head", **({"readout": 3, "statistics": "class+mean"} | more))


def test_moments_are_those_of_all_batches(print_seed: Any) -> None:
    generator = torch.Generator().manual_seed(print_seed(None))
    values = torch.randn(50, 2, 1, 8, generator=generator) * 3 + 1
    values[:, 0, 0, :4] = 2.0  # the same for all images
    mean, spread = moments(iter([{"class": values[:20].half()}, {"class": values[20:].half()}]))["class"]
    exact = values.half().double()
    torch.testing.assert_close(mean, exact.mean(dim=0).float())
    torch.testing.assert_close(spread[1], exact.std(dim=0, correction=0)[1].float())
    assert spread[0, 0, :4].tolist() == [1.0] * 4
    assert float(spread.min()) > LEAST_SPREAD


def test_a_trained_task_answers_as_its_file(backbone: Backbone, data: DataSource, out: Path) -> None:
    task = reading(backbone, data)
    before = fingerprint(backbone)
    quick(task, data, out=out)
    assert not task.measured
    again = memtok.load_task(out, backbone)
    assert bytes_of(again) == bytes_of(task)
    images = tiny_images(3)
    one, other = (memtok.MemoryViT(backbone, [each])(images).logits.values() for each in (task, again))
    assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))
    assert fingerprint(backbone) == before


@pytest.mark.parametrize("more", [{}, {"keep_traces": "ram"}], ids=["live", "kept"])
def test_it_resumes_bitwise(backbone: Backbone, data: DataSource, out: Path, more: dict[str, Any]) -> None:
    whole, stopped, resumed = (reading(backbone, data) for _ in range(3))
    quick(whole, data, **more)
    with pytest.raises(KeyboardInterrupt):
        quick(stopped, data, out=out, save_every=1, progress=Recorder(stop=6), **more)
    quick(resumed, data, out=out, resume=True, **more)
    assert bytes_of(resumed) == bytes_of(whole)


def test_only_what_is_read_is_kept(backbone: Backbone, data: DataSource, tmp_path: Path) -> None:
    records = {}
    none: dict[str, Any] = {"readout": 0, "statistics": None}
    for name, regime, more in (("head", "head", none), ("readout", "head", {}), ("memory", "memory", {})):
        options = {"readout": 3, "statistics": "class+mean"} | more
        task = new_task(backbone, data, regime, **options)
        quick(task, data, keep_traces="disk", trace_dir=tmp_path / name)
        records[name] = json.loads((tmp_path / name / MANIFEST).read_text())["tensors"]
    assert set(records["head"]) == {"features"}
    assert set(records["readout"]) == {"features", "statistics.class", "statistics.mean"}
    assert set(records["memory"]) == {"features", "statistics.class", "statistics.mean", "inputs"}
    # What holds more serves a task that reads less, and not the other way round.
    listener = Recorder()
    result = quick(reading(backbone, data), data, keep_traces="disk", trace_dir=tmp_path / "memory", progress=listener)
    assert result.record["traces"]["reused"] == result.record["traces"]["records"] > 0
    with pytest.raises(memtok.MemtokError):
        quick(new_task(backbone, data), data, keep_traces="disk", trace_dir=tmp_path / "head")


def test_kept_statistics_train_as_images_do(backbone: Backbone, data: DataSource) -> None:
    live, kept = reading(backbone, data), reading(backbone, data)
    quick(live, data)
    quick(kept, data, keep_traces="ram")
    for one, other in zip(live.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-2)


def test_together_each_trains_as_alone(backbone: Backbone, data: DataSource) -> None:
    shared: dict[str, Any] = {"steps": 5, "batch_size": 100, "device": "cpu", "workers": 0, "augment": "none"}
    none: dict[str, Any] = {"readout": 0, "statistics": None}
    forms: list[dict[str, Any]] = [{"readout": 2}, {"readout": 3, "statistics": "mean"}, none]
    alone = [reading(backbone, data, **form) for form in forms]
    for task in alone:
        train_together([task], data, **shared)
    both = [reading(backbone, data, name=f"t{number}", **form) for number, form in enumerate(forms)]
    train_together(both, data, **shared)
    for one, other in zip(both, alone, strict=True):
        for left, right in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_a_readout_and_adapters_move_at_their_own_rate(backbone: Backbone, data: DataSource) -> None:
    """The first step of Adam moves every number by the rate. The paper's recipe has one rate for all parts."""
    moved = {}
    for by_part in (False, True):
        task = new_task(backbone, data, "memory", readout=2, statistics="class+mean", adapter_rank=2)
        rates = {name: task.rates()[parameter] for name, parameter in task.named().items()}
        before = {name: parameter.detach().clone() for name, parameter in task.named().items()}
        recipe = replace(RECIPES["default"], by_part=by_part)
        quick(task, data, steps=1, learning_rate=0.05, weight_decay=0.0, recipe=recipe)
        moved[by_part] = {name: float((one.detach() - before[name]).abs().max()) for name, one in task.named().items()}
    assert rates["readout.weight"] == 192 / (2 * 2 * backbone.dim) == 1.5
    assert {rate for name, rate in rates.items() if name.startswith("adapters.")} == {0.1}
    assert {rates[name] for name in ("class_tokens", "memory", "head.weight")} == {1.0}
    assert moved[True]["memory"] == pytest.approx(0.05 / 5, rel=1e-3)  # the first of 5 steps of warm-up
    for name, rate in rates.items():
        if name != "head.bias":  # what was measured is folded into it
            assert moved[True][name] == pytest.approx(rate * moved[False][name], rel=1e-3), name
    assert not RECIPES["paper"].by_part


def test_of_low_rank_it_learns_from_zero_and_from_a_ridge_regression(backbone: Backbone, data: DataSource) -> None:
    for start, rank in (("zero", 2), ("ridge", 2), ("zero", 1)):
        task = reading(backbone, data, readout_rank=rank)
        rates = {name: task.rates()[parameter] for name, parameter in task.named().items()}
        assert (rates["readout.up"], rates["readout.down"]) == (1.0, 192 / (3 * 2 * backbone.dim))
        before = {name: parameter.detach().clone() for name, parameter in task.named().items()}
        assert quick(task, data, steps=24, start=start).final_accuracy > 0.9
        assert not any(torch.equal(before[f"readout.{name}"], task.readout[name]) for name in ("up", "down"))


def test_a_head_beside_a_readout_moves_no_faster_than_it(backbone: Backbone, data: DataSource) -> None:
    """It reads one vector more of the base; one that reads class tokens of its own, or stands alone, has rate 1."""
    task = reading(backbone, data, readout=2, statistics="class+mean")
    rates = {name: task.rates()[parameter] for name, parameter in task.named().items()}
    assert rates["head.weight"] == rates["head.bias"] == rates["readout.weight"] == 192 / (2 * 2 * backbone.dim)
    for other in (new_task(backbone, data, "head"), new_task(backbone, data, "memory", readout=2)):
        assert other.rates()[other.head.weight] == 1


def test_from_a_ridge_regression_it_answers_at_once(backbone: Backbone, data: DataSource, out: Path) -> None:
    listener, still = Recorder(), {"steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0}
    head, zero, ridge = new_task(backbone, data, "head"), reading(backbone, data), reading(backbone, data)
    before = fingerprint(backbone)
    assert quick(zero, data, **still).final_accuracy < 0.9
    found = quick(ridge, data, **still, start="ridge", progress=listener, out=out)
    assert found.final_accuracy > 0.95
    assert found.record["hyperparameters"]["start"] == "ridge"
    assert found.record["hyperparameters"]["label_smoothing"] == 0  # of the recipe without such a start 0.1
    assert any("ridge regression" in line for line in listener.said("message"))
    assert float(ridge.head.weight.detach().abs().max()) < 1e-9
    assert fingerprint(backbone) == before
    with pytest.raises(memtok.MemtokError) as caught:
        quick(head, data, start="ridge")
    assert caught.value.argument == "start"


@pytest.mark.parametrize("more", [{}, {"keep_traces": "ram", "augment": "crop", "views": 2}], ids=["live", "kept"])
def test_from_a_ridge_regression_it_resumes_bitwise(
    backbone: Backbone, data: DataSource, out: Path, more: dict[str, Any]
) -> None:
    whole, stopped, resumed = (reading(backbone, data) for _ in range(3))
    quick(whole, data, start="ridge", **more)
    with pytest.raises(KeyboardInterrupt):
        quick(stopped, data, out=out, start="ridge", save_every=1, progress=Recorder(stop=6), **more)
    quick(resumed, data, out=out, resume=True, start="ridge", **more)
    assert bytes_of(resumed) == bytes_of(whole)


def test_together_each_starts_as_alone(backbone: Backbone, data: DataSource) -> None:
    shared: dict[str, Any] = {"steps": 2, "batch_size": 100, "device": "cpu", "workers": 0, "augment": "none"}
    forms: list[dict[str, Any]] = [{"readout": 2}, {"readout": 3}, {"readout": 0, "statistics": None}]
    alone = [reading(backbone, data, **form) for form in forms]
    for task in alone:
        train_together([task], data, start="ridge", **shared)
    both = [reading(backbone, data, name=f"t{number}", **form) for number, form in enumerate(forms)]
    train_together(both, data, start="ridge", **shared)
    for one, other in zip(both, alone, strict=True):
        for left, right in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


def test_a_run_from_before_parts_had_rates_goes_on_as_it_began(backbone: Backbone, data: DataSource, out: Path) -> None:
    """With one rate, targets as they are, and the augmentation of the data."""
    data = replace(data, augment="inception")
    had: dict[str, Any] = {"recipe": ONE_RATE, "augment": "inception"}
    whole, today, resumed = (reading(backbone, data, readout=2) for _ in range(3))
    quick(whole, data, **had)
    quick(today, data, augment=None)
    assert bytes_of(today) != bytes_of(whole)
    with pytest.raises(KeyboardInterrupt):
        quick(reading(backbone, data, readout=2), data, out=out, progress=Recorder(stop=6), **had)
    made_old(RunFolder(out).state)
    quick(resumed, data, augment=None, out=out, resume=True)
    assert bytes_of(resumed) == bytes_of(whole)


def test_tasks_together_from_before_parts_had_rates_go_on_with_one(
    backbone: Backbone, data: DataSource, tmp_path: Path
) -> None:
    state = tmp_path / "state.safetensors"
    shared: dict[str, Any] = {"steps": 6, "batch_size": 16, "device": "cpu", "workers": 0, "augment": "none"}
    whole, stopped, resumed = (reading(backbone, data, readout=2) for _ in range(3))
    train_together([whole], data, recipe=ONE_RATE, **shared)
    train_together([stopped], data, recipe=ONE_RATE, until=3, state=state, **shared)
    made_old(state)
    train_together([resumed], data, state=state, **shared)
    assert bytes_of(resumed) == bytes_of(whole)


def made_old(state: Path) -> None:
    """Makes a saved run one of the default recipe as it was before parts had rates of their own and labels
    were smoothed."""
    run = read_run(state)
    assert run
    for task in run.tasks:
        assert task.config.pop("by_part") is False
        assert task.config.pop("label_smoothing") == 0
        task.config["recipe"] = "default"
        del task.config["start"]
    write_run(state, run)
