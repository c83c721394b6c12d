"""The arithmetic of a run: one step of the optimizer, one look at the validation images. No files, no clocks.

Letters for shapes: B images of a batch, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from memtok.data import kept_random_state
from memtok.data.transforms import Normaliser
from memtok.metrics import Score, answered, score_of
from memtok.traces import KeptBatch
from memtok.training.compiler import Compiler
from memtok.training.device import OneProcess, add_up, add_up_gradients, kept_gpu_state, own_rows
from memtok.training.feed import Batches, Feed
from memtok.training.optim import make_optimizer
from memtok.training.recipes import learning_rate_at
from memtok.training.regimes import FullModel, Trainable, forward_of
from memtok.training.settings import Plan
from memtok.training.state import Validation


class Engine:
    """A task (or model) with its optimizer, all on one device."""

    def __init__(
        self,
        trainable: Trainable,
        plan: Plan,
        accelerator: Accelerator | OneProcess,
        device: torch.device,
        compiler: Compiler | None = None,
    ) -> None:
        self.trainable, self.plan, self.accelerator, self.device = trainable, plan, accelerator, device
        self.forward = forward_of(trainable, compiler, packed=None if plan.views is None else plan.part)
        self.normalise = Normaliser(trainable.preprocessing)
        self.parameters = list(trainable.parameters())
        self.optimizer = make_optimizer(trainable, plan)
        self.drops = isinstance(trainable, FullModel) and has_dropout(trainable)

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0."""
        return learning_rate_at(step, peak=self.plan.learning_rate, warmup=self.plan.warmup, steps=self.plan.steps)

    def step(self, number: int, batch: Tensor | KeptBatch, labels: Tensor) -> Tensor:
        """Step `number`, from 0, on a batch and its labels (B,); returns (2,): loss and gradient norm.

        batch: pixels (B, 3, H, W) uint8 or kept traces. The result stays on the device, nothing waits for it. The norm
        is that before clipping.
        """
        self.begin(number)
        loss = torch.zeros((), device=self.device, dtype=torch.float32)
        with self.dropout(number):
            for part, answers, weight in self.parts(batch, labels):
                with self.accelerator.autocast():
                    logits = self.forward(part)
                share = share_of_loss(logits, answers, weight / len(labels))
                self.accelerator.backward(share)
                loss += share.detach()
        return self.apply(loss)

    def begin(self, number: int) -> None:
        """Makes ready for the gradients of step `number`."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(number)
        self.optimizer.zero_grad(set_to_none=True)

    def apply(self, loss: Tensor) -> Tensor:
        """Clips the gradients and moves the parameters; returns (2,): `loss` of all processes, and gradient norm."""
        add_up_gradients(self.accelerator, self.parameters)
        (loss,) = add_up(self.accelerator, [loss])
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.plan.clip_norm)
        self.optimizer.step()
        return torch.stack([loss, norm.detach().to(loss)])

    def parts(self, batch: Tensor | KeptBatch, labels: Tensor) -> Iterator[tuple[Tensor | KeptBatch, Tensor, float]]:
        """This process's rows of a batch in `accumulate` parts on the device, normalised, with their weight."""
        weight = 1.0
        if isinstance(batch, Tensor):  # traces are kept by one process only
            batch, labels = own_rows(self.accelerator, batch), own_rows(self.accelerator, labels)
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
    def validate(self, step: int, feed: Feed, check: Callable[[], None]) -> tuple[Validation, Tensor]:
        """Accuracies and mean cross-entropy on the N validation images of the run, without augmentation.

        And the answers of all processes, (3, N) int32 as of `answered`, on the CPU. check: called before each batch;
        may raise.
        """
        self.set_mode(training=False)
        answers = torch.zeros(3, self.plan.validation_images, dtype=torch.int64, device=self.device)
        losses = [torch.zeros((), device=self.device, dtype=torch.float32)]
        with self.forward.folded():
            for batch, labels, own in self.shares(feed.validation()):
                check()
                with self.accelerator.autocast():
                    logits = self.forward(batch).float()
                answers[:, own] = answered(logits, labels)
                losses.append(F.cross_entropy(logits, labels, reduction="sum"))
        loss = torch.stack(losses).to("cpu", torch.float64).sum()
        (loss,) = add_up(self.accelerator, [loss.to(self.device, torch.float32)])
        (answers,) = add_up(self.accelerator, [answers])
        self.set_mode(training=True)
        answers = answers.to("cpu", torch.int32)
        return found(step, loss, score_of(self.trainable.classes, answers)), answers

    def shares(self, batches: Batches) -> Iterator[tuple[Tensor | KeptBatch, Tensor, slice]]:
        """This process's rows of batches, normalised, labels on the device, and where the rows are among all images.

        Batches without any are left out.
        """
        start = 0
        for batch, labels, _ in batches:
            own = own_rows(self.accelerator, labels)
            part: Tensor | KeptBatch = own_rows(self.accelerator, batch) if isinstance(batch, Tensor) else batch
            rows = slice(start + self.accelerator.process_index, start + len(labels), self.accelerator.num_processes)
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
        """Training or evaluation mode of a model that trains whole. Tasks have no modes, and the backbone has one."""
        if isinstance(self.trainable, FullModel):
            nn.Module.train(self.trainable, training)

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the parameters on the CPU."""
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.trainable.named_parameters()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copies values into the parameters."""
        for name, parameter in self.trainable.named_parameters():
            parameter.copy_(tensors[name])


def has_dropout(model: nn.Module) -> bool:
    """Whether a part of the model drops values, paths or patches by chance when it trains."""
    names = ("p", "dropout", "drop_prob", "prob")  # in torch, and in timm's DropPath and PatchDropout
    rates = [getattr(module, name, None) for module in model.modules() for name in names]
    return any(isinstance(rate, int | float) and rate > 0 for rate in rates)


def share_of_loss(logits: Tensor, answers: Tensor, weight: float) -> Tensor:
    """The cross-entropy of a part of a batch, (part, C) and (part,), as its share of the mean over the batch.

    `weight`: 1 / images of the whole batch. Parts of different size then count as they should.
    """
    return F.cross_entropy(logits.float(), answers, reduction="sum") * weight


def found(step: int, loss: Tensor, score: Score) -> Validation:
    """What was found after `step` steps, from the sum of the losses and the score of all images."""
    mean = loss.item() / score.images
    return Validation(step=step, top1=score.top1, top5=score.top5, loss=mean, balanced=score.balanced)
