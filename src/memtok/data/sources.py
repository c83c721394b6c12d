"""Labelled images in three parts, for training and evaluation.

An `ImageSet` is a list of (image, label). Its images are in a store (files, an array, a torch Dataset) and are read
when they are indexed. A `DataSource` holds three image sets with the names of the classes. Both are immutable: `only`
and `take` return new ones. All of it can be pickled to worker processes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from memtok.checks import composed, new_classes
from memtok.data.file_cache import mark_of
from memtok.data.hashes import MISSING, file_hashes
from memtok.data.images import LeftOut, as_rgb, read_upright
from memtok.data.splits import Indices, check_seed, digest, stratified_order
from memtok.errors import Argument, MemtokError


class ImageStore(Protocol):
    """Where images are stored, by position."""

    @property
    def draws(self) -> bool:
        """Whether reading may draw from the global random generators, as the user's code may."""

    def read(self, position: int) -> Image.Image:
        """The image in RGB, or as stored if it is grey of more than 8 bits; MemtokError if it cannot be read."""

    def identity(self, position: int) -> str:
        """The name of the image in a split: a relative path, or part and number."""

    def content(self, positions: Indices) -> list[bytes] | None:
        """For each of these positions, bytes that change with the image; None if unknown without reading."""


@dataclass(frozen=True)
class FileStore:
    """Image files under `root`; `names` are relative paths with forward slashes.

    `hashes`: a file in which the hashes of the images are cached. `published`: files of a published data set, which do
    not change: their sizes identify them.
    """

    root: Path
    names: Sequence[str]
    hashes: Path | None = None
    published: bool = False
    draws: ClassVar[bool] = False

    def read(self, position: int) -> Image.Image:
        return read_upright(self.root / self.names[position])

    def identity(self, position: int) -> str:
        return self.names[position]

    def content(self, positions: Indices) -> list[bytes] | None:
        names = [self.names[int(position)] for position in positions]
        if not self.published:
            return [found.encode() for found in file_hashes(self.root, names, self.hashes)]
        marks = (mark_of(self.root / name) for name in names)
        return [MISSING.encode() if mark is None else str(mark[0]).encode() for mark in marks]


@dataclass(frozen=True)
class ArrayStore:
    """Images in memory: uint8 (images, height, width) grey or (images, height, width, 3) RGB."""

    pixels: NDArray[np.uint8]
    prefix: str
    draws: ClassVar[bool] = False

    def read(self, position: int) -> Image.Image:
        return Image.fromarray(self.pixels[position]).convert("RGB")

    def identity(self, position: int) -> str:
        return f"{self.prefix}/{position}"

    def content(self, positions: Indices) -> list[bytes] | None:
        shape = str(self.pixels.shape[1:]).encode()
        return [shape + self.pixels[int(position)].tobytes() for position in positions]


@dataclass(frozen=True)
class JoinedStore:
    """Two stores one behind the other; the second one begins at position `start`."""

    first: ImageStore
    second: ImageStore
    start: int

    @property
    def draws(self) -> bool:
        return self.first.draws or self.second.draws

    def read(self, position: int) -> Image.Image:
        return self.first.read(position) if position < self.start else self.second.read(position - self.start)

    def identity(self, position: int) -> str:
        return self.first.identity(position) if position < self.start else self.second.identity(position - self.start)

    def content(self, positions: Indices) -> list[bytes] | None:
        early = positions < self.start
        first, second = self.first.content(positions[early]), self.second.content(positions[~early] - self.start)
        if first is None or second is None:
            return None
        parts = iter(first), iter(second)
        return [next(parts[0] if before else parts[1]) for before in early]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images of one part of a data source.

    `positions` (images,) are their places in `store`, `labels` (images,) int64 its class, from 0. `set[i]` is
    (PIL image in RGB, label). `part_of`: the set that these images are a fold of, and their indices there (images,), so
    that traces of that set serve all its folds.
    """

    store: ImageStore
    positions: Indices
    labels: Indices
    part_of: tuple[ImageSet, Indices] | None = None

    @classmethod
    def whole(cls, store: ImageStore, labels: Indices) -> ImageSet:
        """The first images of a store, one for each of these labels (images,)."""
        return cls(store, np.arange(len(labels)), labels)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.as_stored(index)
        return as_rgb(image), label

    def as_stored(self, index: int) -> tuple[Image.Image, int]:
        """The same, but grey of more than 8 bits keeps its values, which memtok's transforms scale."""
        return self.store.read(int(self.positions[index])), int(self.labels[index])

    def identity(self, index: int) -> str:
        """The relative path of image `index`, or its part and number, such as `test/17`."""
        return self.store.identity(int(self.positions[index]))

    @property
    def identities(self) -> list[str]:
        """The identities of all images in order."""
        return [self.store.identity(int(position)) for position in self.positions]

    def select(self, indices: Sequence[int] | Indices) -> ImageSet:
        """The images at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return ImageSet(self.store, self.positions[chosen], self.labels[chosen])

    def fold(self, indices: Indices) -> ImageSet:
        """The same as `select`, as a fold of this set."""
        return replace(self.select(indices), part_of=(self, indices))

    def joined(self, other: ImageSet) -> ImageSet:
        """These images and then those of `other`."""
        labels = np.concatenate([self.labels, other.labels])
        if self.store is other.store:
            return ImageSet(self.store, np.concatenate([self.positions, other.positions]), labels)
        start = int(self.positions.max(initial=-1)) + 1
        positions = np.concatenate([self.positions, other.positions + start])
        return ImageSet(JoinedStore(self.store, other.store, start), positions, labels)

    def take(self, count: int, seed: int = 0) -> ImageSet:
        """`count` images, classes in proportion and each at least once where `count` allows; all if there are fewer.

        They keep their order. With one seed, a smaller subset lies within every larger one. Raises MemtokError for
        a count below 1.
        """
        chosen = self.chosen(count, seed)
        return self if len(chosen) == len(self) else self.select(chosen)

    def chosen(self, count: int, seed: int = 0) -> Indices:
        """The images that `take` selects: their indices (count,), ascending."""
        if count < 1:
            raise MemtokError(f"expected a number of images from 1 on, found {count}; ask for more", argument="count")
        if count >= len(self):
            return np.arange(len(self))
        return np.sort(stratified_order(self.labels, check_seed(seed))[:count])


@dataclass(frozen=True, eq=False, kw_only=True)
class DataSource:
    """A data set in three parts.

    `spec`: what was asked for, such as `digits` or `folder:photos`; `name`: a short name. `classes`: their names in the
    order of the labels. `test` is a part of its own where there is one (`has_test`), else the validation part.
    `split_kind`, `seed`, `fraction`: how the parts were made. `augment`: the default augmentation of its images in
    training ("inception", "crop" or "none"), `flip`: whether they are mirrored by default. `left_out`: what could not
    be read, (path, reason) each; `skipped`: the paths alone. `peak`: the largest value in those of its images that are
    taken as 16 bits, None where there are none, or where it is not known.
    """

    spec: str
    name: str
    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    split_kind: str
    seed: int | None = None
    fraction: float | None = None
    flip: bool = True
    augment: str = "inception"
    left_out: tuple[LeftOut, ...] = ()
    peak: float | None = None

    def __post_init__(self) -> None:
        check_classes(self.classes, self.spec)
        object.__setattr__(self, "classes", new_classes(self.classes))
        for part, images in self.parts.items():
            labels = images.labels
            if len(labels) == 0:
                raise MemtokError(f"expected images in the {part} part of {self.spec}, found none; add some to it")
            if labels.min() < 0 or labels.max() >= len(self.classes):
                raise MemtokError(
                    f"expected labels from 0 to {len(self.classes) - 1} in the {part} part of {self.spec}, found "
                    f"{labels.min()} to {labels.max()}; name every class"
                )

    @property
    def parts(self) -> dict[str, ImageSet]:
        """The three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def mapped(self, change: Callable[[ImageSet], ImageSet], **fields: Any) -> DataSource:
        """The source with every part changed, and with other values of some `fields`."""
        parts: dict[str, Any] = {part: change(images) for part, images in self.parts.items()}
        return replace(self, **parts, **fields)

    @property
    def skipped(self) -> tuple[str, ...]:
        """The paths of what could not be read."""
        return tuple(one.path for one in self.left_out)

    @cached_property
    def split_digest(self) -> str:
        """`sha256:` over the identities of the three parts."""
        return digest({part: images.identities for part, images in self.parts.items()})

    @cached_property
    def has_test(self) -> bool:
        """Whether no image of `test` is in the validation part, which chooses the best state of a training."""
        return self.test is not self.validation and set(self.test.identities).isdisjoint(self.validation.identities)

    def measured_part(self, part: str | None) -> str:
        """`part`; for None "test" where there is a test part, else "validation". MemtokError for a test part not there.

        Never "test" for images that training used to select its best checkpoint.
        """
        if part == "test" and not self.has_test:
            raise MemtokError(
                f"expected a test part in {self.spec}, found none apart from its validation part, which chooses the "
                f"best state; measure the validation part, or train with {Argument('split', '80-20')} to "
                "set a test part aside",
                argument="part",
            )
        return part or ("test" if self.has_test else "validation")

    @property
    def split(self) -> dict[str, Any]:
        """How the parts were made, for records: kind, seed, fraction, digest and the number of images (JSON-able).

        Where the data have no test part of their own it counts 0 images.
        """
        counts = {part: len(images) for part, images in self.parts.items()}
        return {
            "kind": self.split_kind,
            "seed": self.seed,
            "fraction": self.fraction,
            "digest": self.split_digest,
            "counts": counts if self.has_test else {**counts, "test": 0},
        }

    def only(self, classes: Sequence[str]) -> DataSource:
        """The images of these classes, numbered in the order given.

        Raises MemtokError for a class that the source does not have, one named twice, fewer than two, or if a part
        holds no image of them.
        """
        classes = [composed(name) for name in classes]
        unknown = [name for name in classes if name not in self.classes]
        if unknown:
            raise MemtokError(
                f"expected classes of {self.spec}, found {unknown[0]!r}; it has {listing(self.classes)}",
                argument="classes",
            )
        check_classes(classes, self.spec)
        renumbered = np.full(len(self.classes), -1, dtype=np.int64)
        renumbered[[self.classes.index(name) for name in classes]] = np.arange(len(classes))

        def restrict(part: ImageSet) -> ImageSet:
            labels = renumbered[part.labels]
            kept = labels >= 0
            return ImageSet(part.store, part.positions[kept], labels[kept])

        return self.mapped(restrict, classes=tuple(classes))

    def without(self, identities: Container[str], left_out: tuple[LeftOut, ...]) -> DataSource:
        """The source without the images of these identities; `left_out` are their paths and what is wrong with them."""

        def rest(part: ImageSet) -> ImageSet:
            return part.select([index for index, name in enumerate(part.identities) if name not in identities])

        return self.mapped(rest, left_out=left_out)


def check_classes(classes: Sequence[str], spec: str) -> None:
    """Raises MemtokError unless there are at least two classes, each once."""
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "none"
        raise MemtokError(
            f"expected at least two classes in {spec}, found {found}; name or add another", argument="classes"
        )
    twice = {name for name in classes if list(classes).count(name) > 1} if len(set(classes)) < len(classes) else set()
    if twice:
        raise MemtokError(
            f"expected every class of {spec} once, found {min(twice)!r} twice; name it once", argument="classes"
        )


def listing(names: Sequence[str], most: int = 12) -> str:
    """Names for a message, the first few of them where they are many."""
    text = ", ".join(names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"
