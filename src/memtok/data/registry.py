"""The data sets that have a name. Importing this module brings neither torch nor numpy along.

A new one is one row in `DATASETS` and a function that reads it from the data folder, in a module beside this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memtok.data.published import Published


@dataclass(frozen=True)
class NamedSet:
    """A row of the registry.

    `read`: reads the set from a data folder, or downloads it there. `augment`: the default augmentation of its images
    in training, a name of `memtok.data.AUGMENTATIONS`. `flip`: whether they are mirrored by default.
    """

    read: Callable[[Path], Published]
    augment: str
    flip: bool


def reader(module: str, function: str) -> Callable[[Path], Published]:
    """The `function` in memtok/data/MODULE.py, which is imported once it is called."""

    def read(data_dir: Path) -> Published:
        found: Published = getattr(import_module(f"memtok.data.{module}"), function)(data_dir)
        return found

    return read


# Augmentation: the paper has Inception preprocessing, and on CIFAR-100 a random crop. Digits must not be mirrored, and
# 8 % of the area of a digit cannot be recognised. Mirroring CIFAR-100 is our choice, as is usual for CIFAR.
DATASETS: dict[str, NamedSet] = {
    "digits": NamedSet(reader("mnist", "read_digits"), augment="crop", flip=False),
    "mnist": NamedSet(reader("mnist", "read_mnist"), augment="crop", flip=False),
    "fashion-mnist": NamedSet(reader("mnist", "read_fashion_mnist"), augment="inception", flip=True),
    "cifar10": NamedSet(reader("cifar", "read_cifar10"), augment="inception", flip=True),
    "cifar100": NamedSet(reader("cifar", "read_cifar100"), augment="crop", flip=True),
    "inaturalist2017": NamedSet(reader("inaturalist", "read_inaturalist2017"), augment="inception", flip=True),
    "places365": NamedSet(reader("places", "read_places365"), augment="inception", flip=True),
    "sun397": NamedSet(reader("sun", "read_sun397"), augment="inception", flip=True),
}
