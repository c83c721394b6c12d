"""What is kept of one trial, and of its test, as JSON files with checksums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from memtok.digests import read_sealed, write_sealed
from memtok.errors import MemtokError
from memtok.intervals import Right, packed, unpacked
from memtok_experiments.records import is_number, require


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """A record: its fields are those of the file."""

    def write(self, path: Path) -> None:
        """Writes it, atomically and with a checksum."""
        write_sealed(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what `write` wrote; MemtokError for a file that is missing, damaged or of something else."""
        found = read_sealed(path, "the record of a trial", lambda value: cls.parse(value), "delete it")
        if found is None:
            raise MemtokError(f"expected the record of a trial at {path}, found: No such file or directory")
        return found

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Self:
        """ValueError for other fields than its own; those with a default may be missing, in records of before."""
        own = fields(cls)
        needed = {field.name for field in own if field.default is MISSING}
        if not needed <= set(value) <= {field.name for field in own}:
            raise ValueError("other fields than those of a record")
        return cls(**value)


@dataclass(frozen=True, kw_only=True)
class TrialRecord(Sealed):
    """One method on one row at one choice of settings with one seed.

    rate: the peak learning rate, None for what is fitted; strength: C of the logistic regression or the strength of the
    ridge, None for what is trained. form: what was chosen among `memtok.training.forms.FORMS`, None for columns that
    say themselves what is made. varied: whether training images were augmented. timed: whether `steps` follow from
    a budget of time. validation: top-1 accuracy there, in [0, 1]; 0 if it `diverged`. parameters: that train, head
    included. bytes: of the file of the result. seconds: of its steps, or of the fit; of runs that share a pass
    (`together`) an equal share of the time of all. trunk_seconds: of the pass over the training images whose features
    are cached, 0 where each step runs the trunk. cost: at inference, beside the trunk, in class tokens. split: digest
    of the parts, content: of the images. device: "cpu", or the name of the GPU.
    """

    row: str
    column: str
    seed: int
    rate: float | None
    strength: float | None
    varied: bool
    steps: int
    timed: bool
    train_images: int
    validation_images: int
    validation: float
    diverged: bool
    parameters: int
    bytes: int
    seconds: float
    trunk_seconds: float
    together: int
    cost: float
    backbone: str
    fingerprint: str
    image_size: int
    split: str
    content: str
    device: str
    versions: dict[str, str]
    form: str | None = None

    def __post_init__(self) -> None:
        require(is_number(self.validation) and 0 <= self.validation <= 1, "validation in [0, 1]", self.validation)
        for name in ("seconds", "trunk_seconds", "cost"):
            value = getattr(self, name)
            require(is_number(value) and value >= 0, f"{name} of 0 or more", value)

    @property
    def total_seconds(self) -> float:
        """Of training in all, from images to the trained task."""
        return self.seconds + self.trunk_seconds


@dataclass(frozen=True, kw_only=True)
class AnswersRecord(Sealed):
    """How a chosen trial answered the test images.

    right: which were answered right, as `packed` writes it. balanced: mean recall.
    """

    images: int
    balanced: float
    right: str

    def __post_init__(self) -> None:
        whole = len(self.right) == 2 * -(-self.images // 8)
        require(self.images > 0 and whole, "as many bits as test images", self.images)

    @classmethod
    def of(cls, right: Right, labels: np.ndarray[Any, Any]) -> AnswersRecord:
        """From (images,) whether each was answered right, and their labels (images,)."""
        recalls = [float(right[labels == label].mean()) for label in np.unique(labels)]
        return cls(images=len(right), balanced=float(np.mean(recalls)), right=packed(right))

    @property
    def bits(self) -> Right:
        """(images,) bool."""
        return unpacked(self.right, self.images)

    @property
    def top1(self) -> float:
        """In [0, 1]."""
        return float(self.bits.mean())


@dataclass(frozen=True)
class Found:
    """What came of a trial: test is None unless it was chosen and tested."""

    record: TrialRecord
    test: AnswersRecord | None


def best_of(records: Iterable[TrialRecord]) -> TrialRecord:
    """The choice among trials of one column, by top-1 on the validation part.

    Of equal ones the shorter, the one without augmentation, the smaller rate.
    """
    return min(records, key=lambda one: (-one.validation, one.steps, one.varied, one.rate or 0.0))
