"""The arithmetic of a run of N tasks: a training step, a validation. No files, no clocks; those are in run.py.

`Trainer.step` is the whole step from top to bottom. Letters for shapes: N tasks, B images of a batch, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memtok.data import kept_random_state
from memtok.data.transforms import Normaliser
from memtok.metrics import Score, answered, score_of
from memtok.task import Task
from memtok.traces import KeptBatch
from memtok.training.balance import PLAIN, Loss
from memtok.training.compiler import Compiler
from memtok.training.device import Processes, add_up, kept_gpu_state, own_rows
from memtok.training.feed import Batches, Feed
from memtok.training.optim import Optimizer
from memtok.training.plan import Plan
from memtok.training.regimes import FullModel, Trainable, forward_of
from memtok.training.state import Validation


class Trainer:
    """N tasks, or one model, with their optimizer on one device. Plans differ in learning rate and weight decay only.

    Tasks that compose never see each other, so the gradient of the sum of their losses is, for each task, that of its
    own loss: only the trunk's pass over the images is shared.
    """

    def __init__(
        self,
        tasks: Sequence[Trainable],
        plans: Sequence[Plan],
        processes: Processes,
        device: torch.device,
        compiler: Compiler | None = None,
        loss: Loss = PLAIN,
    ) -> None:
        self.tasks, self.plan, self.processes, self.device = tasks, plans[0], processes, device
        self.loss = loss
        self.forward = forward_of(tasks, compiler)
        self.normalise = Normaliser(tasks[0].preprocessing)
        self.optimizer = Optimizer(tasks, plans, processes)
        self.drops = any(isinstance(task, FullModel) and has_dropout(task) for task in tasks)

    def step(self, number: int, batch: Tensor | KeptBatch, labels: Tensor) -> Tensor:
        """Step `number`, from 0, on a batch and its labels (B,); returns (N, 2): losses and gradient norms.

        batch: pixels (B, 3, H, W) uint8 or kept traces. The result stays on the device, nothing waits for it. The norms
        are those before clipping.
        """
        self.optimizer.begin(number)
        losses = torch.zeros(len(self.tasks), device=self.device, dtype=torch.float32)
        with self.dropout(number):
            for part, answers, weight in self.parts(batch, labels):
                with self.processes.autocast():
                    logits = self.forward(part)
                shares = torch.stack([self.loss(one, answers) for one in logits]) * (weight / len(labels))
                torch.autograd.backward(shares.sum())
                losses += shares.detach()
        return self.optimizer.apply(losses)

    def parts(self, batch: Tensor | KeptBatch, labels: Tensor) -> Iterator[tuple[Tensor | KeptBatch, Tensor, float]]:
        """This process's rows of a batch in `accumulate` parts on the device, normalised, with their weight."""
        weight = 1.0
        if isinstance(batch, Tensor):  # traces are kept by one process only
            batch, labels = own_rows(self.processes, batch), own_rows(self.processes, labels)
            if not len(labels):  # fewer images than processes: take part with one that does not count
                batch, labels, weight = batch.new_zeros((1, *batch.shape[1:])), labels.new_zeros(1), 0.0
        count = min(self.plan.accumulate, len(labels))
        cut: Sequence[Tensor | KeptBatch] = batch.tensor_split(count)
        for part, answers in zip(cut, labels.tensor_split(count), strict=True):
            yield self.placed(part), answers.to(self.device, non_blocking=True), weight

    def placed(self, part: Tensor | KeptBatch) -> Tensor | KeptBatch:
        """Kept traces, or normalised images (b, 3, H, W) float32 from pixels, on the device."""
        moved = part.to(self.device, non_blocking=True)
        return self.normalise(moved) if isinstance(moved, Tensor) else moved

    @torch.no_grad()
    def validate(self, step: int, feed: Feed, check: Callable[[], None]) -> list[tuple[Validation, Tensor]]:
        """What each task finds on the V validation images of the run, without augmentation, after `step` steps.

        And its answers, those of all processes, (3, V) int32 as of `answered`, on the CPU. check: called before each
        batch; may raise.
        """
        self.set_mode(training=False)
        shape = len(self.tasks), 3, self.plan.validation_images
        answers = torch.zeros(shape, dtype=torch.int64, device=self.device)
        sums = [torch.zeros(len(self.tasks), device=self.device, dtype=torch.float32)]
        with self.forward.folded():
            for batch, labels, own in self.shares(feed.validation()):
                check()
                with self.processes.autocast():
                    logits = [one.float() for one in self.forward(batch)]
                answers[:, :, own] = torch.stack([answered(one, labels) for one in logits])
                sums.append(torch.stack([F.cross_entropy(one, labels, reduction="sum") for one in logits]))
        total = torch.stack(sums).to("cpu", torch.float64).sum(dim=0)
        (losses,) = add_up(self.processes, [total.to(self.device, torch.float32)])
        (answers,) = add_up(self.processes, [answers])
        self.set_mode(training=True)
        return [
            (found(step, loss, score_of(task.classes, given)), given)
            for task, loss, given in zip(self.tasks, losses.cpu(), answers.to("cpu", torch.int32), strict=True)
        ]

    def shares(self, batches: Batches) -> Iterator[tuple[Tensor | KeptBatch, Tensor, slice]]:
        """This process's rows of batches, normalised, labels on the device, and where the rows are among all images.

        Batches without any are left out.
        """
        start = 0
        for batch, labels, _ in batches:
            own = own_rows(self.processes, labels)
            part: Tensor | KeptBatch = own_rows(self.processes, batch) if isinstance(batch, Tensor) else batch
            rows = slice(start + self.processes.process_index, start + len(labels), self.processes.num_processes)
            start += len(labels)
            if len(own):
                yield self.placed(part), own.to(self.device), rows

    @contextmanager
    def dropout(self, number: int) -> Iterator[None]:
        """The random numbers of step `number` for a model with dropout, in regime `full`; else nothing is touched.

        Dropout knows torch's global generators only. They are seeded in one thread at a time, and put back.
        """
        if not self.drops:
            yield
            return
        seed = int.from_bytes(hashlib.sha256(f"{self.plan.seed} {number}".encode()).digest()[:7], "big")
        with kept_random_state(), kept_gpu_state(self.device):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed a GPU that is not ours as well
            if self.device.type == "cuda":
                torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)
            yield

    def set_mode(self, *, training: bool) -> None:
        """Training or evaluation mode of models that train whole. Tasks have no modes, and the backbone has one."""
        for task in self.tasks:
            if isinstance(task, FullModel):
                nn.Module.train(task, training)


def values(task: Trainable) -> dict[str, Tensor]:
    """The parameters, and what a task measured, by name; not copied."""
    found = {name: parameter.detach() for name, parameter in task.named_parameters()}
    return found | task.measured if isinstance(task, Task) else found


def snapshot(task: Trainable) -> dict[str, Tensor]:
    """A copy of its values on the CPU."""
    return {name: value.to("cpu", copy=True) for name, value in values(task).items()}


@torch.no_grad()
def load(task: Trainable, tensors: Mapping[str, Tensor]) -> None:
    """Copies values into a task or model."""
    if isinstance(task, Task):
        task.measured = tensors
    for name, parameter in task.named_parameters():
        parameter.copy_(tensors[name])


def has_dropout(model: nn.Module) -> bool:
    """Whether a part of the model drops values, paths or patches by chance when it trains."""
    names = ("p", "dropout", "drop_prob", "prob")  # in torch, and in timm's DropPath and PatchDropout
    rates = [getattr(module, name, None) for module in model.modules() for name in names]
    return any(isinstance(rate, int | float) and rate > 0 for rate in rates)


def found(step: int, loss: Tensor, score: Score) -> Validation:
    """What was found after `step` steps, from the sum of the losses and the score of all images."""
    mean = loss.item() / score.images
    return Validation(step=step, top1=score.top1, top5=score.top5, loss=mean, balanced=score.balanced)
