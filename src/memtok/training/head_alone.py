"""What a head alone gives on the images that a task was trained on: whether memory was worth it.

The head reads the base class token, which depends on the image alone. So the trunk runs once per image, or not at all
where traces are kept, and a step of the head takes milliseconds. It has the steps, batches, rate, seed and validations
of the task's own run, and like the task it keeps its best state.

Letters for shapes: R kept views of all training images, V validation images, B images of a batch, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from memtok.data.loader import BatchPlan
from memtok.errors import Argument, MemtokError
from memtok.intervals import Difference, Right, paired
from memtok.metrics import Score, answered, score_of
from memtok.parts import more_than_head
from memtok.regimes import REGIMES
from memtok.task import Task
from memtok.traces import KeptBatch
from memtok.training.feed import Feed
from memtok.training.plan import Plan
from memtok.training.recipes import GRADIENT, SAMPLING
from memtok.training.regimes import Trainable
from memtok.training.settings import BALANCED
from memtok.training.state import Validation
from memtok.training.trainer import Trainer, found

MOST_IMAGES = 0.1  # of those that the run saw, on which the trunk may run for this unless it was asked for
MOST_BYTES = 1e9  # of features, unless it was asked for


@dataclass(frozen=True, kw_only=True)
class HeadAlone:
    """A head alone on the same images. accuracy: its top-1 in [0, 1] on `images` validation images, after `step` steps.

    gain: the accuracy of the task, in its best state, minus that. recall: that of each class, None without images.
    varied: whether it was trained on varied images, as it is where their traces are kept.
    """

    accuracy: float
    step: int
    images: int
    gain: Difference
    recall: dict[str, float | None]
    varied: bool

    def to_json(self) -> dict[str, Any]:
        """JSON-able, as in the record of a task."""
        return {"top1": self.accuracy, "step": self.step, "images": self.images, "gain": self.gain.to_json()}

    def __str__(self) -> str:
        verdict = "these images cannot tell the two apart" if self.gain.tied else "more than chance"
        return (
            f"{100 * self.accuracy:.2f} % of the same {self.images:,} validation images; this task minus head: "
            f"{self.gain}, {verdict}"
        )


def check_comparable(trainable: Trainable, wanted: bool | None) -> None:
    """MemtokError where a comparison was asked for that says nothing."""
    if wanted and not comparable(trainable):
        raise MemtokError(
            f"expected no {Argument('compare_head')} in regime {trainable.regime!r}, found True; it is for tasks that "
            "train more than a head beside a frozen backbone"
        )


def comparable(trainable: Trainable) -> bool:
    """Whether it trains more than a head, beside a frozen backbone."""
    return isinstance(trainable, Task) and more_than_head(REGIMES[trainable.regime], trainable.sizes)


def is_due(wanted: bool | None, trainable: Trainable, plan: Plan, feed: Feed, processes: int) -> bool:
    """Whether a head is compared with: as `wanted` says, None where it costs little. By one process only."""
    if wanted is False or processes > 1 or not comparable(trainable) or plan.solver != GRADIENT:
        return False
    rows = plan.views_seen * plan.train_images
    features = 4 * trainable.backbone.dim * rows if isinstance(trainable, Task) else 0
    seen = plan.images_seen(plan.steps)
    return bool(wanted) or (features <= MOST_BYTES and feed.missing() <= MOST_IMAGES * seen)


def train_head(task: Task, plan: Plan, feed: Feed, trainer: Trainer) -> HeadAlone | None:
    """Trains a head on the features of the run's images and compares it with the task; None if its loss is not finite.

    task: in the state to be compared. trainer: that of the run; neither it nor the task is changed.
    """
    features, labels, _ = gathered(trainer, feed.in_order())
    held_out, answers, right = gathered(trainer, feed.validation(), task_too=True)
    head = Task.create(task.backbone, name="head", classes=task.classes, regime="head", seed=plan.seed)
    head.to(trainer.device)
    of_head = Trainer([head], [plan], trainer.processes, trainer.device, loss=trainer.loss)
    best: tuple[Validation, Right, Score] | None = None
    balanced = feed.data.train.labels if plan.balance == SAMPLING else None
    order = BatchPlan(plan.train_images, plan.batch_size, plan.seed, True, 0, plan.steps, False, (0, 1), balanced)
    views = plan.views_seen
    for step, keys in enumerate(order):
        rows = torch.tensor([epoch % views * plan.train_images + index for epoch, index in keys])
        head_step(of_head, step, features[rows], labels[rows])
        if (step + 1) % plan.validate_every == 0 or step + 1 == plan.steps:
            with torch.no_grad():
                logits = head(held_out.to(trainer.device)).float().cpu()
            given = answered(logits, answers)
            score = score_of(head.classes, given)
            look = found(step + 1, F.cross_entropy(logits, answers, reduction="sum"), score)
            if math.isfinite(look.loss) and look.beats(best and best[0], plan.select or BALANCED):
                best = look, (given[2] < 1).numpy(), score
    if best is None:
        return None
    look, known, score = best
    return HeadAlone(
        accuracy=look.top1,
        step=look.step,
        images=len(answers),
        gain=paired([right], [known]),
        recall=score.recall,
        varied=plan.views is not None and plan.augment != "none",
    )


def head_step(trainer: Trainer, step: int, features: Tensor, labels: Tensor) -> None:
    """One step of the head on features (B, D) and labels (B,)."""
    trainer.optimizer.begin(step)
    head = trainer.tasks[0]
    with trainer.processes.autocast():
        logits = head(features.to(trainer.device))
    loss = trainer.loss(logits, labels.to(trainer.device)) * (1 / len(labels))
    torch.autograd.backward(loss)
    trainer.optimizer.apply(loss.detach().unsqueeze(0))


@torch.no_grad()
def gathered(trainer: Trainer, batches: Any, *, task_too: bool = False) -> tuple[Tensor, Tensor, Right]:
    """Features (R, D) float32 and labels (R,) of all images of these batches, on the CPU, in their order.

    task_too: also (R,) bool, which of them the task of the trainer answers right; else (0,).
    """
    task = trainer.tasks[0]
    assert isinstance(task, Task)
    features: list[Tensor] = []
    labels: list[Tensor] = []
    right: list[Tensor] = [torch.zeros(0, dtype=torch.bool)]
    for batch, answers, _ in trainer.shares(batches):
        with trainer.processes.autocast():
            found_features = batch.features if isinstance(batch, KeptBatch) else task.backbone(batch)[0]
            if task_too:
                right.append((answered(trainer.forward(batch)[0].float(), answers)[2] < 1).cpu())
        features.append(found_features.float().to("cpu", copy=True))  # a kept batch is used again
        labels.append(answers.cpu())
    return torch.cat(features), torch.cat(labels), torch.cat(right).numpy()
