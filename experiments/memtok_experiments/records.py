"""The record of one trained run of a grid, as a JSON file: what was trained, for how long, and how good it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from memtok.digests import sealed, unsealed
from memtok.errors import MemtokError
from memtok.files import write_json

FORMAT_VERSION = 1
MOST = 2**63 - 1  # of any whole number


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracies in [0, 1] over `images` images; `top5` is None where it was not counted."""

    top1: float
    images: int
    top5: float | None = None

    def __post_init__(self) -> None:
        for name in ("top1", "top5"):
            value = getattr(self, name)
            if value is None and name == "top5":
                continue
            if not _number(value) or not 0 <= value <= 1:
                raise MemtokError(f"expected {name} as a share in [0, 1], found {value!r}; correct it")
        _whole("images", self.images, least=1)
        if self.top5 is not None and self.top5 < self.top1:
            raise MemtokError(f"expected top5 of at least top1 ({self.top1}), found {self.top5}; correct it")

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
        self._check_texts()
        size: Any = self.image_size  # JSON has lists
        if not isinstance(size, Sequence) or len(size) != 2:
            raise MemtokError(f"expected image_size as (height, width), found {size!r}; correct it")
        object.__setattr__(self, "image_size", (_whole("height", size[0], 1), _whole("width", size[1], 1)))
        for name, least in (("cells", 0), ("seed", 0), ("steps", 1), ("batch_size", 1), ("together", 1)):
            _whole(name, getattr(self, name), least)
        for name in ("trained_parameters", "total_parameters"):
            _whole(name, getattr(self, name), 1)
        for name in ("learning_rate", "seconds"):
            value = getattr(self, name)
            if not _number(value) or value < 0 or (name == "learning_rate" and value == 0):
                raise MemtokError(f"expected {name} as a finite number above 0, found {value!r}; correct it")
        for name in ("chosen", "diverged"):
            if not isinstance(getattr(self, name), bool):
                raise MemtokError(f"expected {name} as true or false, found {getattr(self, name)!r}; correct it")
        self._read_scores()
        if self.test is not None and not self.chosen:
            raise MemtokError(
                f"expected no test accuracy of a rate that was not chosen, found one of {self.learning_rate:g}; "
                "test only what the validation part chose"
            )

    def _check_texts(self) -> None:
        for name in ("backbone", "fingerprint", "data", "column", "regime", "recipe"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise MemtokError(f"expected {name} as a text, found {value!r}; correct it")
        split, versions = self.split, self.versions
        if not isinstance(split, dict) or not isinstance(split.get("digest"), str):
            raise MemtokError(f"expected a split with its digest, found {split!r}; correct it")
        if not isinstance(versions, dict) or not all(isinstance(text, str) for text in (*versions, *versions.values())):
            raise MemtokError(f"expected versions as texts by name, found {versions!r}; correct it")

    def _read_scores(self) -> None:
        for name in ("validation", "test"):
            value: Any = getattr(self, name)
            if not isinstance(value, Score) and not (value is None and name == "test"):
                object.__setattr__(self, name, Score.from_dict(value, name))

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
    def from_dict(cls, value: Any, where: str = "run record") -> RunRecord:
        """Reads what `to_dict` gives. `where` names it in errors: MemtokError for anything else, in one line."""
        if not isinstance(value, Mapping):
            raise MemtokError(f"expected an object in {where}, found {type(value).__name__}; train that run again")
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


def write_record(path: str | Path, record: RunRecord) -> None:
    """Writes a record as JSON, atomically and with a checksum."""
    write_json(path, sealed(record.to_dict()))


def read_record(path: str | Path) -> RunRecord:
    """Reads what `write_record` wrote; MemtokError for a file that is missing, damaged or of an unknown version."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(value, dict):
            value = unsealed(value)
    except OSError as error:
        raise MemtokError(f"expected a run record at {path}, found: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:  # broken JSON, broken UTF-8, or another checksum
        raise MemtokError(f"expected a run record as JSON in {path}, found a damaged file; remove it") from error
    return RunRecord.from_dict(value, str(path))


def _number(value: Any) -> bool:
    """Whether it is a finite number (a whole one beyond a float's range is none)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
        shown = repr(value) if not isinstance(value, int) or abs(value) <= MOST else "one beyond all bounds"
        raise MemtokError(f"expected {name} as a whole number of {least} or more, found {shown}; correct it")
    return int(value)
