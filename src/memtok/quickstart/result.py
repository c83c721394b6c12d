"""Settings and results of the quickstart, as in results.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class QuickstartSettings:
    """The size of the quickstart. All training runs have these steps, this batch size and this learning rate.

    The learning rate was chosen on validation images for such short runs. verified_images: images of the verification.
    train_images, validation_images, test_images: the most images of each part (for tests).
    """

    steps: int = 120
    batch_size: int = 32
    learning_rate: float = 0.03
    validations: int = 4
    train_images: int | None = None
    validation_images: int | None = None
    test_images: int | None = None
    verified_images: int = 64


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """One training run and the accuracy of its task. Accuracies are top-1 in [0, 1]; curves are (step, value) pairs.

    file: below the folder of the quickstart; bytes: its size. test_top1: of the task alone; composed_top1: in one pass
    with the other task, None where that was not measured. right: for each test image "1" if the task alone classifies
    it correctly, else "0"; None if that was not kept. base_bitwise: whether the output of the backbone in the same pass
    is bitwise that without the task; None for a task that does not compose.
    """

    label: str
    name: str
    regime: str
    cells: int
    classes: tuple[str, ...]
    file: str
    bytes: int
    trainable_parameters: int
    total_parameters: int
    train_images: int
    validation_images: int
    validation_top1: float
    test_images: int
    test_top1: float
    composed_top1: float | None
    base_bitwise: bool | None
    loss: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float], ...]
    seconds: float
    right: str | None = None


@dataclass(frozen=True, kw_only=True)
class PredictedImage:
    """One image and the predictions of every task and the backbone (`base`) in one pass: (class, probability).

    file: below the folder of the quickstart. truth: the digit that it is.
    """

    file: str
    truth: str
    answers: dict[str, tuple[str, float]]


@dataclass(frozen=True, kw_only=True)
class QuickstartResult:
    """All results of the quickstart; `to_json` is the content of results.json.

    out: the folder. tasks: the two that were trained separately. composed: the file with both. comparison: one run per
    regime, all on ten digits. verification: as `VerifyReport.to_json`. attention: for each task and layer, which share
    of its class token's attention goes to "image patches", "base class token", "own class token" and "own memory".
    """

    out: Path
    command: str
    seed: int
    seconds: float
    settings: QuickstartSettings
    versions: dict[str, str]
    backbone: dict[str, Any]
    data: dict[str, Any]
    tasks: tuple[TrainedRun, ...]
    composed: dict[str, Any]
    verification: dict[str, Any]
    comparison: tuple[TrainedRun, ...]
    predictions: tuple[PredictedImage, ...]
    attention: dict[str, dict[str, tuple[float, ...]]]

    @property
    def ok(self) -> bool:
        """Whether the verification passed, and the base output stayed the same in all runs."""
        return bool(self.verification["ok"]) and all(run.base_bitwise is not False for run in self.comparison)

    def to_json(self) -> dict[str, Any]:
        """Everything except the folder, JSON-able."""
        found = asdict(self)
        del found["out"]
        return {"ok": self.ok, **found}
