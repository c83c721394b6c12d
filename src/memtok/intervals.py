"""95 % confidence intervals of accuracies and of their differences.

Accuracies on the same images are compared image by image: both are right or wrong on most of them, so that this finds
significant differences where two separate intervals overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 1.96  # standard errors, for 95 of 100

Right = NDArray[np.bool_]
"""(images,) bool: which images were classified correctly."""


def packed(right: Right) -> str:
    """For a record: hexadecimal, a bit per image, the first one the highest, padded with zeros."""
    return np.packbits(right).tobytes().hex()


def unpacked(bits: str, images: int) -> Right:
    """(images,) bool of what `packed` gives; ValueError where that is of another number of images."""
    if len(bits) != 2 * -(-images // 8):
        raise ValueError(f"bits of other than {images} images")
    return np.unpackbits(np.frombuffer(bytes.fromhex(bits), dtype=np.uint8), count=images).astype(np.bool_)


@dataclass(frozen=True)
class Difference:
    """One accuracy minus another, in [-1, 1], with its 95 % interval from `low` to `high`."""

    value: float
    low: float
    high: float

    @property
    def tied(self) -> bool:
        """Whether the difference is not significant: the interval contains 0."""
        return self.low <= 0 <= self.high

    @property
    def near(self) -> bool:
        """Whether the difference is one standard error at most, of which the interval has 1.96 on each side."""
        return 2 * CONFIDENCE * abs(self.value) <= self.high - self.low

    def __neg__(self) -> Difference:
        """The other accuracy minus this one."""
        return Difference(-self.value, -self.high, -self.low)

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {"value": self.value, "low": self.low, "high": self.high, "tied": self.tied}

    def __str__(self) -> str:
        """In points: `+1.3 points (95 % interval -0.8 to +3.4)`."""
        low, high = (f"{100 * value:+.1f}" for value in (self.low, self.high))
        return f"{100 * self.value:+.1f} points (95 % interval {low} to {high})"


def wilson(share: float, images: int) -> tuple[float, float]:
    """The 95 % interval of a share of `images` images (Wilson, 1927), inside [0, 1]."""
    trials = images + CONFIDENCE**2
    centre = (share * images + CONFIDENCE**2 / 2) / trials
    half = CONFIDENCE * math.sqrt(images * share * (1 - share) + CONFIDENCE**2 / 4) / trials
    return max(0.0, centre - half), min(1.0, centre + half)


def paired(ones: Sequence[Right], others: Sequence[Right], *, weights: NDArray[np.float64] | None = None) -> Difference:
    """The accuracy of one setting minus that of another, on the same images; each has a row per seed.

    weights: (images,) of mean 1, how much each image counts; None where all count alike. The interval is that of
    Agresti and Min (2005), with two discordant images added, one each way. With several seeds the score of an image is
    the share of seeds that classify it correctly, and the variance over the seeds is added.
    """
    images = len(ones[0])
    one, other = (np.mean(np.stack(rows), axis=0, dtype=np.float64) for rows in (ones, others))
    per_image = one - other if weights is None else (one - other) * weights  # (images,)
    trials = images + 2
    mean = float(per_image.sum()) / trials
    variance = (float(np.square(per_image).sum()) + 1) / trials - mean**2
    over_seeds = sum(seed_variance([np.average(row, weights=weights) for row in rows]) for rows in (ones, others))
    return around(float(per_image.mean()), mean, math.sqrt(variance / trials + over_seeds))


def unpaired(ones: Sequence[float], others: Sequence[float], images: int) -> Difference:
    """The same from accuracies alone, one per seed, as if they were measured on different images.

    Wider than `paired`. One correct and one wrong image are added to both (Agresti and Caffo, 2000).
    """
    shares = [(float(np.mean(rows)) * images + 1) / (images + 2) for rows in (ones, others)]
    variance = sum(share * (1 - share) / (images + 2) for share in shares)
    error = math.sqrt(variance + seed_variance(ones) + seed_variance(others))
    return around(float(np.mean(ones)) - float(np.mean(others)), shares[0] - shares[1], error)


def around(value: float, centre: float, error: float) -> Difference:
    """A difference with the interval of 1.96 standard errors around `centre`, inside [-1, 1]; it contains `value`."""
    low, high = centre - CONFIDENCE * error, centre + CONFIDENCE * error
    return Difference(value, max(-1.0, min(low, value)), min(1.0, max(high, value)))


def seed_variance(accuracies: Sequence[float]) -> float:
    """The variance of a mean over seeds, from their spread; 0 for one seed, where it is unknown."""
    return float(np.var(accuracies, ddof=1)) / len(accuracies) if len(accuracies) > 1 else 0.0
