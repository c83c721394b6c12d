"""What all servers of a load test are given: tasks in a file, and photographs as JPEG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import memtok
from memtok.backbone import Backbone, load_backbone
from memtok.task import Task
from memtok_benchmarks.load.settings import Settings
from memtok_benchmarks.photographs import QUALITY, photograph

SPREAD = 2.0  # standard deviation of a logit, about: answers that differ between classes
FURTHER = 3  # tasks that are uploaded and removed during a load


@dataclass(frozen=True)
class Material:
    """A folder with `tasks-N.safetensors`, and the bytes of what is sent."""

    settings: Settings
    folder: Path
    images: tuple[bytes, ...]
    further: tuple[bytes, ...]  # task files

    def tasks(self, count: int) -> Path:
        """The file with the first `count` tasks."""
        return self.folder / f"tasks-{count}.safetensors"


def names(count: int) -> tuple[str, ...]:
    """What the tasks are called."""
    return tuple(f"task-{index}" for index in range(count))


def make(settings: Settings, folder: Path) -> Material:
    """Writes the tasks and draws the photographs."""
    backbone = load_backbone(settings.backbone, image_size=settings.image_size)
    counts = sorted({*settings.tasks, settings.steady_tasks})
    tasks = [new_task(backbone, settings, name, seed) for seed, name in enumerate(names(counts[-1]))]
    for count in counts:
        memtok.save_tasks(tasks[:count], folder / f"tasks-{count}.safetensors")
    further = []
    for index in range(FURTHER):
        path = folder / f"further-{index}.safetensors"
        new_task(backbone, settings, f"further-{index}", counts[-1] + index).save(path)
        further.append(path.read_bytes())
    return Material(settings, folder, photographs(settings.images, settings.side, settings.seed), tuple(further))


def new_task(backbone: Backbone, settings: Settings, name: str, seed: int) -> Task:
    """A task of random values whose head tells images apart: a fresh one answers nearly the same to all."""
    classes = [f"class {index}" for index in range(settings.classes)]
    task = Task.create(backbone, name=name, classes=classes, memory=settings.cells, seed=seed)
    with torch.no_grad():
        task.head.weight.normal_(0, SPREAD / backbone.dim**0.5, generator=torch.Generator().manual_seed(seed))
    return task


def photographs(count: int, side: int, seed: int) -> tuple[bytes, ...]:
    """Random JPEG files that take as long to decode as photographs, their shorter side `side` pixels."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        image = photograph(generator)
        scale = side / min(image.size)
        stream = io.BytesIO()
        image.resize((round(image.width * scale), round(image.height * scale))).save(stream, "jpeg", quality=QUALITY)
        found.append(stream.getvalue())
    return tuple(found)


def mean_bytes(images: Sequence[bytes]) -> int:
    """The mean size of the files."""
    return round(sum(map(len, images)) / len(images))
