"""The state of several tasks that train together, on disk: what going on needs, of the same tasks or of some of them.

All tasks of a state are at the same step. One file, with a checksum: `N.parameters.*`, `N.initial.*` and
`N.optimizer.*` of task number N, `pending`, and a JSON header.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtok.errors import MemtokError
from memtok.training.saved import read_saved, write_saved

KINDS = ("parameters", "initial", "optimizer")


@dataclass(frozen=True)
class TaskState:
    """One task of it: its configuration, tensors by name, lines of metrics, and the step at which it diverged."""

    config: dict[str, Any]
    parameters: dict[str, Tensor]
    initial: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    history: list[dict[str, Any]]
    diverged: int | None


@dataclass(frozen=True)
class SavedRun:
    """Tasks after `step` steps, trained for `seconds`. pending: (tasks, 2) losses and norms since the last line."""

    tasks: tuple[TaskState, ...]
    step: int
    seconds: float
    pending: tuple[Tensor, ...] = ()

    def pick(self, numbers: Sequence[int]) -> SavedRun:
        """Some of the tasks, in the given order, as the beginning of a run of their own; no time is counted twice."""
        return SavedRun(tuple(self.tasks[number] for number in numbers), self.step, 0.0)


def joined(runs: Sequence[SavedRun]) -> SavedRun:
    """The tasks of several runs, which must be at the same step, as one."""
    steps = {run.step for run in runs}
    if len(steps) != 1:
        raise MemtokError(f"expected tasks at the same step to go on together, found {sorted(steps)}; train them apart")
    return SavedRun(tuple(task for run in runs for task in run.tasks), steps.pop(), sum(run.seconds for run in runs))


def write_run(path: Path, run: SavedRun) -> None:
    """Writes all of it, atomically."""
    tensors: dict[str, Tensor] = {}
    for number, task in enumerate(run.tasks):
        for kind in KINDS:
            tensors |= {f"{number}.{kind}.{name}": value for name, value in getattr(task, kind).items()}
    if run.pending:
        tensors["pending"] = torch.stack(run.pending)
    header = {
        "configs": [task.config for task in run.tasks],
        "step": run.step,
        "seconds": run.seconds,
        "history": [task.history for task in run.tasks],
        "diverged": [task.diverged for task in run.tasks],
    }
    write_saved(path, header, tensors)


def read_run(path: Path) -> SavedRun | None:
    """What `write_run` wrote, on the CPU; None where no file is, MemtokError for another one."""
    saved = read_saved(path)
    if saved is None:
        return None
    header = saved.header
    try:
        columns = zip(header["configs"], header["history"], header["diverged"], strict=True)
        tasks = tuple(
            TaskState(
                config=dict(config),
                parameters=saved.part(f"{number}.parameters."),
                initial=saved.part(f"{number}.initial."),
                optimizer=saved.part(f"{number}.optimizer."),
                history=[dict(row) for row in history],
                diverged=diverged,
            )
            for number, (config, history, diverged) in enumerate(columns)
        )
        step, seconds = int(header["step"]), float(header["seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise MemtokError(
            f"expected the state of tasks that train together in {path}, found another; delete it to start anew"
        ) from error
    return SavedRun(tasks, step, seconds, tuple(saved.tensors.get("pending", torch.empty(0, dtype=torch.float32))))
