"""Steps of a run only give the GPU work: nothing waits for what it has not computed yet, and the result is the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.training.device import moved, processes_for
from memtok.training.feed import make_feed
from memtok.training.plan import make_plan
from memtok.training.progress import Progress
from memtok.training.regimes import frozen_parts
from memtok.training.settings import Settings
from memtok.training.trainer import Trainer
from tests.training.helpers import new_task, quick

SOME = 50 * 2304 / 1e9  # gigabytes for 50 traces of the 259; the other images are computed at every step

PLACES: list[dict[str, Any]] = [
    {},
    {"keep_traces": "gpu"},
    {"keep_traces": "ram"},
    {"keep_traces": "disk"},
    {"keep_traces": "gpu", "trace_limit": SOME},
    {"keep_traces": "ram", "trace_limit": SOME},
]


@contextmanager
def waiting_is_an_error(on: bool) -> Iterator[None]:
    """While the block runs, torch raises an error where the processor waits for the GPU."""
    if not on:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def steps(
    backbone: Backbone, data: DataSource, device: str, *, epochs: int = 3, **arguments: Any
) -> tuple[int, torch.Tensor]:
    """Some epochs, on a GPU without waiting from the second on; the number of steps, and their losses (steps,)."""
    settings = Settings(epochs=epochs, batch_size=32, augment="none", device=device, workers=0, **arguments)
    task = new_task(backbone, data)
    with ExitStack() as stack:
        processes = processes_for(settings.device, settings.precision)
        place = processes.device
        stack.enter_context(moved([task, *frozen_parts(task)], place))
        plan = make_plan(settings, task.regime, data)
        feed = make_feed([task], data, plan, settings, processes, place, Progress())
        stack.enter_context(closing(feed))
        trainer = Trainer([task], [plan], processes, place)
        feed.prepare(0)
        batches = feed.training(0)
        found = []
        for number in range(plan.steps):
            with waiting_is_an_error(device == "cuda" and number >= plan.steps_per_epoch):
                batch, labels, _ = next(batches)
                found.append(trainer.step(number, batch, labels)[0, 0])
        assert next(batches, None) is None
        return plan.steps, torch.stack(found).cpu()


@pytest.mark.parametrize("arguments", [place for place in PLACES if place.get("keep_traces") != "gpu"], ids=str)
def test_the_steps_that_are_looked_at(
    backbone: Backbone, data: DataSource, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    """The same on the CPU, where nobody waits: these are three whole epochs, and kept traces change next to nothing."""
    more = {"trace_dir": tmp_path / "traces"} if arguments.get("keep_traces") == "disk" else {}
    count, losses = steps(backbone, data, "cpu", **arguments, **more)
    assert count == 27
    _, live = steps(backbone, data, "cpu")
    torch.testing.assert_close(losses, live, rtol=1e-3, atol=1e-3)


# torch says once that its search for such places is a prototype.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.gpu
@pytest.mark.parametrize("arguments", PLACES, ids=str)
def test_no_step_waits_for_the_gpu(
    backbone: Backbone, data: DataSource, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    more = {"trace_dir": tmp_path / "traces"} if arguments.get("keep_traces") == "disk" else {}
    count, losses = steps(backbone, data, "cuda", **arguments, **more)
    assert count == 27
    assert losses.isfinite().all()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.gpu
def test_waiting_would_be_noticed() -> None:
    """The test above would not pass on torch that does not look."""
    value = torch.ones(3, device="cuda")
    with waiting_is_an_error(True), pytest.raises(RuntimeError, match="synchroniz"):
        value.sum().item()
    with waiting_is_an_error(True), pytest.raises(RuntimeError, match="synchroniz"):
        torch.arange(3).to("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("arguments", PLACES[1:], ids=str)
def test_on_a_gpu_nearly_as_a_live_run(
    backbone: Backbone, data: DataSource, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    """Wherever traces are kept, and whether they are found or computed, the GPU is given those of the batch."""
    more = {"trace_dir": tmp_path / "traces"} if arguments["keep_traces"] == "disk" else {}
    live, kept = new_task(backbone, data), new_task(backbone, data)
    quick(live, data, device="cuda", steps=24, batch_size=32)
    quick(kept, data, device="cuda", steps=24, batch_size=32, **arguments, **more)
    for one, other in zip(kept.parameters(), live.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)
