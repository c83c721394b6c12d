"""A torch Dataset of the user as a data source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from torch.utils.data import Subset

from memtok.data.images import is_deep
from memtok.data.loader import kept_random_state
from memtok.data.published import split_off
from memtok.data.sources import DataSource, ImageSet
from memtok.data.splits import Indices, check_fraction, check_seed
from memtok.data.transforms import as_image
from memtok.errors import MemtokError

VALIDATION_FRACTION = 0.2


@dataclass(frozen=True)
class DatasetStore:
    """The images of a torch Dataset; `labels` are the labels that its items are expected to have."""

    dataset: Any
    labels: Indices
    prefix: str
    draws: ClassVar[bool] = True  # it may augment its items

    def read(self, position: int) -> Image.Image:
        image, label = _pair(self.dataset, position)
        if label != self.labels[position]:
            raise MemtokError(
                f"expected label {self.labels[position]} of item {position}, as the data set said before, found "
                f"{label}; give a data set whose labels stay",
                argument="dataset",
            )
        deep = isinstance(image, Image.Image) and is_deep(image)
        return image if deep else as_image(image, f"item {position}")

    def identity(self, position: int) -> str:
        return f"{self.prefix}/{position}"

    def content(self, positions: Indices) -> list[bytes] | None:
        return None  # unknown without reading every item


def from_dataset(
    dataset: Any,
    classes: Sequence[str] | None = None,
    *,
    name: str = "dataset",
    validation: Any = None,
    test: Any = None,
    seed: int = 0,
    validation_fraction: float = VALIDATION_FRACTION,
    flip: bool = True,
) -> DataSource:
    """Wraps a torch Dataset (with a length) of (image, label) as a DataSource.

    An image is a PIL image, a float tensor (channels, height, width) in [0, 1], a uint8 tensor of that shape, or a
    uint8 array (height, width[, channels]). memtok converts it to 8 bits and normalises it itself, so give it without
    normalisation. A label is a whole number from 0. `classes` are their names, by default `dataset.classes`. Without
    `validation` (another such data set) a stratified part of `dataset` is drawn from `seed`; without `test` there
    is no test part (`has_test`). `flip`: whether images may be mirrored. If not, training uses
    random crops by default, not the small parts of Inception's augmentation.
    """
    names = tuple(str(one) for one in (_classes(dataset) if classes is None else classes))
    whole = _image_set(dataset, "train")
    if validation is None:
        train, held_out = split_off(whole, check_seed(seed), check_fraction(validation_fraction))
    else:
        train, held_out = whole, _image_set(validation, "validation")
    return DataSource(
        spec=name,
        name=name,
        classes=names,
        train=train,
        validation=held_out,
        test=held_out if test is None else _image_set(test, "test"),
        split_kind="drawn" if validation is None else "given",
        seed=seed if validation is None else None,
        fraction=validation_fraction if validation is None else None,
        flip=flip,
        augment="inception" if flip else "crop",
    )


def _image_set(dataset: Any, part: str) -> ImageSet:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise MemtokError(
            f"expected a data set with a length and items by number, found {type(dataset).__name__}; give a map-style "
            "torch Dataset",
            argument="dataset",
        )
    labels = _labels(dataset)
    return ImageSet.whole(DatasetStore(dataset, labels, part), labels)


def _classes(dataset: Any) -> Sequence[str]:
    if isinstance(dataset, Subset):
        return _classes(dataset.dataset)
    names = getattr(dataset, "classes", None)
    if names is None:
        raise MemtokError(
            f"expected the names of the classes, found none in {type(dataset).__name__}; give classes=[...]",
            argument="classes",
        )
    return list(names)


def _labels(dataset: Any) -> Indices:
    """The labels (items,) int64: from `targets` where no `target_transform` changes them, else item by item."""
    if isinstance(dataset, Subset):
        return _labels(dataset.dataset)[np.asarray(dataset.indices, dtype=np.int64)]
    targets = getattr(dataset, "targets", None)
    if targets is not None and getattr(dataset, "target_transform", None) is None:
        labels = np.asarray(targets)
        if labels.shape == (len(dataset),) and np.issubdtype(labels.dtype, np.integer):
            return labels.astype(np.int64)
    with kept_random_state():  # items may be augmented; looking at them must not move the user's generators
        return np.array([_pair(dataset, position)[1] for position in range(len(dataset))], dtype=np.int64)


def _pair(dataset: Any, position: int) -> tuple[Any, int]:
    item = dataset[position]
    try:
        image, label = item
        number = int(label)
        if number != label:
            raise ValueError("not a whole number")
    except (TypeError, ValueError) as error:
        raise MemtokError(
            f"expected (image, label) with a whole number as the label, found {type(item).__name__} at item "
            f"{position} ({error}); give a data set of such pairs",
            argument="dataset",
        ) from error
    return image, number
