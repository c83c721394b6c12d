"""What a training run gives back, and the record of it that goes into the task file."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memtok.data.images import LeftOut
from memtok.data.recorded import recorded_spec
from memtok.errors import MemtokError
from memtok.intervals import Right
from memtok.metrics import Score
from memtok.task import Task
from memtok.training.regimes import FullModel, Trainable, count_parameters
from memtok.training.setup import Setup
from memtok.training.state import RunState, Validation

if TYPE_CHECKING:
    from memtok.training.head_alone import HeadAlone


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished run. Accuracies are top-1 on the validation part, in [0, 1]; balanced ones are mean recalls there.

    model: the Task or FullModel that was trained, with the best state loaded. steps: steps done; best_step: of the
    best state. best_accuracy, final_accuracy: of the best and of the last state, and so best_balanced, final_balanced.
    score: what the best state answered on the validation images, with the recall of each class and the confusion
    matrix. Balanced ones and score are None where version 0.1 found the state. history: the rows of metrics.jsonl.
    seconds: in all, over all sessions; images_per_second: while training, validation left out. left_out: what could
    not be read, (path, reason) each; skipped_images: the paths alone. out: the task file, None if nothing was written.
    record: as in the task file.
    diverged_at: the step whose loss or gradient was not finite, of tasks trained together; `train` raises instead.
    validation_right: (validation images,) bool, which were answered right, of tasks trained together in one process.
    head_alone: what a head alone gives on the same images, None where that was not looked at.
    """

    model: Trainable
    steps: int
    best_step: int
    best_accuracy: float
    final_accuracy: float
    best_balanced: float | None
    final_balanced: float | None
    history: list[dict[str, Any]] = field(repr=False)
    seconds: float
    images_per_second: float
    trainable_parameters: int
    total_parameters: int
    left_out: tuple[LeftOut, ...]
    split_digest: str
    out: Path | None
    record: dict[str, Any] = field(repr=False)
    score: Score | None = field(default=None, repr=False)
    diverged_at: int | None = None
    validation_right: Right | None = field(default=None, repr=False, compare=False)
    head_alone: HeadAlone | None = None

    @property
    def warnings(self) -> list[str]:
        """What the accuracy of the best state hides: classes that it never answers right, one answer for all images."""
        return [] if self.score is None else self.score.warnings()

    @property
    def skipped_images(self) -> tuple[str, ...]:
        """The paths of what could not be read."""
        return tuple(one.path for one in self.left_out)

    @property
    def task(self) -> Task:
        """The trained task; MemtokError after regime `full`, which has a model instead."""
        if isinstance(self.model, FullModel):
            raise MemtokError("expected a task, found a whole model (regime 'full'); use result.model")
        return self.model


def make_record(setup: Setup, state: RunState, number: int, stored: Validation) -> dict[str, Any]:
    """How task `number` was trained, JSON-able: data, numbers, versions and metrics, and nothing of the machine.

    stored: the validation of the state that the record goes with, the best or the last one.
    """
    trainable, data, plan = setup.tasks[number], setup.data, setup.plans[number]
    diverged = state.tasks[number].diverged
    trained, total = count_parameters(trainable)
    seen = plan.images_seen(state.step)
    metrics = {"step": stored.step, **stored.row(), "validation_images": plan.validation_images}
    hyperparameters = plan.to_dict()
    return {
        "regime": trainable.regime,
        "data": {
            "spec": recorded_spec(data.spec),
            "name": data.name,
            "split": data.split,
            "skipped_images": len(data.skipped),
        },
        "recipe": hyperparameters.pop("recipe"),
        "seed": hyperparameters.pop("seed"),
        "hyperparameters": hyperparameters,
        "parameters": {"trained": trained, "total": total},
        "versions": versions(),
        "device": setup.device.type,
        "completed": state.step >= plan.steps,
        "steps": state.step,
        "images_seen": seen,
        "epochs": round(seen / plan.train_images, 4),
        "seconds": round(state.seconds, 3),
        "metrics": metrics if diverged is None else {"diverged_at": diverged},
        **({"together": len(setup.tasks)} if setup.together else {}),
        **setup.feed.record(),
    }


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    return dict(read_versions())


@cache
def read_versions() -> dict[str, str]:
    """`versions`, read once: a sweep makes a record for each of its configurations."""
    found = {"python": platform.python_version()}
    for package in ("memtok", "torch", "timm", "torchvision", "accelerate"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree that is not installed
            found[package] = "unknown"
    return found
