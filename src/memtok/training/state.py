"""The state of a run on disk, so that a killed run goes on where it was and ends with the same tensors.

`OUT.run/` stands beside the task file `OUT.safetensors`:

    state.safetensors   parameters, optimizer, best so far, counters and history: all that resuming needs
    last.safetensors    the task as it was at the last validation
    metrics.jsonl       one line per log entry and validation; tensorboard/ the same for TensorBoard
    config.json, split.json, record.json

Only safetensors and JSON are written and read, nothing is ever unpickled.
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from memtok.errors import MemtokError
from memtok.files import atomic_write

FORMAT = 1


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
        for path in (self.state, self.last, self.metrics, self.config, self.split, self.record):
            path.unlink(missing_ok=True)

    def clear_remains(self) -> None:
        """Removes the temporary files of a run that was killed while it wrote."""
        for folder, name in ((self.path, "*"), (self.out.parent, glob.escape(self.out.name))):
            for path in folder.glob(f".{name}.*.part"):
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Validation:
    """One look at the validation images: accuracies in [0, 1] and the mean cross-entropy, after `step` steps."""

    step: int
    top1: float
    top5: float
    loss: float

    def beats(self, other: Validation | None) -> bool:
        """Whether this is the better one: higher top-1, else lower loss; where both are equal the earlier one stays."""
        return other is None or (self.top1, -self.loss) > (other.top1, -other.loss)


@dataclass
class RunState:
    """Where a run is.

    step: steps done. seconds: spent in all sessions together, training_seconds: without validation and saving.
    best, last: the best and the latest validation. best_tensors: the parameters of the best one, on the CPU.
    history: the lines of metrics.jsonl. pending: (2,) loss and gradient norm of every step since the last line.
    """

    step: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    best: Validation | None = None
    last: Validation | None = None
    best_tensors: dict[str, Tensor] = field(default_factory=dict)
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
    if state.pending:
        tensors["pending"] = torch.stack(state.pending)
    tensors = {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}
    header = {"format": FORMAT, "config": config, **state.header()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"memtok-run": json.dumps(header, allow_nan=False)})


def read_header(path: Path) -> dict[str, Any] | None:
    """The JSON header of a saved state, None if there is no file; MemtokError if it is something else."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stream:
            header = json.loads((stream.metadata() or {})["memtok-run"])
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']!r}")
        return dict(header)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MemtokError(
            f"expected the state of a run of memtok (format {FORMAT}) in {path}, found something else "
            f"({' '.join(str(error).split())}); delete it, or start anew with overwrite"
        ) from error


def read_state(
    path: Path, header: Mapping[str, Any], parameters: Mapping[str, Tensor]
) -> tuple[RunState, dict[str, Tensor], dict[str, Tensor]]:
    """The state, the parameters and the optimizer's tensors of `path`, on the CPU.

    `parameters` are those of the task to train: names and shapes must be the same.
    """
    with safe_open(path, framework="pt") as stream:
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a mapping

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): tensors.pop(key) for key in sorted(tensors) if key.startswith(prefix)}

    own, optimizer, best_tensors = part("parameters."), part("optimizer."), part("best.")
    pending = list(tensors.pop("pending", torch.empty(0, 2, dtype=torch.float32)))
    try:
        best, last = (Validation(**header[key]) if header[key] else None for key in ("best", "last"))
        history = [dict(row) for row in header["history"]]
        step, seconds, training_seconds = header["step"], header["seconds"], header["training_seconds"]
        finished = step == header["config"]["steps"]
    except (KeyError, TypeError, ValueError) as error:
        raise MemtokError(f"expected a whole state in {path}, found a damaged one; overwrite it") from error
    if finished and not (best and last):
        raise MemtokError(f"expected the best and the last state in {path}, found none; start anew with overwrite")
    if best and best.step == step:
        best_tensors = {name: value.clone() for name, value in own.items()}
    expected = {name: tuple(value.shape) for name, value in parameters.items()}
    for found in (own, best_tensors) if best else (own,):
        if tensors or {name: tuple(value.shape) for name, value in found.items()} != expected:
            raise MemtokError(f"expected the tensors of this task in {path}, found others; start anew with overwrite")
    state = RunState(
        step=step,
        seconds=seconds,
        training_seconds=training_seconds,
        best=best,
        last=last,
        best_tensors=best_tensors,
        history=history,
        pending=pending,
    )
    return state, own, optimizer


def check_same_run(
    found: Mapping[str, Any], expected: Mapping[str, Any], folder: Path, anew: str = "overwrite to start anew"
) -> None:
    """MemtokError that names the first difference, unless a saved run was configured as this one is.

    anew: what to do to start anew.
    """
    for key in sorted(found.keys() | expected.keys()):
        if found.get(key) != expected.get(key):
            raise MemtokError(
                f"expected the configuration of the run in {folder} to resume it, found "
                f"{shown(key, expected.get(key))} where that run has {shown(key, found.get(key))}; use the same, or "
                f"{anew}"
            )


def shown(key: str, value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return f"{key} {text if len(text) <= 100 else text[:97] + '...'}"


def first_non_finite(values: Tensor) -> int | None:
    """The first row of (n, k) numbers in which one is not finite."""
    for row, numbers in enumerate(values.tolist()):
        if not all(math.isfinite(number) for number in numbers):
            return row
    return None
