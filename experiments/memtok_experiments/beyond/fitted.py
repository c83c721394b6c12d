"""Columns that are solved on features of the frozen trunk: logistic regression by scikit-learn, ridge regression.

Letters for shapes: n images, F features, C classes. Features are standardised by the training images.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memtok.backbone import NOTHING, Backbone
from memtok.data import ImageSet, batches
from memtok.data.transforms import Normaliser, evaluation_pixels
from memtok.errors import MemtokError
from memtok.levels import Reads
from memtok.parts import DEFAULT_CHOICES
from memtok.training.ridge import fit_ridge

STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression, from strong to weak
ITERATIONS = 300
LEAST_SPREAD = 1e-3  # of a feature that tells images apart, as in `memtok.training.measure`


@dataclass(frozen=True)
class Features:
    """Of the images of one part: last (n, D) after the final norm, levels (n, F) half precision, labels (n,)."""

    last: Tensor
    levels: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What came out. right: (test images,) bool. seconds: of the fit with the chosen strength."""

    strength: float
    validation: float
    right: NDArray[np.bool_]
    features: int
    seconds: float


@torch.no_grad()
def features(backbone: Backbone, images: ImageSet, *, batch_size: int, workers: int, levels: bool) -> Features:
    """One pass of the trunk over images, as evaluation prepares them; without `levels` those are empty."""
    transform, normalise = evaluation_pixels(backbone.preprocessing), Normaliser(backbone.preprocessing)
    words = DEFAULT_CHOICES["statistics"].split("+")
    reads = Reads(backbone.depth + 1, frozenset(words)) if levels else Reads()
    last, every, labels = [], [], []
    for pixels, answers, _ in batches(images, transform, batch_size=batch_size, workers=workers):
        trace = backbone.trace(normalise(pixels.to(backbone.device)), keep=NOTHING, reads=reads)
        assert trace.features is not None
        last.append(trace.features.float().cpu())
        if levels:
            every.append(torch.cat([trace.statistics[word].flatten(1) for word in words], dim=1).half().cpu())
        labels.append(answers)
    return Features(torch.cat(last), torch.cat(every) if levels else torch.zeros(0), torch.cat(labels))


def standardised(parts: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(n, F) float32 features of the three parts by mean and spread of the first, without those that are constant."""
    train = parts[0].float()
    spread, mean = torch.std_mean(train, dim=0, correction=0)
    kept = spread > LEAST_SPREAD
    first, second, third = (((part.float() - mean) / spread)[:, kept] for part in parts)
    return first, second, third


def logistic(parts: tuple[Tensor, Tensor, Tensor], labels: tuple[Tensor, Tensor, Tensor], classes: int) -> Fit:
    """Multinomial logistic regression, its C the best on the validation part; of equal ones the strongest."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MemtokError(
            "expected scikit-learn for the columns logistic and logistic-levels, found none; "
            "install memtok[experiments]"
        ) from error
    train, validation, test = (part.numpy() for part in standardised(parts))
    known, held_out, asked = (label.numpy() for label in labels)
    best: Fit | None = None
    for strength in STRENGTHS:
        begun = time.perf_counter()
        model = LogisticRegression(C=strength, max_iter=ITERATIONS, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # ITERATIONS is as documented
            model.fit(train, known)
        seconds = time.perf_counter() - begun
        accuracy = float((model.predict(validation) == held_out).mean())
        if best is None or accuracy > best.validation:
            best = Fit(
                strength=strength,
                validation=accuracy,
                right=model.predict(test) == asked,
                features=train.shape[1],
                seconds=seconds,
            )
    assert best is not None
    return best


def ridge(parts: tuple[Tensor, Tensor, Tensor], labels: tuple[Tensor, Tensor, Tensor], classes: int) -> Fit:
    """memtok's ridge regression; its strength is chosen by cross-fitting, on the training images alone."""
    begun = time.perf_counter()
    train, validation, test = standardised(parts)
    found = fit_ridge(train, labels[0], classes)
    seconds = time.perf_counter() - begun

    def right(images: Tensor, answers: Tensor) -> NDArray[np.bool_]:
        return ((images @ found.weight.T + found.bias).argmax(dim=1) == answers).numpy()

    return Fit(
        strength=found.strength,
        validation=float(right(validation, labels[1]).mean()),
        right=right(test, labels[2]),
        features=train.shape[1],
        seconds=seconds,
    )


FITS: dict[str, tuple[bool, Callable[..., Fit]]] = {
    "logistic": (False, logistic),
    "logistic-levels": (True, logistic),
    "ridge": (True, ridge),
}
"""By column: whether it reads all levels or the last one, and how it is solved."""
