"""Data: sources by name, splits, transforms, and batches that do not depend on how they are loaded.

Names are imported when they are first used: opening and naming data sets needs no torch, and the command line checks
its arguments before it loads torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memtok.lazy import lazily

# Public name -> module that defines it.
_HOMES = {
    "DATASETS": "memtok.data.registry",
    "check_spec": "memtok.data.datasets",
    "check_split": "memtok.data.datasets",
    "default_data_dir": "memtok.data.datasets",
    "open_data": "memtok.data.datasets",
    "IMAGE_EXTENSIONS": "memtok.data.images",
    "UnreadableImageError": "memtok.data.images",
    "as_rgb": "memtok.data.images",
    "read_image": "memtok.data.images",
    "batches": "memtok.data.loader",
    "kept_random_state": "memtok.data.loader",
    "steps_per_epoch": "memtok.data.loader",
    "DataSource": "memtok.data.sources",
    "ImageSet": "memtok.data.sources",
    "SPLITS": "memtok.data.choices",
    "AUGMENTATIONS": "memtok.data.choices",
    "evaluation_transform": "memtok.data.transforms",
    "training_transform": "memtok.data.transforms",
    "from_dataset": "memtok.data.wrapped",
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

__getattr__, __dir__ = lazily(__name__, _HOMES)
