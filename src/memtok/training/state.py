"""The state of a run on disk, so that a killed run goes on where it was and ends with the same tensors.

`OUT.run/` stands beside the task file `OUT.safetensors`:

    state.safetensors   parameters, optimizer, best so far, counters and history: all that resuming needs
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
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtok.confusion import ENDINGS
from memtok.errors import Argument, MemtokError
from memtok.training.saved import Saved, read_saved, write_saved

CONFUSION = "confusion"
SELECT = TOP1, BALANCED, LOSS = "top1", "balanced", "loss"


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

    def chosen(self, select: str) -> float:
        """The number that `select` names, one of `SELECT`, so that more is better; top-1 stands for no balanced one."""
        if select == LOSS:
            return -self.loss
        return self.top1 if select == TOP1 or self.balanced is None else self.balanced

    def beats(self, other: Validation | None, select: str) -> bool:
        """Whether this is better by `select`, else by lower loss; where both are equal the earlier one stays."""
        return other is None or (self.chosen(select), -self.loss) > (other.chosen(select), -other.loss)


@dataclass
class RunState:
    """Where a run is.

    step: steps done. seconds: spent in all sessions together, training_seconds: without validation and saving.
    best, last: the best and the latest validation. best_tensors: the parameters of the best one, on the CPU, and
    best_answers: what it answered, (3, N) int32 as of `memtok.metrics.answered`; None where version 0.1 found it.
    history: the lines of metrics.jsonl. pending: (2,) loss and gradient norm of every step since the last line.
    """

    step: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    best: Validation | None = None
    last: Validation | None = None
    best_tensors: dict[str, Tensor] = field(default_factory=dict)
    best_answers: Tensor | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    pending: list[Tensor] = field(default_factory=list)

    def header(self) -> dict[str, Any]:
        """What of it goes into the JSON header."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "training_seconds": self.training_seconds,
            "best": asdict(self.best) if self.best else None,
            "last": asdict(self.last) if self.last else None,
            "history": self.history,
        }


def write_state(
    path: Path,
    state: RunState,
    config: Mapping[str, Any],
    parameters: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
) -> None:
    """Writes all that resuming needs into one file, atomically."""
    tensors = {f"parameters.{name}": value for name, value in parameters.items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.items()}
    if state.best and state.best.step != state.step:  # else the parameters are the best ones
        tensors |= {f"best.{name}": value for name, value in state.best_tensors.items()}
    if state.best_answers is not None:
        tensors["answers"] = state.best_answers
    if state.pending:
        tensors["pending"] = torch.stack(state.pending)
    write_saved(path, {"config": config, **state.header()}, tensors)


def read_header(path: Path) -> dict[str, Any] | None:
    """The JSON header of a saved state, None if there is no file; MemtokError if it is something else, or damaged."""
    saved = read_saved(path)
    return None if saved is None else saved.header


def read_state(
    path: Path, saved: Saved, parameters: Mapping[str, Tensor]
) -> tuple[RunState, dict[str, Tensor], dict[str, Tensor]]:
    """The state, the parameters and the optimizer's tensors of what was read from `path`, on the CPU.

    `parameters` are those of the task to train: names and shapes must be the same.
    """
    header, own, optimizer = saved.header, saved.part("parameters."), saved.part("optimizer.")
    best_tensors, pending = (
        saved.part("best."),
        list(saved.tensors.get("pending", torch.empty(0, 2, dtype=torch.float32))),
    )
    best_answers = saved.tensors.get("answers")
    others = sum(name in saved.tensors for name in ("pending", "answers"))
    foreign = len(saved.tensors) - len(own) - len(optimizer) - len(best_tensors) - others
    try:
        best, last = (Validation(**header[key]) if header[key] else None for key in ("best", "last"))
        history = [dict(row) for row in header["history"]]
        step, seconds, training_seconds = header["step"], header["seconds"], header["training_seconds"]
    except (KeyError, TypeError, ValueError) as error:
        raise MemtokError(f"expected a whole state in {path}, found a damaged one; delete it to start anew") from error
    if best and best.step == step:
        best_tensors = {name: value.clone() for name, value in own.items()}
    expected = {name: tuple(value.shape) for name, value in parameters.items()}
    for found in (own, best_tensors) if best else (own,):
        if foreign or {name: tuple(value.shape) for name, value in found.items()} != expected:
            raise MemtokError(f"expected the tensors of this task in {path}, found others; delete it to start anew")
    state = RunState(
        step=step,
        seconds=seconds,
        training_seconds=training_seconds,
        best=best,
        last=last,
        best_tensors=best_tensors,
        best_answers=best_answers,
        history=history,
        pending=pending,
    )
    return state, own, optimizer


def check_same_run(
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    folder: Path,
    anew: str = f"{Argument('overwrite', True)} to start anew",
) -> None:
    """MemtokError that names the first difference, unless a saved run was configured as this one is.

    Data are held to what they are, not to what they are called; version 0.1 knew no more than the name. anew: what to
    do to start anew.
    """
    left_out = "data" if "content" in found else "content"
    keys = (found.keys() | expected.keys()) - {left_out}
    for key in sorted(keys, key=lambda key: (key == "content", key)):  # what explains another content comes first
        if key == "content" and found.get(key) != expected.get(key):
            raise MemtokError(
                f"expected the images of the run in {folder} to resume it, found others under the same names (or other "
                f"labels); restore them, or {anew}",
                argument="data",
            )
        if found.get(key) != expected.get(key):
            raise MemtokError(
                f"expected the configuration of the run in {folder} to resume it, found "
                f"{shown(key, expected.get(key))} where that run has {shown(key, found.get(key))}; use the same, or "
                f"{anew}"
            )


def shown(key: str, value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return f"{Argument(key)} {text if len(text) <= 100 else text[:97] + '...'}"


def first_non_finite(values: Tensor) -> int | None:
    """The first row of (n, k) numbers in which one is not finite."""
    for row, numbers in enumerate(values.tolist()):
        if not all(math.isfinite(number) for number in numbers):
            return row
    return None
