"""The sizes of a run of the benchmarks."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from typing import Any

from memtok.errors import MemtokError
from memtok_benchmarks.timing import LEAST_ROUNDS, check_rounds

TINY = "tiny"  # a model of two layers, not of timm, to check quickly that everything runs

ROWS = (
    "training",
    "memory",
    "inference",
    "readouts",
    "reading",
    "export",
    "folder",
    "sweep",
    "traces",
    "loading",
    "compile",
    "files",
    "many",
    "throughput",
    "growth",
)  # see memtok_benchmarks.rows
POINTS = ("few", "many")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that all contenders share.

    model: a timm name, or `tiny`; its weights are drawn from `seed`; times do not depend on them. image_size:
    pixels, None for the model's own. batch: images per pass. rounds: timed runs of each contender, five or more.
    training_cells, serving_cells: memory cells of a task in the rows of training and of inference. tasks: in the rows
    of inference. readers: tasks in the row `readouts`. photographs: in the row `folder`, whose run has `steps` steps,
    those of the default recipe if None. configurations: of the sweep. models: how many separate models, or adapters,
    are measured where a peer needs one per task; more are extrapolated. many: tasks in the row `many`. points: of the
    row `growth`, few or many.
    """

    model: str = "vit_base_patch32_224"
    image_size: int | None = None
    batch: int = 32
    threads: int = 0
    rounds: int = LEAST_ROUNDS
    device: str = "cpu"
    precision: str = "float32"
    seed: int = 0
    classes: int = 100
    training_cells: int = 10
    serving_cells: int = 5
    tasks: tuple[int, ...] = (10, 100, 1000)
    readers: tuple[int, ...] = (100, 1000)
    photographs: int = 2000
    steps: int | None = None
    configurations: int = 24
    models: int = 10
    many: int = 1000
    points: str = "few"

    def __post_init__(self) -> None:
        check_rounds(self.rounds)
        if self.batch < 1 or (self.image_size is not None and self.image_size < 1):
            raise MemtokError(
                f"expected a batch and an image size of 1 or more, found {self.batch} and {self.image_size}; change it",
                argument="batch" if self.batch < 1 else "image_size",
            )
        object.__setattr__(self, "threads", self.threads or usable_cores())
        for name in ("tasks", "readers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists

    def asked(self, bound: float | None) -> float | None:
        """A bound of the project, which is stated for these sizes on two CPU cores in float32; None for any others."""
        free = ("threads", "rounds", "seed", "points", "models", "image_size")
        usual = all(getattr(self, field.name) == field.default for field in fields(self) if field.name not in free)
        return bound if usual and self.image_size in (None, 224) else None

    def to_json(self) -> dict[str, Any]:
        """As JSON has it; `Sizes(**value)` gives it back."""
        return {**asdict(self), "tasks": list(self.tasks), "readers": list(self.readers)}


def quick_sizes(**changes: Any) -> Sizes:
    """Sizes with which everything runs in seconds; the times are meaningless."""
    quick: dict[str, Any] = {
        "model": TINY,
        "batch": 4,
        "classes": 4,
        "training_cells": 2,
        "serving_cells": 1,
        "tasks": (2, 3),
        "readers": (2, 3),
        "photographs": 40,
        "steps": 4,
        "configurations": 3,
        "models": 2,
        "many": 6,
    }
    return Sizes(**(quick | changes))
