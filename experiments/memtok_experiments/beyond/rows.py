"""The rows of `memtok reproduce beyond`: a data set, and how many of its images are trained on.

A row is called DATA, DATA@COUNT (so many training images, classes in proportion) or DATA@N-per-class. DATA is a data
set of memtok (`digits`, `folder:PATH`) or a folder that sets.py makes (`letters`). The images of a smaller row are
drawn anew by each seed. Its validation part is no larger than its training part, but LEAST_VALIDATION images if there
are so many: a method is chosen as somebody with few images would choose it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from memtok.errors import MemtokError

if TYPE_CHECKING:
    from memtok.data import DataSource, ImageSet

LEAST_VALIDATION = 100
SIZE = re.compile(r"(?P<data>.+)@(?P<count>[1-9][0-9]{0,8})(?P<each>-per-class)?")

# Folders of sets.py, and whether their images may be mirrored in training.
MADE = {"letters": False, "symbols": False, "drawings": True, "textures": True, "photographs": True}
NAMED = ("fashion-mnist@6000", "fashion-mnist@1000", "mnist@6000", "mnist@1000", "digits")
FEW = ("1-per-class", "5-per-class", "20-per-class")
FULL_SIZE = (*NAMED, *MADE)
FEW_IMAGES = tuple(f"{data}@{few}" for data in ("fashion-mnist", "mnist", *MADE) for few in FEW)
GROUPS = {"full-size": FULL_SIZE, "few": FEW_IMAGES, "all": FULL_SIZE + FEW_IMAGES}


@dataclass(frozen=True)
class Row:
    """data: as `memtok.data.open_data` takes it, or a folder of sets.py. count: training images, None for all of them.

    per_class: whether count is that of each class.
    """

    name: str
    data: str
    count: int | None = None
    per_class: bool = False

    def spec(self, sets: Path | None) -> str:
        """The data for `open_data`; sets: where the made folders lie. MemtokError where they do not."""
        if self.data not in MADE:
            return self.data
        if sets is None or not (sets / self.data / "train").is_dir():
            raise MemtokError(
                f"expected the folder {self.data}/train for row {self.name} in {sets or 'the folder --sets'}, found "
                f"none; make it with python -m memtok_experiments.beyond.sets {sets or 'DIR'} {self.data}, and name "
                "that folder with --sets"
            )
        return f"folder:{sets / self.data}"

    def drawn(self, source: DataSource, seed: int, test_images: int | None) -> DataSource:
        """The parts of this row, the training images drawn by `seed`, the test images always the same ones."""
        train = self.chosen(source.train, seed)
        validation = source.validation.take(max(len(train), LEAST_VALIDATION), seed=seed)
        test = source.test if test_images is None else source.test.take(test_images, seed=0)
        flip = MADE.get(self.data, source.flip)
        return replace(source, train=train, validation=validation, test=test, flip=flip)

    def chosen(self, images: ImageSet, seed: int) -> ImageSet:
        """The training images."""
        from memtok.data.splits import stratified_order

        if self.count is None:
            return images
        if not self.per_class:
            return images.take(self.count, seed=seed)
        order = stratified_order(images.labels, seed)
        labels = images.labels[order]
        rank = np.empty(len(order), dtype=np.int64)  # of an image within its class, in the drawn order
        for label in np.unique(labels):
            rank[labels == label] = np.arange((labels == label).sum())
        return images.select(np.sort(order[rank < self.count]))


def find_rows(names: tuple[str, ...]) -> tuple[Row, ...]:
    """The rows of these names, each once; `full-size`, `few` and `all` stand for several. MemtokError for others."""
    from memtok.data.datasets import check_spec

    spelled = dict.fromkeys(name for word in names for name in GROUPS.get(word, (word,)))
    found = []
    for name in spelled:
        match = SIZE.fullmatch(name)
        row = Row(name, match["data"], int(match["count"]), match["each"] is not None) if match else Row(name, name)
        if row.data not in MADE:
            try:
                check_spec(row.data)
            except MemtokError as error:
                raise MemtokError(
                    f"{error.message} (or one of {', '.join((*MADE, *GROUPS))})", argument="rows"
                ) from None
        found.append(row)
    return tuple(found)
