"""Which folders of a data set are its parts (training, validation, test), and which are its classes.

The name of a folder may be that of a part, but its content decides: a part holds a folder per class, a class holds
images. So `training` beside `running` and `swimming` is a class, and `Training` beside `Testing` with the same folders
is a part.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

from memtok.checks import composed
from memtok.data.finding import Inside, holds_images, look_into
from memtok.data.images import shown
from memtok.data.sources import listing
from memtok.data.splits import TEST, TRAIN, VALIDATION
from memtok.errors import MemtokError

logger = logging.getLogger("memtok")

# The words, and the separators between them and others, as in Hugging Face's image folder:
# https://huggingface.co/docs/hub/datasets-file-names-and-splits
WORDS = {
    TRAIN: {"train", "training"},
    VALIDATION: {"val", "valid", "validation", "dev"},
    TEST: {"test", "testing", "eval", "evaluation"},
}
BETWEEN_WORDS = re.compile(r"[-._ 0-9]+")


@dataclass(frozen=True)
class Top:
    """A folder directly in the data set."""

    path: Path

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of its name in small letters: `images` and `train` of Images_train2017."""
        return frozenset(BETWEEN_WORDS.split(self.path.name.casefold()))

    @cached_property
    def part(self) -> str | None:
        """The part in the name; None if it names none or two (`train_val`)."""
        parts = [part for part, words in WORDS.items() if words & self.words]
        return parts[0] if len(parts) == 1 else None

    @cached_property
    def plain(self) -> bool:
        """Whether the name is that of a part and nothing else."""
        return self.part is not None and self.path.name.casefold() in WORDS[self.part]

    @cached_property
    def inside(self) -> Inside:
        """Its content."""
        return look_into(self.path)

    @cached_property
    def folders(self) -> frozenset[str]:
        """The names of the folders in it."""
        return frozenset(composed(folder.name) for folder in self.inside.folders)

    @cached_property
    def classes(self) -> frozenset[str]:
        """The names of the folders in it, if it may be a part: none if there are images beside them."""
        return frozenset() if self.inside.images else self.folders

    def shares(self, others: Sequence[Top]) -> bool:
        """Whether one of the others has a class folder of the same name."""
        return any(self.classes & other.classes for other in others if other is not self)


def part_folders(root: Path, folders: Sequence[Path]) -> dict[str, Path]:
    """{"train": ..., "validation": ..., "test": ...} as far as they exist; {"train": root} if there are no parts.

    `folders` are those directly in `root`. Raises MemtokError if names and structure are ambiguous, and
    OSError for a folder that cannot be read.
    """
    tops = [Top(path) for path in folders]
    like_parts = [top for top in tops if top.part is not None]
    parts = [top for top in like_parts if top.plain or top.shares(like_parts)]
    others = [top for top in tops if top not in parts]
    trains = [top for top in parts if top.part == TRAIN and top.classes]
    if not parts or (others and not trains):
        _check_classes(root, tops)
        return {TRAIN: root}
    if others:
        _check_others(root, parts, trains[0], others)
    named = _one_of_each(root, parts)
    test = named.get(TEST)
    if test is not None and not look_into(test).folders and look_into(test).images:
        logger.warning("%s has no class folders, so its images have no labels: left out", shown(named.pop(TEST)))
    return named


def _check_classes(root: Path, tops: Sequence[Top]) -> None:
    """MemtokError if two of the folders look like parts whose names are not known: they hold the same class folders.

    Two folders of the same name in both, and half of what the smaller one has, are enough: a class may be missing in
    one part, and there may be an image or another folder beside them.
    """
    for one, other in combinations([top for top in tops if len(top.folders) > 1], 2):
        common = one.folders & other.folders
        if len(common) > 1 and 2 * len(common) >= min(len(one.folders), len(other.folders)):
            raise MemtokError(
                f"expected class folders in {shown(root)}, or parts called train, val and test, found "
                f"{shown(one.path.name)}/ and {shown(other.path.name)}/, both with the folders "
                f"{listing([shown(name) for name in sorted(common)], 4)}; rename the parts, or put the images of each "
                "class directly into its folder"
            )


def _check_others(root: Path, parts: Sequence[Top], train: Top, others: Sequence[Top]) -> None:
    """Logs which folders beside the parts are not read. MemtokError if they and `train` could be classes."""
    unread = [top for top in others if holds_images(top.path)]
    unnamed = [top for top in unread if top.part is None]
    if unnamed and not train.shares([top for top in parts if top.part != TRAIN]):
        raise MemtokError(
            f"expected class folders in {shown(root)}, or a test or validation part beside {shown(train.path.name)}/ "
            f"with the same folders, found {shown(unnamed[0].path.name)}/ beside it; move that elsewhere, or, if both "
            f"are classes, put the images directly into {shown(train.path.name)}/"
        )
    if unread:
        names = listing([f"{shown(top.path.name)}/" for top in unread], 4)
        logger.warning("beside %s in %s, not read: %s", f"{shown(train.path.name)}/", shown(root), names)


def _one_of_each(root: Path, parts: Sequence[Top]) -> dict[str, Path]:
    """The folder of each part. MemtokError for two of one part, and where there is none to train on."""
    named: dict[str, Path] = {}
    for top in parts:
        assert top.part is not None
        if top.part in named:
            raise MemtokError(
                f"expected one folder for {top.part} in {shown(root)}, found {shown(named[top.part].name)}/ and "
                f"{shown(top.path.name)}/; keep one of them"
            )
        named[top.part] = top.path
    if TRAIN not in named:
        raise MemtokError(
            f"expected train/ beside {shown(parts[0].path.name)}/ in {shown(root)}, found none; put the training "
            "images there, one folder per class"
        )
    return named
