"""Classes with unequal numbers of images: what training does so that the large ones do not decide alone.

weights: each image counts in the loss by one over the images of its class. sampling: each class is shown equally often,
see `memtok.data.batches`. logits: the logarithm of each class's share of the images, up to a constant, is added to its
logit, in the loss of training only (Menon et al., ICLR 2021, arXiv:2007.07314, equation 10 with tau = 1). Validation
counts as it is.

Letters for shapes: B images of a batch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from memtok.data.splits import Indices
from memtok.training.plan import Plan
from memtok.training.recipes import LOGITS, SAMPLING, WEIGHTS


@dataclass(frozen=True)
class Loss:
    """The loss of a training step. weights, shifts: (C,) float32 on the device, None where there are none.

    smoothing: the share of every target that is spread over all classes.
    """

    weights: Tensor | None = None
    shifts: Tensor | None = None
    smoothing: float = 0.0

    def __call__(self, logits: Tensor, answers: Tensor) -> Tensor:
        """The sum over images of their cross-entropy; logits (B, C), answers (B,)."""
        logits = logits.float()
        if self.shifts is not None:
            logits = logits + self.shifts
        return F.cross_entropy(logits, answers, weight=self.weights, reduction="sum", label_smoothing=self.smoothing)


PLAIN = Loss()


def make_loss(plan: Plan, labels: Indices, classes: int, device: torch.device) -> Loss:
    """The loss of a run; labels: of its training images."""
    return Loss(
        weights=class_weights(labels, classes).to(device) if plan.balance == WEIGHTS else None,
        shifts=log_shares(labels, classes).to(device) if plan.balance == LOGITS else None,
        smoothing=plan.label_smoothing,
    )


def class_weights(labels: Indices, classes: int) -> Tensor:
    """(C,) float32: one over the images of a class, times a number by which the mean over all images is 1."""
    images = counts(labels, classes)
    present = images > 0
    weights = len(labels) / (int(present.sum()) * images.clamp(min=1))
    return weights.where(present, 0.0).float()  # of no image


def log_shares(labels: Indices, classes: int) -> Tensor:
    """(C,) float32: the logarithm of each class's share of the images over the largest one; 0 where all are equal.

    A class without any images counts as one image.
    """
    images = counts(labels, classes).clamp(min=1)
    return (images / images.max()).log().float()


def closed_form_weights(balance: str, labels: Indices, classes: int) -> Tensor | None:
    """(C,) weights of the images of each class in a least-squares fit; None where all count alike.

    To show each class equally often is to weight its images.
    """
    return class_weights(labels, classes) if balance in (WEIGHTS, SAMPLING) else None


def counts(labels: Indices, classes: int) -> Tensor:
    """(C,) float64: how many images each class has."""
    return torch.from_numpy(labels).bincount(minlength=classes).double()
