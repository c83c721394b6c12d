"""What all contenders of a process share: the backbone, images and labels, tasks, and noise as training data."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from typing import Any, Self

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from memtok.backbone import Backbone, load_backbone
from memtok.data import DataSource, from_dataset
from memtok.data.transforms import Normaliser
from memtok.errors import MemtokError
from memtok.task import Task
from memtok.training.device import Processes, processes_for
from memtok.training.plan import Plan, make_plan
from memtok.training.settings import Settings
from memtok_benchmarks.sizes import TINY, Sizes

STEPS = 1_000_000  # of the run that the timed steps belong to: it does not end, and its learning rate hardly changes


class Noise:
    """A data set of grey images, one per class: steps are timed on tensors in memory."""

    def __init__(self, classes: int, size: tuple[int, int]) -> None:
        self.classes = [f"class {index}" for index in range(classes)]
        self.targets = list(range(classes))
        self.picture = torch.full((3, *size), 128, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.picture, self.targets[index]


class Scene:
    """A context manager; what its `stack` holds ends with it. Everything is made on first use.

    changes: arguments of timm's model that no size names, such as depth.
    """

    def __init__(self, sizes: Sizes, **changes: Any) -> None:
        self.sizes, self.changes = sizes, changes
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        torch.set_num_threads(self.sizes.threads)
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    @cached_property
    def processes(self) -> Processes:
        """As the training loop has it."""
        return processes_for(self.sizes.device, self.sizes.precision)

    @cached_property
    def device(self) -> torch.device:
        """The device of everything."""
        return torch.device(self.sizes.device)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the frozen backbone; what trains is float32."""
        return torch.bfloat16 if self.sizes.precision == "bf16" else torch.float32

    def autocast(self) -> torch.autocast:
        """Mixed precision for the training of float32 models in a bf16 run; no effect in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.sizes.precision == "bf16")

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen backbone: one for all contenders that do not change it."""
        return load_backbone(self.vit(), dtype=self.dtype, device=self.device)

    def give_up_backbone(self) -> None:
        """Keeps images and labels only; contenders that use the backbone hold a reference to it."""
        _ = self.images, self.labels
        del self.__dict__["backbone"]

    def vit(self) -> VisionTransformer:
        """The timm model, with random weights."""
        return make_vit(self.sizes, **self.changes)

    @cached_property
    def pixels(self) -> Tensor:
        """(batch, 3, height, width) noise in uint8, as the input of memtok's training loop."""
        height, width = self.backbone.preprocessing.image_size
        generator = torch.Generator().manual_seed(self.sizes.seed)
        shape = self.sizes.batch, 3, height, width
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(self.device)

    @cached_property
    def images(self) -> Tensor:
        """The same normalised, (batch, 3, height, width) in float32."""
        return Normaliser(self.backbone.preprocessing)(self.pixels)

    @cached_property
    def labels(self) -> Tensor:
        """(batch,)"""
        generator = torch.Generator().manual_seed(self.sizes.seed)
        return torch.randint(self.sizes.classes, (self.sizes.batch,), generator=generator).to(self.device)

    def task(self, name: str, cells: int, seed: int = 0) -> Task:
        """A new task of the benchmark's number of classes."""
        names = [f"class {index}" for index in range(self.sizes.classes)]
        return Task.create(self.backbone, name=name, classes=names, memory=cells, seed=seed)

    def reader(self, name: str, classes: int, seed: int = 0, **options: Any) -> Task:
        """A new task of regime head with a readout of all levels. options: further ones of `Task.create`."""
        names = [f"class {index}" for index in range(classes)]
        levels = self.backbone.depth + 1
        made = {"regime": "head", "readout": levels, "seed": seed, **options}
        return Task.create(self.backbone, name=name, classes=names, **made)

    def tasks(self, count: int, cells: int) -> list[Task]:
        """Tasks `task-0`, `task-1`, ..., each with values of its own."""
        return [self.task(f"task-{index}", cells, seed=index) for index in range(count)]

    @cached_property
    def data(self) -> DataSource:
        """The training data of a run."""
        noise = Noise(self.sizes.classes, self.backbone.preprocessing.image_size)
        return from_dataset(noise, name="noise", validation=noise)

    @cached_property
    def settings(self) -> Settings:
        """The settings of a run."""
        return Settings(
            steps=STEPS, batch_size=self.sizes.batch, device=self.sizes.device, precision=self.sizes.precision
        )

    @cached_property
    def plan(self) -> Plan:
        """The numbers of the run that the timed steps are part of: the default recipe."""
        return make_plan(self.settings, "memory", self.data)


def make_vit(sizes: Sizes, **changes: Any) -> VisionTransformer:
    """The timm model with random weights; `changes` are arguments of its class, such as depth."""
    with torch.random.fork_rng(devices=[]):  # timm draws from the global generator
        torch.manual_seed(sizes.seed)
        if sizes.model == TINY:
            arguments: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
            vit: Any = VisionTransformer(img_size=sizes.image_size or 32, **(arguments | changes))
            vit.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic"}
        else:
            if sizes.image_size is not None:
                changes = {"img_size": sizes.image_size, **changes}
            try:
                vit = timm.create_model(sizes.model, pretrained=False, **changes)
            except (RuntimeError, TypeError, AssertionError) as error:
                raise MemtokError(
                    f"expected a timm model that can be made, found {sizes.model!r} ({' '.join(str(error).split())}); "
                    "see timm.list_models('vit*')",
                    argument="model",
                ) from error
    if not isinstance(vit, VisionTransformer):
        raise MemtokError(
            f"expected a timm VisionTransformer, found {type(vit).__name__} in {sizes.model!r}; see "
            "timm.list_models('vit*')",
            argument="model",
        )
    return vit.eval()
