"""A run that was killed at any moment and is started again ends as an undisturbed one does, bit for bit on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import memtok
from memtok.data import DataSource, open_data
from memtok.errors import MemtokError
from memtok.training.optim import parameter_groups
from memtok.training.plan import make_plan
from memtok.training.settings import Settings
from memtok.training.state import RunFolder, RunState, TaskState, read_run, write_run
from tests.tiny import tiny_backbone
from tests.training.helpers import Recorder, new_task, quick

TIMES = ("seconds", "images_per_second")
RUN: dict[str, Any] = {"steps": 12, "log_every": 4, "validate_every": 3, "save_every": 1, "augment": "crop"}


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMES}


def end_of(out: Path) -> dict[str, Any]:
    """All that a finished run leaves, but for times: tensors as bytes, metrics, scalars of TensorBoard, record."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunFolder(out)
    found: dict[str, Any] = {}
    for path in (out, folder.last, folder.state):
        found[path.name] = {name: value.numpy().tobytes() for name, value in load_file(path).items()}
    run = read_run(folder.state)
    assert run
    (task,) = run.tasks
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert lines == task.history
    found["lines"] = [without_times(line) for line in lines]
    found["best"] = task.best
    record = json.loads(folder.record.read_text())
    found["record"] = without_times(record)
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    found["events"] = [[(event.step, event.value) for event in events.Scalars(f"train/{tag}")] for tag in ("loss",)]
    found["files"] = sorted(path.name for path in (*out.parent.iterdir(), *folder.path.iterdir()))
    return found


@pytest.mark.twice
@pytest.mark.parametrize(("regime", "recipe"), [("memory", "default"), ("full", "default"), ("memory", "paper")])
def test_stopped_after_any_step(
    backbone: memtok.Backbone, data: DataSource, tmp_path: Path, regime: str, recipe: str
) -> None:
    settings = RUN | {"recipe": recipe}
    quick(new_task(backbone, data, regime), data, out=tmp_path / "a" / "digits.safetensors", **settings)
    expected = end_of(tmp_path / "a" / "digits.safetensors")
    assert len(expected["lines"]) == 3 + 4
    out = tmp_path / "b" / "digits.safetensors"
    for stop in (1, 5, 6, 9, 12):  # before and after a validation, in the middle of a line, at the very end
        torch.rand(stop)  # the state of the global generator must not matter
        task = new_task(backbone, data, regime, seed=0 if stop == 1 else stop)  # the state has the values, not the task
        with pytest.raises(KeyboardInterrupt):
            quick(task, data, out=out, resume=True, progress=Recorder(stop), **settings)
        # What came after the saved state is written again, never twice.
        with RunFolder(out).metrics.open("a") as stream:
            stream.write('{"step": 99, "loss": 1.0}\n{"ste')
    listener = Recorder()
    task = new_task(backbone, data, regime, seed=99)
    del settings["save_every"]  # may differ between the sessions of a run, and so may the workers
    result = quick(task, data, out=out, resume=True, progress=listener, workers=2, **settings)
    assert listener.said("start")[0].start_step == 11
    assert end_of(out) == expected
    assert [without_times(row) for row in result.history] == expected["lines"]
    assert result.best_accuracy == expected["best"].top1


@pytest.mark.twice
def test_resuming_a_finished_run_gives_its_result(backbone: memtok.Backbone, data: DataSource, out: Path) -> None:
    first = quick(new_task(backbone, data), data, out=out, **RUN)
    expected = end_of(out)
    listener = Recorder()
    again = quick(new_task(backbone, data, seed=1), data, out=out, resume=True, progress=listener, **RUN)
    assert end_of(out) == expected
    assert listener.said("step") == []
    assert (again.best_step, again.best_accuracy, again.final_accuracy) == (
        first.best_step,
        first.best_accuracy,
        first.final_accuracy,
    )
    assert all(
        torch.equal(one, other) for one, other in zip(again.task.parameters(), first.task.parameters(), strict=True)
    )


@pytest.mark.twice
def test_resume_with_nothing_saved_starts_anew_and_says_so(
    backbone: memtok.Backbone, data: DataSource, tmp_path: Path
) -> None:
    quick(new_task(backbone, data), data, out=tmp_path / "a" / "digits.safetensors", **RUN)
    listener = Recorder()
    out = tmp_path / "b" / "digits.safetensors"
    quick(new_task(backbone, data), data, out=out, resume=True, progress=listener, **RUN)
    assert "starting anew" in listener.said("message")[0]
    assert end_of(out) == end_of(tmp_path / "a" / "digits.safetensors")


@pytest.fixture
def interrupted(backbone: memtok.Backbone, data: DataSource, out: Path) -> Path:
    """The task file of a run that was stopped after step 7 of 12; the state of step 6 is saved."""
    with pytest.raises(KeyboardInterrupt):
        quick(new_task(backbone, data), data, out=out, progress=Recorder(7), **RUN)
    return out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 0.5}, "found learning_rate 0.5 where that run has learning_rate 0.02"),
        ({"seed": 4}, "seed 4 where that run has seed 0"),
        ({"steps": 13}, "steps 13"),
        ({"batch_size": 8}, "batch_size 8"),
        ({"accumulate": 2}, "accumulate 2"),
        ({"recipe": "paper"}, "found clip_norm|momentum|optimizer|recipe"),
        ({"augment": "none"}, 'augment "none"'),
        ({"precision": "bf16"}, 'precision "bf16"'),
        ({"validate_every": 6}, "validate_every 6"),
    ],
)
def test_another_configuration_is_named(
    backbone: memtok.Backbone, data: DataSource, interrupted: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(MemtokError, match=words) as caught:
        quick(new_task(backbone, data), data, out=interrupted, resume=True, **(RUN | change))
    assert "\n" not in str(caught.value)
    assert read_run(RunFolder(interrupted).state).step == 6  # type: ignore[union-attr]


def test_another_task_or_data_is_named(backbone: memtok.Backbone, data: DataSource, interrupted: Path) -> None:
    other_data = open_data("digits", seed=1).only(["0", "1"])
    for task, source, words in (
        (new_task(backbone, data, "head"), data, "regime|shapes"),
        (new_task(backbone, data, memory=3), data, "shapes"),
        (new_task(backbone, data, name="other"), data, "name"),
        (new_task(tiny_backbone(seed=5), data), data, "backbone"),
        (new_task(backbone, data), other_data, "split"),
        (new_task(backbone, data, classes=("1", "0")), data, "classes"),
    ):
        with pytest.raises(MemtokError, match=f"found ({words}) .* where that run has"):
            quick(task, source, out=interrupted, resume=True, **RUN)


def test_a_run_with_progress_is_not_lost_by_mistake(
    backbone: memtok.Backbone, data: DataSource, interrupted: Path
) -> None:
    with pytest.raises(MemtokError, match=r"found one at step 6 of 12 in .*digits\.run; resume=True .* overwrite=True"):
        quick(new_task(backbone, data), data, out=interrupted, **RUN)
    listener = Recorder()
    quick(new_task(backbone, data), data, out=interrupted, overwrite=True, progress=listener, **RUN)
    assert listener.said("start")[0].start_step == 0
    assert len(end_of(interrupted)["lines"]) == 7
    with pytest.raises(MemtokError, match=r"found one at step 12 of 12 in .*digits\.run"):  # nor a finished one
        quick(new_task(backbone, data), data, out=interrupted, **(RUN | {"steps": 3}))
    assert len(end_of(interrupted)["lines"]) == 7
    quick(new_task(backbone, data), data, out=interrupted, overwrite=True, **(RUN | {"steps": 3}))
    assert len(end_of(interrupted)["lines"]) == 2


@pytest.mark.twice
def test_a_new_run_leaves_nothing_of_the_old_one_in_its_folder(
    backbone: memtok.Backbone, data: DataSource, out: Path
) -> None:
    quick(new_task(backbone, data), data, out=out, **RUN)
    old = out.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        quick(new_task(backbone, data), data, out=out, overwrite=True, progress=Recorder(1), **(RUN | {"seed": 1}))
    folder = RunFolder(out)
    assert not folder.last.exists()
    assert not folder.record.exists()
    assert folder.metrics.read_text() == ""
    assert out.read_bytes() == old  # until there is a better one


def test_a_state_that_is_none_is_named(backbone: memtok.Backbone, data: DataSource, interrupted: Path) -> None:
    state = RunFolder(interrupted).state
    whole = state.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"junk" * 100, interrupted.read_bytes()):
        state.write_bytes(content)
        with pytest.raises(MemtokError, match=r"expected the state of a run of memtok .*state\.safetensors"):
            quick(new_task(backbone, data), data, out=interrupted, resume=True, **RUN)
    quick(new_task(backbone, data), data, out=interrupted, overwrite=True, **RUN)


def test_state_holds_every_tensor_of_the_optimizer(
    backbone: memtok.Backbone, data: DataSource, interrupted: Path
) -> None:
    names = set(load_file(RunFolder(interrupted).state))
    own = {name for name, _ in new_task(backbone, data).named_parameters()}
    assert names >= {f"0.parameters.{name}" for name in own}
    assert names >= {f"0.optimizer.{kind}.{name}" for kind in ("step", "exp_avg", "exp_avg_sq") for name in own}
    with safe_open(RunFolder(interrupted).state, framework="pt") as stream:
        assert set(stream.metadata()) == {"memtok-run", "sha256"}


def test_remains_of_a_kill_while_writing_are_removed(
    backbone: memtok.Backbone, data: DataSource, interrupted: Path
) -> None:
    remains = [interrupted.parent / ".digits.safetensors.abc.part", RunFolder(interrupted).path / ".state.x.part"]
    foreign = interrupted.parent / ".other.safetensors.abc.part"
    for path in (*remains, foreign):
        path.write_bytes(b"half")
    quick(new_task(backbone, data), data, out=interrupted, resume=True, **RUN)
    assert not any(path.exists() for path in remains)
    assert foreign.exists()


def test_decay_spares_tokens_memory_and_vectors(backbone: memtok.Backbone, data: DataSource) -> None:
    plan = make_plan(Settings(weight_decay=0.3), "memory", data)
    for regime, spared in (
        ("memory", {"class_tokens", "memory", "head.bias"}),
        ("full", {"vit.cls_token", "vit.pos_embed", "vit.head.bias", "vit.norm.weight", "vit.blocks.0.norm1.bias"}),
    ):
        trainable = new_task(backbone, data, regime)
        by_name = dict(trainable.named_parameters())
        decay = {
            id(parameter): group["weight_decay"]
            for group in parameter_groups(trainable, plan)
            for parameter in group["params"]
        }
        assert set(decay) == {id(parameter) for parameter in by_name.values()}
        assert {decay[id(by_name[name])] for name in spared} == {0.0}
        assert decay[id(by_name["vit.head.weight" if regime == "full" else "head.weight"])] == 0.3


def test_a_state_cannot_hold_what_json_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_run(tmp_path / "s", RunState([TaskState({}, {}, history=[{"loss": float("nan")}])]))
    assert list(tmp_path.iterdir()) == []


CHILD = """
import os
import signal
import sys
from pathlib import Path
from tests.training.test_resume import LONG, kill_backbone, kill_data
from tests.tiny import tiny_backbone
from tests.training.helpers import Recorder, new_task, quick

last, calls = int(sys.argv[2]), int(sys.argv[3])

def count(*_):
    global calls
    calls -= 1
    if calls < 0:
        os.kill(os.getpid(), signal.SIGKILL)

class Doomed(Recorder):
    def step(self, step):
        if step == last:
            sys.setprofile(count)

quick(
    new_task(kill_backbone(), kill_data()), kill_data(), out=Path(sys.argv[1]), resume=True, progress=Doomed(), **LONG
)
"""  # killed so many calls and returns after that step, in the midst of whatever it does then
LONG: dict[str, Any] = {"steps": 40, "log_every": 4, "validate_every": 3, "save_every": 2, "augment": "crop"}


def kill_backbone() -> memtok.Backbone:
    torch.manual_seed(0)
    return tiny_backbone()


def kill_data() -> DataSource:
    return open_data("digits").only(["0", "1"])


@pytest.mark.twice
@pytest.mark.slow
def test_killed_at_a_random_moment(root: Path, tmp_path: Path, print_seed: Callable[[int | None], int]) -> None:
    generator = torch.Generator().manual_seed(print_seed(None))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    undisturbed, out = tmp_path / "a" / "digits.safetensors", tmp_path / "b" / "digits.safetensors"

    def train(last: int, calls: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CHILD, str(out), str(last), str(calls)]
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)

    last, calls = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((3, 30), (0, 10_000)))
    killed = train(last, calls)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = read_run(RunFolder(out).state)
    assert run
    print(f"killed {calls} calls after step {last}, when the state of step {run.step} was saved")
    ended = train(0, 0)
    assert ended.returncode == 0, ended.stderr
    with torch.random.fork_rng():
        quick(new_task(kill_backbone(), kill_data()), kill_data(), out=undisturbed, **LONG)
    assert end_of(out) == end_of(undisturbed)
