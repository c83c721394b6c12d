"""The record of one trained run of a grid, as a JSON file: what was trained, for how long, and how good it is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from memtok.digests import read_sealed, write_sealed
from memtok.errors import MemtokError

FORMAT_VERSION = 1
TEXTS = ("backbone", "fingerprint", "data", "column", "regime", "recipe")
COUNTS = {"cells": 0, "seed": 0, "steps": 1, "batch_size": 1, "together": 1}  # and the least of each
COUNTS |= {"trained_parameters": 1, "total_parameters": 1}


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracies in [0, 1] over `images` images; `top5` is None where it was not counted."""

    top1: float
    images: int
    top5: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("top1", self.top1), ("top5", 0 if self.top5 is None else self.top5)):
            require(is_number(value) and 0 <= value <= 1, f"{name} as a share in [0, 1]", value)
        require_count("images", self.images, least=1)
        require(self.top5 is None or self.top5 >= self.top1, f"top5 of at least top1 ({self.top1})", self.top5)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without a `top5` that is None."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, value: Any, where: str = "score") -> Score:
        """Reads what `to_dict` gives; MemtokError for anything else."""
        if not isinstance(value, Mapping) or not {"top1", "images"} <= set(value) <= {"top1", "top5", "images"}:
            raise MemtokError(f"expected top1, images and perhaps top5 under {where}, found {value!r}; write it again")
        return cls(**value)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One trained run: one configuration, one learning rate, one seed.

    backbone: as it was given. fingerprint: of the backbone. image_size: (height, width) in pixels. data: the source as
    given, such as `cifar100`. split: how it was split, with its "digest" and the "content" of its images. column:
    `full`, `head`, `class`, `memory-5`, `class-unmasked`, `propagated-5`, ...; regime and cells say the same in
    memtok's words.
    chosen: this learning rate was the best on the validation part. validation: accuracy there. test: on the test part,
    only for a chosen rate, None as long as it was not tested. trained_parameters, total_parameters: counts.
    seconds: of training; together: how many configurations were trained over one pass of the trunk, 1 for a run of
    its own. `seconds` is then an equal share of the time of all. versions: of the libraries. diverged: the loss stopped
    being finite, and the accuracy counts as 0. Dicts in place of a Score are taken too. Raises MemtokError for values
    that make no sense.
    """

    backbone: str
    fingerprint: str
    image_size: tuple[int, int]
    data: str
    split: dict[str, Any]
    column: str
    regime: str
    cells: int
    learning_rate: float
    seed: int
    recipe: str
    steps: int
    batch_size: int
    chosen: bool
    validation: Score
    test: Score | None
    trained_parameters: int
    total_parameters: int
    seconds: float
    together: int
    versions: dict[str, str]
    diverged: bool = False

    def __post_init__(self) -> None:
        for name in TEXTS:
            value = getattr(self, name)
            require(isinstance(value, str) and value, f"{name} as a text", value)
        split, versions, size = self.split, self.versions, self.image_size
        digested = isinstance(split, dict) and isinstance(split.get("digest"), str)
        require(digested, "a split with its digest", split)
        texts = isinstance(versions, dict) and all(isinstance(text, str) for text in (*versions, *versions.values()))
        require(texts, "versions as texts by name", versions)
        require(isinstance(size, Sequence) and len(size) == 2, "image_size as (height, width)", size)
        object.__setattr__(self, "image_size", tuple(size))  # JSON has lists
        for name, pixels in zip(("height", "width"), size, strict=True):
            require_count(name, pixels, least=1)
        for name, least in COUNTS.items():
            require_count(name, getattr(self, name), least)
        rate, seconds = self.learning_rate, self.seconds
        require(is_number(rate) and rate > 0, "learning_rate as a finite number above 0", rate)
        require(is_number(seconds) and seconds >= 0, "seconds as a finite number of 0 or more", seconds)
        for name in ("chosen", "diverged"):
            require(isinstance(getattr(self, name), bool), f"{name} as true or false", getattr(self, name))
        for name in ("validation", "test"):
            value = getattr(self, name)
            if not isinstance(value, Score) and not (value is None and name == "test"):
                object.__setattr__(self, name, Score.from_dict(value, name))
        require(self.test is None or self.chosen, "no test accuracy of a rate that was not chosen", self.test)

    def tested(self, test: Score | Mapping[str, Any]) -> RunRecord:
        """The same run, chosen, with its test accuracy."""
        return replace(self, chosen=True, test=test if isinstance(test, Score) else Score.from_dict(test, "test"))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it back."""
        return {
            "format_version": FORMAT_VERSION,
            **asdict(self),
            "image_size": list(self.image_size),
            "validation": self.validation.to_dict(),
            "test": None if self.test is None else self.test.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], where: str = "run record") -> RunRecord:
        """Reads what `to_dict` gives. `where` names it in errors: MemtokError for anything else, in one line."""
        given = dict(value)
        version = given.pop("format_version", None)
        if version != FORMAT_VERSION or isinstance(version, bool):
            raise MemtokError(
                f"expected format version {FORMAT_VERSION} in {where}, found {version!r}; update memtok or train again"
            )
        known = {field.name for field in fields(cls)}
        wrong = [f"without {name!r}" for name in sorted(known - set(given))]
        wrong += [f"with the unknown {name!r}" for name in sorted(set(given) - known, key=str)]
        if wrong:
            raise MemtokError(f"expected the fields of a run record in {where}, found it {wrong[0]}; train it again")
        try:
            return cls(**given)
        except MemtokError as error:
            raise MemtokError(f"{where}: {error.message}") from error


def write_record(path: Path, record: RunRecord) -> None:
    """Writes a record as JSON, atomically and with a checksum."""
    write_sealed(path, record.to_dict())


def read_record(path: Path) -> RunRecord:
    """Reads what `write_record` wrote; MemtokError for a file that is missing, damaged or of an unknown version."""
    found = read_sealed(path, "a run record as JSON", lambda value: RunRecord.from_dict(value, str(path)), "remove it")
    if found is None:
        raise MemtokError(f"expected a run record at {path}, found: No such file or directory; check the path")
    return found


def require(sound: Any, what: str, found: Any) -> None:
    """MemtokError unless a field is sound. `what` it should be."""
    if not sound:
        shown = "one beyond all bounds" if is_large(found) else repr(found)
        raise MemtokError(f"expected {what}, found {shown}; correct it")


def require_count(name: str, value: Any, least: int) -> None:
    """MemtokError unless a field is a whole number of at least `least`."""
    sound = isinstance(value, int) and not isinstance(value, bool) and value >= least and not is_large(value)
    require(sound, f"{name} as a whole number of {least} or more", value)


def is_large(value: Any) -> bool:
    """Whether it is a whole number that would fill the screen."""
    return isinstance(value, int) and abs(value) >= 2**63


def is_number(value: Any) -> bool:
    """Whether it is a finite number (a whole one beyond a float's range is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
