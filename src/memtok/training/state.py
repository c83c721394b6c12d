"""The state of a run on disk, so that a killed run goes on where it was and ends with the same tensors.

`OUT.run/` stands beside the task file `OUT.safetensors`:

    state.safetensors   parameters, optimizer, best so far, counters and history of every task: all that resuming needs
    last.safetensors    the task as it was at the last validation
    metrics.jsonl       one line per log entry and validation; tensorboard/ the same for TensorBoard
    config.json, split.json, record.json
    confusion.png, confusion.csv, confusion.json    of the best state on the validation images, at the end

Only safetensors and JSON are written and read, nothing is ever unpickled. `state.safetensors` alone is read when a run
goes on, and it has a checksum.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtok.confusion import ENDINGS
from memtok.errors import Argument, MemtokError
from memtok.folders import LOCK
from memtok.training.saved import Saved, read_saved, write_saved
from memtok.training.settings import DEFAULTS, FIXED, LOSS, TOP1

CONFUSION = "confusion"


@dataclass(frozen=True)
class RunFolder:
    """Where things lie, from the path of the task file."""

    out: Path

    @property
    def path(self) -> Path:
        return self.out.with_suffix(".run")

    @property
    def state(self) -> Path:
        return self.path / "state.safetensors"

    @property
    def lock(self) -> Path:
        """Locked while a run is at work here."""
        return self.path / LOCK

    @property
    def last(self) -> Path:
        return self.path / "last.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def split(self) -> Path:
        return self.path / "split.json"

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    def clear(self) -> None:
        """Removes what an earlier run left here; the state first, for without it nothing else counts."""
        confusion = [self.path / f"{CONFUSION}{ending}" for ending in ENDINGS]
        for path in (self.state, self.last, self.metrics, self.config, self.split, self.record, *confusion):
            path.unlink(missing_ok=True)

    def clear_remains(self) -> None:
        """Removes the temporary files of a run that was killed while it wrote."""
        for folder, name in ((self.path, "*"), (self.out.parent, glob.escape(self.out.name))):
            for path in folder.glob(f".{name}.*.part"):
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Validation:
    """One look at the validation images: accuracies in [0, 1] and the mean cross-entropy, after `step` steps.

    balanced: the mean recall of the classes, as in `Score`; None in files of version 0.1, which did not count it.
    """

    step: int
    top1: float
    top5: float
    loss: float
    balanced: float | None = None

    def row(self) -> dict[str, Any]:
        """The same as in a row of metrics and in a record."""
        return {
            "validation_top1": self.top1,
            "validation_top5": self.top5,
            "validation_balanced": self.balanced,
            "validation_loss": self.loss,
        }

    def chosen(self, select: str) -> float:
        """The number that `select` names, so that more is better; top-1 where there is no balanced one."""
        if select == LOSS:
            return -self.loss
        return self.top1 if select == TOP1 or self.balanced is None else self.balanced

    def beats(self, other: Validation | None, select: str) -> bool:
        """Whether this is better by `select`, else by lower loss; where both are equal the earlier one stays."""
        return other is None or (self.chosen(select), -self.loss) > (other.chosen(select), -other.loss)


@dataclass
class TaskState:
    """One task of a run.

    config: all that must agree when the run goes on. initial: its first values. best, last: the best and the latest
    validation. best_tensors: the parameters of the best one, on the CPU, and best_answers: what it answered, (3, V)
    int32 as of `memtok.metrics.answered`; None where version 0.1 found it. history: its lines of metrics. diverged: the
    step at which a loss or gradient was not finite. parameters, optimizer: as they were saved, by name.
    """

    config: dict[str, Any]
    initial: dict[str, Tensor]
    best: Validation | None = None
    last: Validation | None = None
    best_tensors: dict[str, Tensor] = field(default_factory=dict)
    best_answers: Tensor | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    diverged: int | None = None
    parameters: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)

    def stalled(self, patience: int | None, every: int) -> bool:
        """Whether `patience` validations, one in `every` steps, followed the best one."""
        if patience is None or self.best is None or self.last is None:
            return False
        return self.last.step - self.best.step >= patience * every

    @property
    def good(self) -> dict[str, Tensor]:
        """The values that the task gets back when it diverges."""
        return self.best_tensors or self.initial


@dataclass
class RunState:
    """Where a run of N tasks is; all are at the same step.

    step: steps done. seconds: spent in all sessions together, training_seconds: without validation and saving.
    pending: (N, 2) losses and gradient norms of every step since the last line of metrics.
    """

    tasks: list[TaskState]
    step: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    pending: list[Tensor] = field(default_factory=list)

    def pick(self, numbers: Sequence[int]) -> RunState:
        """Some of the tasks, in the given order, as the beginning of a run of their own; no time is counted twice."""
        return RunState([self.tasks[number] for number in numbers], self.step)


def joined(runs: Sequence[RunState]) -> RunState:
    """The tasks of several runs, which must be at the same step, as one."""
    steps = {run.step for run in runs}
    if len(steps) != 1:
        raise MemtokError(f"expected tasks at the same step to go on together, found {sorted(steps)}; train them apart")
    tasks = [task for run in runs for task in run.tasks]
    return RunState(tasks, steps.pop(), sum(run.seconds for run in runs), sum(run.training_seconds for run in runs))


def write_run(path: Path, run: RunState) -> None:
    """Writes all that going on needs into one file, atomically: `N.KIND.NAME` of task number N, and `pending`."""
    tensors: dict[str, Tensor] = {}
    for number, task in enumerate(run.tasks):
        kinds = {"parameters": task.parameters, "optimizer": task.optimizer}
        if not task.best:
            kinds["initial"] = task.initial
        elif task.best.step != run.step:  # else the parameters are the best ones
            kinds["best"] = task.best_tensors
        for kind, values in kinds.items():
            tensors |= {f"{number}.{kind}.{name}": value for name, value in values.items()}
        if task.best_answers is not None:
            tensors[f"{number}.answers"] = task.best_answers
    if run.pending:
        tensors["pending"] = torch.stack(run.pending)
    header = {
        "step": run.step,
        "seconds": run.seconds,
        "training_seconds": run.training_seconds,
        "tasks": [
            {
                "config": task.config,
                "best": asdict(task.best) if task.best else None,
                "last": asdict(task.last) if task.last else None,
                "history": task.history,
                "diverged": task.diverged,
            }
            for task in run.tasks
        ],
    }
    write_saved(path, header, tensors)


def read_run(path: Path) -> RunState | None:
    """What `write_run` wrote, on the CPU; None where there is no file, MemtokError for another or a damaged one."""
    saved = read_saved(path)
    if saved is None:
        return None
    if "config" in saved.header:
        saved = of_one_task(saved)
    try:
        header, step = saved.header, int(saved.header["step"])
        tasks = [read_task(saved, number, values, step) for number, values in enumerate(header["tasks"])]
        pending = list(saved.tensors.get("pending", torch.empty(0, len(tasks), 2, dtype=torch.float32)))
        run = RunState(tasks, step, float(header["seconds"]), float(header["training_seconds"]), pending)
        if any(values.shape != (len(tasks), 2) for values in pending):
            raise ValueError("pending")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MemtokError(
            f"expected the state of a run of memtok in {path}, found that of another version, or a damaged one; delete "
            "it to start anew"
        ) from error
    return run


def read_task(saved: Saved, number: int, header: Mapping[str, Any], step: int) -> TaskState:
    """Task `number` of a saved run after `step` steps."""
    best, last = (Validation(**header[key]) if header[key] else None for key in ("best", "last"))
    parameters, initial, best_tensors = (saved.part(f"{number}.{kind}.") for kind in ("parameters", "initial", "best"))
    if best and best.step == step:
        best_tensors = {name: value.clone() for name, value in parameters.items()}
    return TaskState(
        config=dict(header["config"]),
        initial=initial or {name: value.clone() for name, value in parameters.items()},
        best=best,
        last=last,
        best_tensors=best_tensors,
        best_answers=saved.tensors.get(f"{number}.answers"),
        history=[dict(row) for row in header["history"]],
        diverged=header["diverged"],
        parameters=parameters,
        optimizer=saved.part(f"{number}.optimizer."),
    )


def of_one_task(saved: Saved) -> Saved:
    """A state that `train` wrote in formats 1 and 2, which held one task, as it is written today."""
    header = dict(saved.header)
    task = {key: header.pop(key, None) for key in ("config", "best", "last", "history")} | {"diverged": None}
    tensors = {key if key == "pending" else f"0.{key}": value for key, value in saved.tensors.items()}
    if "pending" in tensors:
        tensors["pending"] = tensors["pending"].unsqueeze(1)
    return Saved(header | {"tasks": [task]}, tensors)


def check_tensors(state: TaskState, parameters: Mapping[str, Tensor], measured: Collection[str], where: str) -> None:
    """MemtokError unless a saved state has the tensors of a task with these parameters; measured: those it may have."""
    expected = {name: tuple(value.shape) for name, value in parameters.items()}
    for found in (state.parameters, state.good):
        if {name: tuple(value.shape) for name, value in found.items() if name not in measured} != expected:
            raise MemtokError(f"expected the tensors of this task in {where}, found others; delete it to start anew")


def check_same_run(
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    folder: Path,
    anew: str = f"{Argument('overwrite', True)} to start anew",
) -> None:
    """MemtokError that names the first difference, unless a saved run was configured as this one is.

    Data are held to what they are, not to what they are called; version 0.1 knew no more than the name. A setting that
    the saved run did not know yet had its default. anew: what to
    do to start anew.
    """
    left_out = "data" if "content" in found else "content"
    had = {name: DEFAULTS[name] for name in FIXED} | dict(found)
    keys = (found.keys() | expected.keys()) - {left_out}
    # What explains others comes first: a recipe its rates, a name another content.
    for key in sorted(keys, key=lambda key: (key == "content", key != "recipe", key)):
        if key == "content" and had.get(key) != expected.get(key):
            raise MemtokError(
                f"expected the images of the run in {folder} to resume it, found others under the same names (or other "
                f"labels); restore them, or {anew}",
                argument="data",
            )
        if had.get(key) != expected.get(key):
            raise MemtokError(
                f"expected the configuration of the run in {folder} to resume it, found "
                f"{shown(key, expected.get(key))} where that run has {shown(key, had.get(key))}; use the same, or "
                f"{anew}"
            )


def shown(key: str, value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return f"{Argument(key)} {text if len(text) <= 100 else text[:97] + '...'}"
