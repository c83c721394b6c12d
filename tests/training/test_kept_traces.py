"""Training from kept traces: the same result whether they are built or found, and nearly that of a live run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.errors import MemtokError
from memtok.task import Task
from memtok.training import TrainResult, train_together
from memtok.training.device import processes_for
from memtok.training.feed import KeptFeed, make_feed
from memtok.training.plan import make_plan
from memtok.training.progress import Progress
from memtok.training.settings import VIEWS, Settings
from tests.training.helpers import Recorder, fingerprint, new_task, quick

# 259 images in batches of 32: epochs of nine steps.
RUN: dict[str, Any] = {"steps": 24, "batch_size": 32, "validate_every": 8, "log_every": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "traces"


def trained(backbone: Backbone, data: DataSource, **arguments: Any) -> tuple[nn.Module, TrainResult]:
    """A new task after RUN."""
    task = new_task(backbone, data)
    return task, quick(task, data, **(RUN | arguments))


@pytest.mark.twice
@pytest.mark.parametrize("augment", ["none", "crop"])
def test_building_and_reusing_end_with_the_same_bytes(
    backbone: Backbone, data: DataSource, folder: Path, augment: str
) -> None:
    more: dict[str, Any] = {"augment": augment} | ({"views": 2} if augment == "crop" else {})
    built, first = trained(backbone, data, keep_traces="disk", trace_dir=folder, **more)
    count = len(data.train) * (2 if augment == "crop" else 1)
    traces = first.record["traces"]
    assert (traces["kept"], traces["records"], traces["reused"]) == ("disk", count, 0)
    assert traces["bytes"] == count * 2304
    for arguments in ({"trace_dir": folder}, {"trace_dir": folder, "workers": 2}, {"keep_traces": "ram"}):
        again, result = trained(backbone, data, **({"keep_traces": "disk"} | more | arguments))
        assert fingerprint(again) == fingerprint(built), arguments
        assert [row.get("loss") for row in result.history] == [row.get("loss") for row in first.history]
        assert result.record["traces"]["reused"] == (count if "trace_dir" in arguments else 0)


@pytest.mark.twice
def test_nearly_as_a_live_run(backbone: Backbone, data: DataSource) -> None:
    """Half precision has 11 bits; over a run of 24 steps parameters differ by at most 1e-3, accuracies by nothing."""
    live, expected = trained(backbone, data)
    kept, found = trained(backbone, data, keep_traces="ram")
    assert found.best_accuracy == expected.best_accuracy
    assert found.final_accuracy == expected.final_accuracy
    for one, other in zip(kept.parameters(), live.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)
    assert "traces" not in expected.record
    assert "views" not in expected.record["hyperparameters"]


@pytest.mark.twice
@pytest.mark.parametrize("augment", ["none", "crop"])
@pytest.mark.parametrize("extending", [False, True])
def test_nearly_as_a_live_run_in_the_tasks_own_normalisation(
    backbone: Backbone, data: DataSource, extending: bool, augment: str
) -> None:
    """A legacy file or what a task extends may bring another mean and deviation than the backbone has."""
    own = replace(backbone.preprocessing, mean=(0.0, 0.1, 0.2), std=(1.0, 0.9, 0.8))
    old = Task.create(backbone, name="old", classes=["a", "b"], memory=1, seed=3, preprocessing=own)

    def run(**arguments: Any) -> Task:
        chosen: dict[str, Any] = {"extends": [old]} if extending else {"preprocessing": own}
        task = Task.create(backbone, name="digits", classes=data.classes, memory=2, seed=0, **chosen)
        quick(task, data, steps=9, augment=augment, **arguments)
        assert task.preprocessing == own
        return task

    live, kept = run(), run(keep_traces="ram")
    for one, other in zip(kept.parameters(), live.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the trunk ran on, call by call."""
    calls: list[int] = []
    original = Backbone.trace

    def trace(backbone: Backbone, images: torch.Tensor, **more: Any) -> Any:
        calls.append(len(images))
        return original(backbone, images, **more)

    monkeypatch.setattr(Backbone, "trace", trace)
    return calls


@pytest.mark.twice
def test_the_trunk_runs_once_per_image(backbone: Backbone, data: DataSource, folder: Path, computed: list[int]) -> None:
    trained(backbone, data, keep_traces="disk", trace_dir=folder)
    assert sum(computed) == len(data.train) + len(data.validation)
    computed.clear()
    # Another task, of another regime, in other batches, with another seed.
    task = new_task(backbone, data, "head")
    quick(task, data, steps=20, batch_size=20, seed=5, keep_traces="disk", trace_dir=folder)
    tasks = [new_task(backbone, data, name=f"t{index}", memory=index) for index in range(3)]
    train_together(tasks, data, steps=6, device="cpu", augment="none", keep_traces="disk", trace_dir=folder)
    assert computed == []


class Stopping(Recorder):
    """Stops the pass before the first step when so many records are done, of those of training."""

    def __init__(self, stop: int) -> None:
        super().__init__()
        self.done = stop

    def caching(self, what: str, done: int, total: int) -> None:
        super().caching(what, done, total)
        if what == "caching traces" and total > 100 and done >= self.done:
            raise KeyboardInterrupt


@pytest.mark.twice
def test_a_pass_that_was_stopped_goes_on(
    backbone: Backbone, data: DataSource, folder: Path, out: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trunk runs once more on the images of one shard only, and the result is that of an undisturbed run."""
    monkeypatch.setattr("memtok.traces.disk.SHARD_BYTES", 64 * 2304)  # two groups of 32 images
    arguments: dict[str, Any] = {
        "keep_traces": "disk",
        "augment": "crop",
        "views": 2,
        "steps": 18,
        "validate_every": 18,
    }
    straight, expected = trained(backbone, data, trace_dir=folder.with_name("other"), **arguments)
    for stop, images in ((160, 29 + 160), (96, 96), (326, 326)):
        before = len(computed)
        with pytest.raises(KeyboardInterrupt):
            trained(backbone, data, trace_dir=folder, out=out, resume=True, progress=Stopping(stop), **arguments)
        assert sum(computed[before:]) == images
    before = len(computed)
    task, result = trained(backbone, data, trace_dir=folder, out=out, resume=True, **arguments)
    assert fingerprint(task) == fingerprint(straight)
    assert [row.get("loss") for row in result.history] == [row.get("loss") for row in expected.history]
    assert sum(computed[before:]) == 518 - (2 + 1 + 5) * 64


def test_the_pass_is_over_before_the_first_step(backbone: Backbone, data: DataSource, computed: list[int]) -> None:
    class Listener(Recorder):
        def start(self, info: Any) -> None:
            super().start(info)
            computed.clear()

    listener = Listener()
    trained(backbone, data, keep_traces="ram", progress=listener)
    assert computed == []
    count = len(data.validation)
    said = listener.said("caching")
    assert said[:2] == [("caching traces", 0, count), ("caching traces", count, count)]
    assert said[2:] == [("caching traces", min(done, 259), 259) for done in range(0, 259 + 32, 32)]


@pytest.mark.twice
def test_views(backbone: Backbone, data: DataSource, computed: list[int]) -> None:
    """Epoch e shows view e % views: what the live run shows in that epoch, so one epoch is the same up to rounding."""
    arguments: dict[str, Any] = {"augment": "crop", "steps": 9, "validate_every": 9}
    live, _ = trained(backbone, data, **arguments)
    computed.clear()
    kept, result = trained(backbone, data, keep_traces="ram", **arguments)
    for one, other in zip(kept.parameters(), live.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)
    assert result.record["traces"]["views"] == VIEWS == result.record["hyperparameters"]["views"]
    assert sum(computed) == len(data.train) + len(data.validation)  # one epoch comes to one view only
    computed.clear()
    trained(backbone, data, keep_traces="ram", views=2, **(arguments | {"steps": 36}))
    assert sum(computed) == 2 * len(data.train) + len(data.validation)


@pytest.mark.twice
@pytest.mark.parametrize("place", ["disk", "ram"])
def test_stopped_and_resumed(backbone: Backbone, data: DataSource, tmp_path: Path, place: str) -> None:
    arguments: dict[str, Any] = {"keep_traces": place, "augment": "crop", "views": 2, "save_every": 1}
    straight, expected = trained(backbone, data, trace_dir=tmp_path / "a" if place == "disk" else None, **arguments)
    out, folder = tmp_path / "digits.safetensors", tmp_path / "b" if place == "disk" else None
    for stop in (4, 9, 13, 21):  # 9: goes on with the last batch of an epoch, which is smaller
        with pytest.raises(KeyboardInterrupt):
            trained(backbone, data, trace_dir=folder, out=out, resume=True, progress=Recorder(stop), **arguments)
    task, result = trained(backbone, data, trace_dir=folder, out=out, resume=True, **arguments)
    assert fingerprint(task) == fingerprint(straight)
    assert [row.get("loss") for row in result.history] == [row.get("loss") for row in expected.history]


def test_what_must_agree_on_resuming(backbone: Backbone, data: DataSource, tmp_path: Path) -> None:
    """The place may change between sessions; views, and whether traces are rounded, may not."""
    arguments: dict[str, Any] = {"augment": "crop", "save_every": 1, "out": tmp_path / "digits.safetensors"}
    with pytest.raises(KeyboardInterrupt):
        trained(backbone, data, progress=Recorder(3), keep_traces="ram", views=2, **arguments)
    for other in ({"keep_traces": "ram", "views": 3}, {}):
        with pytest.raises(MemtokError, match="views"):
            trained(backbone, data, resume=True, **other, **arguments)
    trained(backbone, data, resume=True, keep_traces="disk", trace_dir=tmp_path / "traces", views=2, **arguments)


@pytest.mark.twice
def test_train_together(backbone: Backbone, data: DataSource, folder: Path) -> None:
    def together(**arguments: Any) -> list[TrainResult]:
        tasks = [new_task(backbone, data, name=f"t{index}", memory=index, seed=index) for index in range(3)]
        return train_together(
            tasks, data, learning_rates=[0.01, 0.02, 0.03], steps=20, batch_size=32, device="cpu", augment="none",
            **arguments,
        )  # fmt: skip

    live, built = together(), together(keep_traces="disk", trace_dir=folder)
    reused = together(keep_traces="disk", trace_dir=folder, workers=1)
    for one, other, again in zip(live, built, reused, strict=True):
        assert one.best_accuracy == other.best_accuracy
        assert fingerprint(other.model) == fingerprint(again.model)
        for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-3)
    assert reused[0].record["traces"]["reused"] == len(data.train)


@pytest.mark.twice
@pytest.mark.parametrize("regime", ["memory", "head"])
def test_bf16(backbone: Backbone, data: DataSource, folder: Path, regime: str) -> None:
    def run(**arguments: Any) -> tuple[Any, TrainResult]:
        task = new_task(backbone, data, regime)
        return task, quick(task, data, steps=9, precision="bf16", **arguments)

    live, expected = run()
    built, first = run(keep_traces="disk", trace_dir=folder)
    again, second = run(keep_traces="disk", trace_dir=folder)
    assert fingerprint(again) == fingerprint(built)
    assert second.record["traces"]["reused"] == first.record["traces"]["records"]
    assert abs(first.final_accuracy - expected.final_accuracy) <= 1 / len(data.validation)
    for a, b in zip(live.parameters(), built.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-2)  # bfloat16 has 8 bits
    with pytest.raises(
        MemtokError, match=r'expected traces with precision "float32" in .*, found "float32 under bf16"'
    ):
        trained(backbone, data, keep_traces="disk", trace_dir=folder)


@pytest.mark.twice
def test_accumulation_and_extension(backbone: Backbone, data: DataSource) -> None:
    """Parts of a batch give the gradients of the whole; what a task extends is computed from the same trace."""
    base = new_task(backbone, data, name="base-task")

    def run(**arguments: Any) -> nn.Module:
        task = new_task(backbone, data, extends=(base,), seed=1)
        quick(task, data, steps=10, keep_traces="ram", **arguments)
        return task

    for one, other in zip(run().parameters(), run(accumulate=3).parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.twice
def test_default_folder_is_found_by_later_runs(
    backbone: Backbone, data: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trained(backbone, data, keep_traces="disk")
    names = sorted(path.name for path in (tmp_path / "cache" / "memtok" / "traces").iterdir())
    assert [name.split("-")[0] for name in names] == ["train", "validation"]
    _, result = trained(backbone, data, keep_traces="disk", seed=4)
    assert result.record["traces"]["reused"] == len(data.train)
    # Other views lie elsewhere; the validation images are the same.
    _, varied = trained(backbone, data, keep_traces="disk", augment="crop", views=2)
    assert varied.record["traces"]["reused"] == 0
    assert varied.record["traces"]["validation_reused"] == len(data.validation)


def test_size_is_told_beforehand_and_the_limit_respected(backbone: Backbone, data: DataSource, folder: Path) -> None:
    record = 2304
    limit = 100 * record / 1e9
    listener = Recorder()
    _, result = trained(
        backbone, data, keep_traces="disk", trace_dir=folder, trace_limit=limit, augment="crop", views=2,
        progress=listener,
    )  # fmt: skip
    size, room = listener.said("message")
    assert size == (
        f"keeping traces ({folder}): 259 images x 2 views x 2.3 kB = 1.19 MB, and 29 validation images = 66.8 kB; the "
        "limit is 230 kB"
    )
    assert room == (
        "that is room for 71 of 518 traces and 29 of 29 of the validation; the others are computed at every step"
    )
    kinds = [kind for kind, _ in listener.calls]
    assert kinds.index("message") < kinds.index("start")
    traces = result.record["traces"]
    assert (traces["records"], traces["validation_records"]) == (71, 29)
    tight = Recorder()
    trained(backbone, data, keep_traces="ram", trace_limit=10 * record / 1e9, progress=tight)
    assert "room for 5 of 259 traces and 5 of 29" in tight.said("message")[1]


def test_nothing_is_left_behind_by_a_refusal(backbone: Backbone, data: DataSource, folder: Path, out: Path) -> None:
    """A store that does not fit is refused before the run writes or changes anything, and the lock is given back."""
    trained(backbone, data, keep_traces="disk", trace_dir=folder)
    task = new_task(backbone, data)
    before = fingerprint(task)
    other = data.only(["1", "0"])
    renamed = new_task(backbone, other)
    quick(renamed, other, steps=2, keep_traces="disk", trace_dir=folder)  # other labels, the same images
    part = DataSource(
        spec="part", name="part", classes=data.classes, train=data.train.take(50), validation=data.validation,
        test=data.test, split_kind="given",
    )  # fmt: skip
    with pytest.raises(MemtokError, match=r"expected traces with images 50 in .*, found 259; name another folder"):
        quick(task, part, steps=2, keep_traces="disk", trace_dir=folder, out=out)
    assert fingerprint(task) == before
    assert not out.with_suffix(".run").exists()
    _, result = trained(backbone, data, keep_traces="disk", trace_dir=folder)
    assert result.record["traces"]["reused"] == len(data.train)


@pytest.mark.parametrize("regime", ["head+class", "memory-shared", "memory-propagated", "memory-additive", "full"])
def test_regimes_that_have_no_trace(backbone: Backbone, data: DataSource, regime: str) -> None:
    task = new_task(backbone, data, regime)
    with pytest.raises(MemtokError, match="expected a composable task"):
        quick(task, data, keep_traces="ram")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"keep_traces": "tape"}, "expected keep_traces among ram, disk, gpu, found 'tape'"),
    ({"views": 3}, "expected views where traces are kept"),
    ({"trace_limit": 1.0}, "expected trace_limit where traces are kept"),
    ({"keep_traces": "ram", "views": 100_000_000}, "expected views of 1,000 at most, found 100,000,000"),
    ({"keep_traces": "ram", "trace_limit": 0}, "expected trace_limit as a finite number above 0"),
    ({"keep_traces": "ram", "views": 0}, "expected views as a whole number of 1 or more"),
    ({"trace_dir": "x"}, "expected trace_dir where traces are kept on disk, found keep_traces=None"),
    ({"keep_traces": "ram", "trace_dir": "x"}, "expected trace_dir where traces are kept on disk"),
    ({"keep_traces": "gpu", "device": "cpu"}, "expected a GPU to keep traces on"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_options_that_make_no_sense(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(MemtokError) as caught:
        Settings(**arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_views_need_images_that_are_varied(data: DataSource) -> None:
    with pytest.raises(MemtokError, match="expected one view where images are not varied"):
        make_plan(Settings(keep_traces="ram", augment="none", views=2), "memory", data)
    assert make_plan(Settings(keep_traces="ram", augment="none"), "memory", data).views == 1
    assert make_plan(Settings(keep_traces="ram", augment="crop"), "memory", data).views == VIEWS
    assert make_plan(Settings(augment="crop"), "memory", data).views is None


def test_one_process_only(backbone: Backbone, data: DataSource, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(keep_traces="ram", augment="none")
    plan = make_plan(settings, "memory", data)
    tasks, cpu = [new_task(backbone, data)], torch.device("cpu")
    processes = processes_for("cpu", "float32")
    monkeypatch.setattr(processes, "num_processes", 2)
    with pytest.raises(MemtokError, match="expected one process where traces are kept, found 2"):
        make_feed(tasks, data, plan, settings, processes, cpu, Progress())


def test_a_store_is_closed_when_the_run_fails(
    backbone: Backbone, data: DataSource, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemtokError("expected nothing, found this")

    with monkeypatch.context() as patch:
        patch.setattr(KeptFeed, "share_out", fail)
        with pytest.raises(MemtokError, match="found this") as first:
            trained(backbone, data, keep_traces="disk", trace_dir=folder)
    listener = Recorder()
    with pytest.raises(KeyboardInterrupt) as second:
        trained(backbone, data, keep_traces="disk", trace_dir=folder, progress=Recorder(2))
    trained(backbone, data, keep_traces="disk", trace_dir=folder, progress=listener)
    assert not [text for text in listener.said("message") if "another run" in text]
    assert first.tb is not second.tb  # kept until here, and with them all that the failed runs held
