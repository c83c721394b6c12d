"""The contenders: each a function that makes a model for a scene and returns the step to be timed.

The packages that a contender needs besides memtok are named, so that a missing one leaves a gap in a table and is no
error.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memtok.backbone import NOTHING
from memtok.model import MemoryViT
from memtok.task import Task
from memtok.traces import KeptBatch
from memtok.traces.record import OF_LEVELS
from memtok.training.measure import moments
from memtok.training.regimes import new_head
from memtok.training.trainer import Trainer
from memtok_benchmarks import peers
from memtok_benchmarks.dense import DenseMasked
from memtok_benchmarks.scene import Scene
from memtok_benchmarks.timing import Run

CLIP_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class Contender:
    """label: for the table. make: builds it. needs: packages on PyPI beside memtok's own dependencies."""

    label: str
    make: Callable[[Scene], Run]
    needs: tuple[str, ...] = ()

    @property
    def gap(self) -> str:
        """Why it cannot run: packages that are not installed; empty if there are none."""
        missing = [package for package in self.needs if not peers.installed(package)]
        return f"not installed: {', '.join(missing)}" if missing else ""


def trunk(scene: Scene) -> Run:
    """The unit of most rows: timm's own forward pass of the backbone, classifier included, without gradient."""
    return forward_pass(scene.backbone.vit, scene.images.to(scene.dtype))


def forward_pass(vit: Any, images: Tensor) -> Run:
    """A timm model's own pass over images (B, 3, height, width), without gradient."""

    def run() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = vit(images)
            return logits

    return run


def memtok_step(scene: Scene) -> Run:
    """One step of memtok's own training loop on one task: forward, backward, clip, AdamW."""
    return together(scene, 1)


def together(scene: Scene, tasks: int) -> Run:
    """One step of `tasks` configurations of a task at once, with learning rates that differ by a factor."""
    plans = [replace(scene.plan, learning_rate=scene.plan.learning_rate * 0.9**index) for index in range(tasks)]
    trainer = Trainer(scene.tasks(tasks, scene.sizes.training_cells), plans, scene.processes, scene.device)
    pixels, labels = scene.pixels, scene.labels
    return counted(lambda number: trainer.step(number, pixels, labels))


def reading_step(scene: Scene) -> Run:
    """One step of memtok's training loop on a readout of all levels, as it is after its measurement; the trunk runs."""
    trainer, _ = reading_trainer(scene)
    return counted(lambda number: trainer.step(number, scene.pixels, scene.labels))


def kept_reading_step(scene: Scene) -> Run:
    """The same step on features and statistics that are kept, in memory and in the precision of the store."""
    trainer, batch = reading_trainer(scene)
    return counted(lambda number: trainer.step(number, batch, scene.labels))


@torch.no_grad()
def reading_trainer(scene: Scene) -> tuple[Trainer, KeptBatch]:
    """The trainer of a readout of all levels that has measured the scene's images, and these as kept records."""
    task = scene.reader("task", scene.sizes.classes)
    trace = scene.backbone.trace(scene.images, reads=task.reads, keep=NOTHING)
    task.measure(moments([trace.statistics]))
    tensors = {OF_LEVELS + name: values.half() for name, values in trace.statistics.items()}
    assert trace.features is not None
    trainer = Trainer([task], [scene.plan], scene.processes, scene.device)
    return trainer, KeptBatch({"features": trace.features.float()} | tensors)


def counted(step: Callable[[int], object]) -> Run:
    """`step` called with 0, 1, 2, ... one after the other."""
    number = -1

    def run() -> object:
        nonlocal number
        number += 1
        return step(number)

    return run


def dense_step(scene: Scene, *, trainable: bool) -> Run:
    """A step in the dense masked form. With `trainable` as in the public reproduction: gradients of all parameters,
    but the optimizer updates those of the task only."""
    model = DenseMasked(scene.backbone, [scene.task("task", scene.sizes.training_cells)], trainable=trainable)
    images = scene.images if trainable else scene.images.to(scene.dtype)
    return supervised(scene, lambda: model(images)[0], model.task_parameters())


def vit_pytorch_step(scene: Scene) -> Run:
    """A step of vit-pytorch's `learnable_memory_vit.Adapter` on its own ViT, which the Adapter freezes."""
    peers.seeded(scene)
    adapter = peers.vit_pytorch_adapter(scene, peers.vit_pytorch_vit(scene), scene.sizes.training_cells)
    return supervised(scene, lambda: adapter(scene.images), peers.trained(adapter))


def lora_step(scene: Scene) -> Run:
    """A step of PEFT's LoRA, rank 8 on queries and values, on transformers' ViT."""
    peers.seeded(scene)
    model = peers.LoRA(scene, ("task",)).train()
    return supervised(scene, lambda: model(scene.images), peers.trained(model))


def probe_step(scene: Scene) -> Run:
    """A step of a linear probe with timm: features without gradient, a trained linear head. The cheapest step."""
    vit = scene.backbone.vit
    head = new_head(int(vit.num_features), scene.sizes.classes, None, scene.device)
    images = scene.images.to(scene.dtype)

    def forward() -> Tensor:
        with torch.no_grad():
            features: Tensor = vit.forward_head(vit.forward_features(images), pre_logits=True)
        logits: Tensor = head(features.float())
        return logits

    return supervised(scene, forward, list(head.parameters()))


def full_step(scene: Scene) -> Run:
    """A step of full fine-tuning with timm."""
    vit = fine_tuned(scene).requires_grad_(True).train()
    return supervised(scene, lambda: vit(scene.images), list(vit.parameters()))


def fine_tuned(scene: Scene) -> Any:
    """A float32 copy of the backbone with a new classifier: the result of full fine-tuning on one task."""
    vit = copy.deepcopy(scene.backbone.vit).float()
    vit.reset_classifier(scene.sizes.classes)
    return vit.to(scene.device).eval()


def supervised(scene: Scene, forward: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> Run:
    """A training step as memtok's loop makes it: cross-entropy, backward, clip by norm, AdamW, no wait for a device."""
    optimizer = torch.optim.AdamW(parameters, lr=scene.plan.learning_rate, weight_decay=scene.plan.weight_decay)
    labels = scene.labels

    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with scene.autocast():
            logits = forward()
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        return loss.detach()

    return run


# One training step of one task, by the name under which `memory` and `--profile` ask for it.
STEPS: dict[str, Contender] = {
    "memtok": Contender(label="memtok", make=memtok_step),
    "reproduction": Contender(
        label="dense masked, gradients everywhere", make=lambda scene: dense_step(scene, trainable=True)
    ),
    "dense": Contender(label="dense masked, frozen", make=lambda scene: dense_step(scene, trainable=False)),
    "vit-pytorch": Contender(label="vit-pytorch Adapter", make=vit_pytorch_step, needs=("vit-pytorch",)),
    "lora": Contender(label="PEFT LoRA r=8", make=lora_step, needs=("peft", "transformers")),
    "probe": Contender(label="timm linear probe", make=probe_step),
    "full": Contender(label="timm full fine-tuning", make=full_step),
}
TRUNK = Contender(label="trunk", make=trunk)
ALL: dict[str, Contender] = {"trunk": TRUNK, **STEPS}


def memtok_serving(scene: Scene, tasks: int, cells: int | None = None) -> Run:
    """All tasks in one pass of `MemoryViT`, the base output included. cells: per task, else those of serving."""
    return serving(scene, scene.tasks(tasks, scene.sizes.serving_cells if cells is None else cells))


def serving(scene: Scene, tasks: Sequence[Task], *, compiled: bool = False) -> Run:
    """These tasks in one pass of `MemoryViT`, the base output included. compiled: by torch, as it does by default."""
    model = MemoryViT(scene.backbone, tasks)
    if compiled:
        model.compile()
    images = scene.images
    scene.stack.enter_context(model.folded())

    def run() -> object:
        with torch.inference_mode():
            return model(images).logits

    return run


def dense_serving(scene: Scene, tasks: int) -> Run:
    """All tasks in one pass of the dense masked form."""
    model = DenseMasked(scene.backbone, scene.tasks(tasks, scene.sizes.serving_cells), trainable=False)
    return run_all(scene, [lambda: model(scene.images.to(scene.dtype))])


def vit_pytorch_serving(scene: Scene, tasks: int) -> Run:
    """vit-pytorch's adapters on one ViT, one pass for each: an Adapter answers one task."""
    peers.seeded(scene)
    vit = peers.vit_pytorch_vit(scene)
    adapters = [peers.vit_pytorch_adapter(scene, vit, scene.sizes.serving_cells).eval() for _ in range(tasks)]
    return run_all(scene, [lambda adapter=adapter: adapter(scene.images) for adapter in adapters])  # type: ignore[misc]


def lora_serving(scene: Scene, tasks: int) -> Run:
    """PEFT's adapters on one ViT, switched and run one after another: they change the image tokens."""
    peers.seeded(scene)
    names = tuple(f"task-{index}" for index in range(tasks))
    model = peers.LoRA(scene, names).eval()
    return run_all(scene, [lambda name=name: model.answer(name, scene.images) for name in names])  # type: ignore[misc]


def models_serving(scene: Scene, tasks: int) -> Run:
    """Fine-tuned models, each with a backbone of its own, one after another."""
    models = [fine_tuned(scene).to(scene.dtype) for _ in range(tasks)]
    images = scene.images.to(scene.dtype)
    return run_all(scene, [lambda model=model: model(images) for model in models])  # type: ignore[misc]


def run_all(scene: Scene, calls: Iterable[Callable[[], object]]) -> Run:
    """All calls without gradient, in bf16 where that is asked for."""
    listed = list(calls)

    def run() -> object:
        with torch.inference_mode(), scene.autocast():
            return [call() for call in listed]

    return run
