"""What a run is fed with: pixels, which become the very numbers of the public transforms on the training device."""

from __future__ import annotations

import pytest
import torch

from memtok.backbone import Backbone
from memtok.data import AUGMENTATIONS, DataSource, batches, evaluation_transform, training_transform
from memtok.training.device import processes_for
from memtok.training.feed import Feed
from memtok.training.plan import make_plan
from memtok.training.settings import Settings
from memtok.training.trainer import Trainer
from tests.training.helpers import new_task


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_become_what_the_transforms_give(
    backbone: Backbone, data: DataSource, augment: str, workers: int
) -> None:
    settings = Settings(steps=3, batch_size=20, accumulate=3, augment=augment, device="cpu", seed=4)
    plan = make_plan(settings, "memory", data)
    task = new_task(backbone, data)
    feed = Feed(task, data, plan, workers)
    trained = batches(
        data.train, training_transform(backbone.preprocessing, augment, plan.flip), batch_size=20, seed=4, shuffle=True,
        steps=3,
    )  # fmt: skip
    trainer = Trainer([task], [plan], processes_for("cpu", "float32"), torch.device("cpu"))
    for (pixels, labels, _), (images, wanted, _) in zip(feed.training(0), trained, strict=True):
        assert isinstance(pixels, torch.Tensor)
        assert pixels.dtype == torch.uint8
        found = [part for part, _, _ in trainer.parts(pixels, labels)]
        assert len(found) == 3
        assert torch.equal(torch.cat([part for part in found if isinstance(part, torch.Tensor)]), images)
        assert torch.equal(labels, wanted)
    held_out = data.validation.select(feed.validated)
    validated = batches(held_out, evaluation_transform(backbone.preprocessing), batch_size=feed.validation_size)
    for (part, labels, _), (images, wanted, _) in zip(trainer.shares(feed.validation()), validated, strict=True):
        assert isinstance(part, torch.Tensor)
        assert torch.equal(part, images)
        assert torch.equal(labels, wanted)
