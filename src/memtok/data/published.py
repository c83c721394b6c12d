"""A published data set in the data folder, and the two ways to split it.

The readers of the named sets (mnist.py, cifar.py ...) return a `Published`; `in_parts` makes the DataSource of it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from memtok.data.choices import EIGHTY_TWENTY, OFFICIAL
from memtok.data.file_cache import cache_file
from memtok.data.finding import summary
from memtok.data.images import LeftOut, Progress, look_at_images
from memtok.data.sources import DataSource, FileStore, ImageSet
from memtok.data.splits import TEST_FRACTION, Indices, draw_validation
from memtok.errors import MemtokError

logger = logging.getLogger("memtok")

VALIDATION_FRACTION = 0.1
"""The share of a named set's training images that validates."""


@dataclass(frozen=True, eq=False)
class Published:
    """All labelled images of a data set, and which of them its official parts hold.

    `official`: positions in `images` (images,) of the official training and test parts; None if the official
    lists are missing, and `lists` then says which files are needed and where.
    """

    classes: tuple[str, ...]
    images: ImageSet
    official: tuple[Indices, Indices] | None
    lists: str = ""

    @classmethod
    def of_two_parts(cls, classes: tuple[str, ...], train: ImageSet, test: ImageSet) -> Published:
        """A set that comes as a training and a test part."""
        together = train.joined(test)
        numbers = np.arange(len(together))
        return cls(classes, together, (numbers[: len(train)], numbers[len(train) :]))


def in_parts(
    name: str, published: Published, *, augment: str, flip: bool, split: str | None, seed: int, fraction: float
) -> DataSource:
    """The data set in three parts; see `open_data` for `split`.

    With one seed and fraction the parts are the same in every process. Raises MemtokError where an official split is
    asked for and its lists are not at hand.
    """
    kind = split or (EIGHTY_TWENTY if published.official is None else OFFICIAL)
    if kind == EIGHTY_TWENTY:
        rest, test = split_off(published.images, seed, TEST_FRACTION)
    elif published.official is None:
        raise MemtokError(
            f"expected the official split of {name}, found {published.lists}; put them there, or use the 80-20 split",
            argument="split",
        )
    else:
        rest, test = (published.images.select(part) for part in published.official)
    train, validation = split_off(rest, seed, fraction)
    return DataSource(
        spec=name,
        name=name,
        classes=published.classes,
        train=train,
        validation=validation,
        test=test,
        split_kind=kind,
        seed=seed,
        fraction=fraction,
        flip=flip,
        augment=augment,
    )


def split_off(images: ImageSet, seed: int, fraction: float) -> tuple[ImageSet, ImageSet]:
    """(rest, part) of `images`, the part stratified and drawn from `seed`; each stays in its order."""
    names = images.identities
    chosen = draw_validation(names, images.labels, fraction=fraction, seed=seed)
    drawn = np.fromiter((name in chosen for name in names), dtype=bool, count=len(names))
    return images.select(np.flatnonzero(~drawn)), images.select(np.flatnonzero(drawn))


def without_unreadable(data: DataSource, data_dir: Path, progress: Progress | None) -> DataSource:
    """`data` without the image files that cannot be read, which `skipped` names; its parts are not drawn anew.

    Checking every file takes long the first time; results are cached, as for folders.
    """
    store = data.train.store
    if not isinstance(store, FileStore):
        return data  # images in memory were read when the set was opened
    names = [name for part in data.parts.values() for name in part.identities]
    bad, _ = look_at_images(
        store.root, names, cache=cache_file(data_dir / "checked" / data.name, store.root), progress=progress
    )
    if not bad:
        return data
    left_out = tuple(LeftOut(str(store.root / name), reason) for name, reason in bad.items())
    logger.warning("%s: %s", data.name, summary(left_out))
    return data.without(bad, left_out)
