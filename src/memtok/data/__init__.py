"""Data: sources by name, splits, transforms, and batches that do not depend on how they are loaded.

Names are imported when they are first used: opening and naming data sets needs no torch, and the command line checks
its arguments before it loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Public name -> module that defines it.
_HOMES = {
    "DATASETS": "registry",
    "check_spec": "datasets",
    "check_split": "datasets",
    "default_data_dir": "datasets",
    "open_data": "datasets",
    "IMAGE_EXTENSIONS": "images",
    "UnreadableImageError": "images",
    "as_rgb": "images",
    "read_image": "images",
    "batches": "loader",
    "kept_random_state": "loader",
    "steps_per_epoch": "loader",
    "DataSource": "sources",
    "ImageSet": "sources",
    "SPLITS": "choices",
    "AUGMENTATIONS": "choices",
    "evaluation_transform": "transforms",
    "training_transform": "transforms",
    "from_dataset": "wrapped",
}

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "IMAGE_EXTENSIONS",
    "SPLITS",
    "DataSource",
    "ImageSet",
    "UnreadableImageError",
    "as_rgb",
    "batches",
    "check_spec",
    "check_split",
    "default_data_dir",
    "evaluation_transform",
    "from_dataset",
    "kept_random_state",
    "open_data",
    "read_image",
    "steps_per_epoch",
    "training_transform",
]

if TYPE_CHECKING:
    from memtok.data.choices import AUGMENTATIONS, SPLITS
    from memtok.data.datasets import check_spec, check_split, default_data_dir, open_data
    from memtok.data.images import IMAGE_EXTENSIONS, UnreadableImageError, as_rgb, read_image
    from memtok.data.loader import batches, kept_random_state, steps_per_epoch
    from memtok.data.registry import DATASETS
    from memtok.data.sources import DataSource, ImageSet
    from memtok.data.transforms import evaluation_transform, training_transform
    from memtok.data.wrapped import from_dataset


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'memtok.data' has no attribute {name!r}")
    value = getattr(import_module(f"memtok.data.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
