"""What came of the configurations of a sweep, as JSON files, and the order in which they are listed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memtok.digests import read_sealed, write_sealed
from memtok.intervals import Right, unpacked
from memtok.sweeps.space import Configuration
from memtok.training.state import Validation

FORMAT_VERSION = 1
STATES = ("training", "finished", "stopped", "diverged")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration and what came of it.

    state: "training", "finished", "stopped" by early stopping, or "diverged" at step `diverged_at`. looks: what was
    found on the validation part, at every rung and at the end. seconds: its equal share of the time of its passes.
    data, split, fingerprint: the data as they were named, the digest of their split, and that of the backbone.
    right: which validation images the latest look found answered right, as `packed` writes it; None in old records.
    content: the digest of the images, "" in records of version 0.1.
    """

    configuration: Configuration
    state: str
    looks: tuple[Validation, ...]
    trained_parameters: int
    seconds: float
    diverged_at: int | None
    data: str
    split: str
    fingerprint: str
    right: str | None = None
    content: str = ""

    @property
    def last(self) -> Validation | None:
        """The latest look, None before the first."""
        return self.looks[-1] if self.looks else None

    def look_at(self, step: int) -> Validation | None:
        """What was found after `step` steps, None if nobody looked."""
        return next((look for look in self.looks if look.step == step), None)

    def answered(self, images: int) -> Right | None:
        """(images,) bool: which of the validation images are answered right; None where that is not known."""
        try:
            return None if self.right is None else unpacked(self.right, images)
        except ValueError:  # of other images
            return None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it back."""
        own = asdict(self) | {"configuration": self.configuration.to_dict()}
        return {"format_version": FORMAT_VERSION, "name": self.configuration.name, **own}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Trial:
        """Raises ValueError, TypeError or KeyError for anything that `to_dict` did not give."""
        given = {name: one for name, one in value.items() if name not in ("format_version", "name")}
        if value["format_version"] != FORMAT_VERSION or value["state"] not in STATES:
            raise ValueError("another format")
        given["configuration"] = Configuration.of(value["configuration"])
        given["looks"] = tuple(Validation(**look) for look in value["looks"])
        given["right"] = value.get("right") and bytes.fromhex(value["right"]).hex()  # earlier versions did not keep it
        return cls(**given)


def write_trial(path: Path, trial: Trial) -> None:
    """Writes the record of a configuration, atomically and with a checksum."""
    write_sealed(path, trial.to_dict())


def read_trial(path: Path) -> Trial | None:
    """What `write_trial` wrote, None where nothing is; MemtokError for another file."""
    what = f"the record of a configuration (format {FORMAT_VERSION})"
    return read_sealed(path, what, Trial.from_dict, "delete it to train that configuration again")


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Best first: the finished ones, then those that were stopped, later ones first, then the diverged ones.

    The highest top-1 comes first; of equal ones the lowest loss, then the fewest trained parameters, then the first.
    trials: in the order of the space.
    """
    places = {"finished": 0, "training": 1, "stopped": 1, "diverged": 2}

    def key(numbered: tuple[int, Trial]) -> tuple[float, ...]:
        number, trial = numbered
        place, look = places[trial.state], trial.last
        if look is None or place == 2:
            return (place, 1, 0, 0, 0, number)
        return (place, -look.step, -look.top1, look.loss, trial.trained_parameters, number)

    return [trial for _, trial in sorted(enumerate(trials), key=key)]
