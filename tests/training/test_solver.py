"""A task solved for in one pass over the images: what it is, that the trunk runs once, that a run goes on."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import memtok
from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.training import train, train_together
from memtok.training.ridge import fit_ridge
from memtok.training.state import RunFolder
from tests.tiny import bytes_of
from tests.training.helpers import Recorder, fingerprint, new_task

RUN: dict[str, Any] = {"solver": "ridge", "batch_size": 16, "device": "cpu", "workers": 0}


def reading(backbone: Backbone, data: DataSource, **more: Any) -> memtok.Task:
    return new_task(backbone, data, "readout", **({"statistics": "class+mean"} | more))


@contextmanager
def counted(backbone: Backbone) -> Iterator[list[int]]:
    """The sizes of the batches that the trunk runs on in this block."""
    sizes: list[int] = []
    hook = backbone.vit.patch_embed.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    try:
        yield sizes
    finally:
        hook.remove()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where a shell has it ignored, as in its background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Signals(Recorder):
    """Ctrl-C during the pass over the images."""

    def caching(self, what: str, done: int, total: int) -> None:
        super().caching(what, done, total)
        if 64 < done <= 80:
            signal.raise_signal(signal.SIGINT)


def test_one_pass_gives_a_whole_task(backbone: Backbone, data: DataSource, out: Path) -> None:
    task, before = reading(backbone, data), fingerprint(backbone)
    with counted(backbone) as sizes:
        result = train(task, data, out=out, **RUN)
    assert sum(sizes) == len(data.train) + len(data.validation)  # the trunk ran once on each image
    assert fingerprint(backbone) == before
    assert result.final_accuracy == result.best_accuracy > 0.95
    assert (result.steps, result.best_step, result.head_alone) == (1, 1, None)
    assert (result.record["completed"], result.record["images_seen"]) == (True, len(data.train))
    settings = result.record["hyperparameters"]
    assert (settings["solver"], settings["augment"], settings["views"]) == ("ridge", "none", 1)
    assert not {"learning_rate", "weight_decay", "optimizer", "warmup"} & set(settings)
    loaded = memtok.load_task(out, backbone)
    assert bytes_of(loaded) == bytes_of(task)
    assert loaded.record == result.record == json.loads(RunFolder(out).record.read_text())
    lines = [json.loads(line) for line in RunFolder(out).metrics.read_text().splitlines()]
    assert lines == result.history
    assert [line["validation_top1"] for line in lines] == [result.final_accuracy]


def test_it_is_the_regression_on_what_it_reads_by_mean_and_spread(backbone: Backbone, data: DataSource) -> None:
    task = reading(backbone, data, readout=2)
    train(task, data, **RUN)
    model = memtok.MemoryViT(backbone, [task])
    pictures, labels = zip(*(data.train[index] for index in range(len(data.train))), strict=True)
    with torch.no_grad():
        images = model.prepare(list(pictures))
        read = backbone.trace(images, reads=task.reads).statistics
        features = torch.cat([read["class"], read["mean"]], dim=2).flatten(1).double()
        spread = features.std(dim=0, correction=0)
        features = (features - features.mean(dim=0)) / spread.where(spread > 1e-3, 1.0)
        found = fit_ridge(features.float(), torch.tensor(labels), 2, groups=torch.arange(len(labels)))
        expected = features.float() @ found.weight.T + found.bias
        answers = model(images)["digits"]
    torch.testing.assert_close(answers, expected, rtol=0, atol=1e-2 * float(expected.abs().max()))


@pytest.mark.parametrize("more", [{}, {"augment": "crop", "views": 2}], ids=["as they are", "two views"])
def test_kept_features_give_the_same(backbone: Backbone, data: DataSource, more: dict[str, Any]) -> None:
    live, kept = reading(backbone, data), reading(backbone, data)
    with counted(backbone) as sizes:
        result = train(live, data, **RUN, **more)
    assert sum(sizes) == more.get("views", 1) * len(data.train) + len(data.validation)
    assert result.record["images_seen"] == more.get("views", 1) * len(data.train)
    with counted(backbone) as again:
        record = train(kept, data, keep_traces="ram", **RUN, **({"augment": "none"} | more)).record
    assert sum(again) == sum(sizes)
    assert record["traces"]["records"] == more.get("views", 1) * len(data.train)
    for name in ("readout.weight", "head.bias"):
        expected = live.named()[name]
        torch.testing.assert_close(
            kept.named()[name], expected, rtol=0, atol=2e-2 * float(expected.detach().abs().max())
        )


def test_a_stopped_pass_is_run_again_and_a_finished_one_is_done(
    backbone: Backbone, data: DataSource, out: Path, interruptible: None
) -> None:
    whole, stopped, resumed, done = (reading(backbone, data) for _ in range(4))
    train(whole, data, **RUN)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, data, out=out, progress=Signals(), **RUN)
    assert not out.exists()
    train(resumed, data, out=out, resume=True, **RUN)
    assert bytes_of(resumed) == bytes_of(whole)
    with counted(backbone) as sizes:
        train(done, data, out=out, resume=True, **RUN)
    assert (sizes, bytes_of(done)) == ([], bytes_of(whole))
    with pytest.raises(memtok.MemtokError):
        train(reading(backbone, data), data, out=out, **RUN)


def test_together_one_pass_serves_all(backbone: Backbone, data: DataSource) -> None:
    forms: list[dict[str, Any]] = [{"readout": 1}, {}, {"statistics": "regions"}, {"readout_rank": 1}]
    alone = [reading(backbone, data, **form) for form in forms]
    for task in alone:
        train(task, data, **RUN)
    both = [reading(backbone, data, name=f"t{number}", **form) for number, form in enumerate(forms)]
    with counted(backbone) as sizes:
        results = train_together(both, data, **RUN)
    assert sum(sizes) == len(data.train) + len(data.validation)
    assert all(result.validation_right is not None and result.final_accuracy > 0.9 for result in results)
    for one, other in zip(both, alone, strict=True):
        assert bytes_of(one) == bytes_of(other)
    full, low = both[1], both[3]  # two classes are told apart by one number
    product = torch.tensordot(low.readout["up"], low.readout["down"], dims=1)
    alike = torch.nn.functional.cosine_similarity(product.flatten(), full.readout["weight"].flatten(), dim=0)
    assert float(alike.detach()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "given",
    [
        {"steps": 3},
        {"epochs": 1},
        {"learning_rate": 0.1},
        {"weight_decay": 0.0},
        {"recipe": "paper"},
        {"start": "ridge"},
        {"select": "loss"},
        {"validate_every": 1},
        {"log_every": 1},
        {"save_every": 1},
        {"compare_head": True},
    ],
    ids=str,
)
def test_what_steps_need_is_refused(backbone: Backbone, data: DataSource, given: dict[str, Any]) -> None:
    with pytest.raises(memtok.MemtokError) as caught:
        train(reading(backbone, data), data, **RUN, **given)
    assert caught.value.argument == next(iter(given))


def test_tasks_that_train_more_are_refused(backbone: Backbone, data: DataSource) -> None:
    for regime, more in (("head", {}), ("memory", {"readout": 2}), ("full", {})):
        task = new_task(backbone, data, regime, **more)
        with pytest.raises(memtok.MemtokError) as caught:
            train(task, data, **RUN)
        assert caught.value.argument == "solver"
    for more in ({"learning_rates": [0.1]}, {"weight_decays": [0.1]}):
        with pytest.raises(memtok.MemtokError) as caught:
            train_together([reading(backbone, data)], data, **RUN, **more)
        assert caught.value.argument == "solver"
