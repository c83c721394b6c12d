"""The backbone and the data of an experiment, from its settings."""

from __future__ import annotations

import torch

from memtok.backbone import Backbone, load_backbone
from memtok.data import DataSource, open_data
from memtok.errors import MemtokError
from memtok.training.settings import default_workers
from memtok_experiments.beyond.settings import BeyondSettings
from memtok_experiments.settings import GridSettings

Asked = GridSettings | BeyondSettings


def open_backbone(settings: Asked) -> Backbone:
    """The backbone at the size that is asked for, on the device that trains."""
    gpu = settings.device != "cpu" and torch.cuda.is_available()
    return load_backbone(settings.backbone, image_size=settings.image_size, device="cuda" if gpu else "cpu")


def open_with_test(spec: str, name: str, settings: Asked) -> DataSource:
    """Whole data, called `name` in errors; MemtokError where no part is kept apart for testing."""
    source = open_data(spec, data_dir=settings.data_dir, split=settings.split, on_bad_image=settings.on_bad_image)
    if not source.has_test:
        raise MemtokError(
            f"expected a test part apart from the validation part in {name}, found one part for both; use "
            "--split 80-20, or add a folder test/"
        )
    return source


def workers_of(settings: Asked, backbone: Backbone) -> int:
    """Processes that load test images, as in training."""
    return default_workers(backbone.device) if settings.workers is None else settings.workers
