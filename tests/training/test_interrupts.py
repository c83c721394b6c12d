"""Ctrl-C and SIGTERM: the step is finished and saved first, and the run goes on from there as if nothing had been."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import memtok
from memtok.data import DataSource
from memtok.errors import MemtokError
from memtok.training import Progress, train_together
from memtok.training.state import RunFolder, read_run
from memtok.training.trainer import Trainer
from tests.tiny import bytes_of
from tests.training.helpers import Recorder, new_task, quick
from tests.training.test_resume import end_of

# No state between the first one and the validation at step 4, but for what a signal saves.
RUN: dict[str, Any] = {"steps": 8, "log_every": 2, "validate_every": 4, "augment": "crop", "save_every": 100}


class Signals(Recorder):
    """Sends signals to this process when a step is done, and once to the validation."""

    def __init__(self, at: dict[int, list[signal.Signals]]) -> None:
        super().__init__()
        self.at = at

    def step(self, step: int) -> None:
        super().step(step)
        for number in self.at.get(step, []):
            signal.raise_signal(number)


class Terminated(BaseException):
    """What the handler of SIGTERM raises in these tests."""


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Those that a terminal's program has, whatever shell started the tests; and a SIGTERM that ends no test run."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, terminate)
    yield {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: terminate}
    for number, handler in before.items():
        signal.signal(number, handler)


def saved_step(out: Path) -> int:
    run = read_run(RunFolder(out).state)
    assert run
    return run.step


@pytest.mark.twice
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
@pytest.mark.parametrize("regime", ["memory", "full"])
def test_a_signal_waits_until_the_step_is_saved(
    backbone: memtok.Backbone,
    data: DataSource,
    tmp_path: Path,
    handlers: dict[int, Any],
    regime: str,
    number: signal.Signals,
    error: type[BaseException],
) -> None:
    undisturbed = tmp_path / "a" / "digits.safetensors"
    quick(new_task(backbone, data, regime), data, out=undisturbed, **RUN)
    out = tmp_path / "b" / "digits.safetensors"
    for stop in (1, 3, 4, 7):  # 4: a validation is due
        with pytest.raises(error):
            quick(
                new_task(backbone, data, regime), data, out=out, resume=True, progress=Signals({stop: [number]}), **RUN
            )
        assert saved_step(out) == stop
        assert {one: signal.getsignal(one) for one in handlers} == handlers
        if stop == 3:
            with pytest.raises(MemtokError, match="found one at step 3 of 8"):
                quick(new_task(backbone, data, regime), data, out=out, **RUN)
    quick(new_task(backbone, data, regime), data, out=out, resume=True, **RUN)
    assert end_of(out) == end_of(undisturbed)


@pytest.mark.twice
@pytest.mark.parametrize("stop", [4, 8])
def test_a_signal_breaks_a_validation_off(
    backbone: memtok.Backbone, data: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    undisturbed, out = tmp_path / "a" / "digits.safetensors", tmp_path / "b" / "digits.safetensors"
    quick(new_task(backbone, data), data, out=undisturbed, **RUN)
    original, batches = Trainer.shares, 0

    def shares(self: Trainer, given: Any) -> Any:
        nonlocal batches
        for batch in original(self, given):
            batches += 1
            if batches == 2 * (stop // 4):  # its second batch
                signal.raise_signal(signal.SIGINT)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "shares", shares)
        with pytest.raises(KeyboardInterrupt):
            quick(new_task(backbone, data), data, out=out, **RUN)
    assert batches == 2 * (stop // 4)
    assert saved_step(out) == stop
    listener = Recorder()
    quick(new_task(backbone, data), data, out=out, resume=True, progress=listener, **RUN)
    assert listener.said("validation")[0][0]["step"] == stop
    assert end_of(out) == end_of(undisturbed)


def test_a_second_signal_does_not_wait(backbone: memtok.Backbone, data: DataSource, out: Path) -> None:
    listener = Signals({3: [signal.SIGINT, signal.SIGINT]})
    with pytest.raises(KeyboardInterrupt):
        quick(new_task(backbone, data), data, out=out, progress=listener, **RUN)
    assert saved_step(out) == 0


@pytest.mark.twice
def test_a_handler_that_returns_lets_the_run_go_on(backbone: memtok.Backbone, data: DataSource, tmp_path: Path) -> None:
    undisturbed, out = tmp_path / "a" / "digits.safetensors", tmp_path / "b" / "digits.safetensors"
    quick(new_task(backbone, data), data, out=undisturbed, **RUN)
    saved: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: saved.append(saved_step(out)))
    quick(new_task(backbone, data), data, out=out, progress=Signals({3: [signal.SIGTERM]}), **RUN)
    assert saved == [3]
    assert end_of(out) == end_of(undisturbed)


def test_without_a_file_nothing_waits(backbone: memtok.Backbone, data: DataSource) -> None:
    listener = Signals({3: [signal.SIGINT]})
    with pytest.raises(KeyboardInterrupt):
        quick(new_task(backbone, data), data, progress=listener, **RUN)
    assert listener.said("log")[-1]["step"] == 2


@pytest.mark.twice
def test_a_signal_in_training_from_kept_traces(backbone: memtok.Backbone, data: DataSource, tmp_path: Path) -> None:
    traces: dict[str, Any] = {"keep_traces": "disk", "trace_dir": tmp_path / "traces"}
    undisturbed, out = tmp_path / "a" / "digits.safetensors", tmp_path / "b" / "digits.safetensors"
    quick(
        new_task(backbone, data), data, out=undisturbed, **RUN, **(traces | {"keep_traces": "ram", "trace_dir": None})
    )
    with pytest.raises(KeyboardInterrupt):
        quick(new_task(backbone, data), data, out=out, progress=Signals({3: [signal.SIGINT]}), **RUN, **traces)
    assert saved_step(out) == 3
    task = new_task(backbone, data)
    quick(task, data, out=out, resume=True, **RUN, **traces)
    expected = memtok.load_task(undisturbed, backbone)
    assert bytes_of(memtok.load_task(out, backbone)) == bytes_of(expected)


@pytest.mark.twice
def test_tasks_that_train_together_are_saved_too(backbone: memtok.Backbone, data: DataSource, tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    arguments: dict[str, Any] = {"steps": 6, "batch_size": 8, "augment": "crop", "device": "cpu"}

    def end(**more: Any) -> list[dict[str, bytes]]:
        tasks = [new_task(backbone, data, "head", name=name) for name in ("one", "two")]
        train_together(tasks, data, **(arguments | more))
        return [bytes_of(task) for task in tasks]

    with pytest.raises(KeyboardInterrupt):
        end(state=state, progress=Signals({4: [signal.SIGINT]}))
    saved = read_run(state)
    assert saved
    assert saved.step == 4
    assert end(state=state) == end()


def test_handlers_belong_to_the_main_thread(backbone: memtok.Backbone, data: DataSource, out: Path) -> None:
    found: list[Any] = []

    class Looking(Progress):
        def step(self, step: int) -> None:
            found.append(signal.getsignal(signal.SIGINT))

    def work() -> None:
        quick(new_task(backbone, data), data, out=out, progress=Looking(), **(RUN | {"steps": 2}))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler] * 2
