"""What an exported file says of itself: outputs, class names, preprocessing, and what it was made of. Without torch.

It is one JSON text: in an ONNX file the metadata entry `memtok`, in a program of torch the extra file `memtok.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing

KEY = "memtok"
EXTRA_FILE = "memtok.json"
VERSION = 1
INPUT, BASE, EMBEDDING = "images", "base", "embedding"
FORMATS = ("onnx", "torch")
ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}  # of the files that the command line writes
WEIGHTS = ("float32", "float16", "int8")
SCORES = ("logits", "probabilities")


def own_version() -> str:
    """The version of memtok that is installed."""
    try:
        return version("memtok")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True)
class ExportedTask:
    """A task of an exported file. Its output has its name.

    extends: the tasks that it extends, each with its fingerprint.
    """

    name: str
    classes: tuple[str, ...]
    fingerprint: str
    extends: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Description:
    """What an exported file holds.

    weights: "float32", "float16" or "int8". scores: "logits" or "probabilities", of tasks and base. base: the classes
    of the output `base`, None without it. embedding: the width of the output `embedding`, None without it.
    backbone, fingerprint: where the backbone came from, and its fingerprint. memtok: the version that wrote the file.
    """

    weights: str
    scores: str
    preprocessing: Preprocessing
    backbone: str
    fingerprint: str
    tasks: tuple[ExportedTask, ...] = ()
    base: tuple[str, ...] | None = None
    embedding: int | None = None
    memtok: str = field(default_factory=own_version)

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """The class names of every output with classes, by its name: the tasks in their order, then `base`."""
        found = {task.name: task.classes for task in self.tasks}
        return found if self.base is None else found | {BASE: self.base}

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs, in order: those with classes, then `embedding`."""
        return (*self.classes, *([] if self.embedding is None else [EMBEDDING]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; docs/export.md explains the keys."""
        return {
            "format": VERSION,
            "memtok": self.memtok,
            "weights": self.weights,
            "scores": self.scores,
            "input": {"name": INPUT, "shape": ["batch", 3, *self.preprocessing.image_size], "dtype": "float32"},
            "preprocessing": self.preprocessing.to_dict(),
            "backbone": {"source": self.backbone, "fingerprint": self.fingerprint},
            "tasks": [
                {
                    "name": task.name,
                    "classes": list(task.classes),
                    "fingerprint": task.fingerprint,
                    "extends": [{"name": name, "fingerprint": fingerprint} for name, fingerprint in task.extends],
                }
                for task in self.tasks
            ],
            "base": None if self.base is None else {"classes": list(self.base)},
            "embedding": None if self.embedding is None else {"dim": self.embedding},
        }

    def to_json(self) -> str:
        """`to_dict` as text, in ASCII, which every reader of metadata can take."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str, where: str) -> Description:
        """The reverse of `to_json`; MemtokError, with `where`, for what memtok has not written."""
        advice = "export the model again"
        try:
            values = json.loads(text)
            if not isinstance(values, Mapping):
                raise TypeError("no table")
            if values["format"] != VERSION:
                raise MemtokError(
                    f"expected metadata of version {VERSION} in {where}, found version {values['format']!r}; {advice}, "
                    "or take the memtok that wrote it"
                )
            return cls(
                weights=one_of(values["weights"], WEIGHTS),
                scores=one_of(values["scores"], SCORES),
                preprocessing=Preprocessing.from_dict(values["preprocessing"]),
                backbone=word(values["backbone"]["source"]),
                fingerprint=word(values["backbone"]["fingerprint"]),
                tasks=tuple(task_in(task) for task in values["tasks"]),
                base=None if values["base"] is None else words(values["base"]["classes"]),
                embedding=None if values["embedding"] is None else int(values["embedding"]["dim"]),
                memtok=word(values["memtok"]),
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, MemtokError):
                raise
            raise MemtokError(
                f"expected the metadata that memtok writes in {where}, found others ({type(error).__name__}: {error}); "
                f"{advice}"
            ) from error


def task_in(values: Mapping[str, Any]) -> ExportedTask:
    """A task as `to_dict` writes it."""
    extends = tuple((word(one["name"]), word(one["fingerprint"])) for one in values["extends"])
    return ExportedTask(word(values["name"]), words(values["classes"]), word(values["fingerprint"]), extends)


def word(value: object) -> str:
    """A text; TypeError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def words(values: object) -> tuple[str, ...]:
    """Texts; TypeError for anything else."""
    if not isinstance(values, list):
        raise TypeError(f"{values!r} is no list")
    return tuple(map(word, values))


def one_of(value: object, known: tuple[str, ...]) -> str:
    """A text that is among `known`."""
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return word(value)
