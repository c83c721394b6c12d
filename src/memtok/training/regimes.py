"""What is trained: a `Task` beside a frozen backbone, or a `FullModel`, and its forward pass; see memtok/regimes.py."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from memtok.backbone import Backbone
from memtok.checkpoint import save_checkpoint
from memtok.checks import check_classes, check_name, new_classes
from memtok.errors import Argument, MemtokError
from memtok.model import MemoryViT
from memtok.outputs import Outputs
from memtok.parts import Options, choose
from memtok.parts.head import HEAD_STD
from memtok.preprocessing import Preprocessing
from memtok.reference import variant_outputs
from memtok.regimes import FULL, find_regime
from memtok.surroundings import plain_torch
from memtok.task import Task, topological
from memtok.traces import KeptBatch
from memtok.training.compiler import Compiler


class FullModel(nn.Module):
    """Regime `full`: a copy of a backbone that trains as a whole, with a linear head for the classes.

    Attributes:
        vit: the timm model. name, classes, regime, preprocessing, record: as those of a Task.
        backbone_fingerprint, source: of the backbone that it started from.
    """

    def __init__(self, backbone: Backbone, vit: Any, *, name: str, classes: Sequence[str]) -> None:
        """From a timm model with its head in place; use `create`."""
        super().__init__()
        self.vit = vit
        self.name = check_name(name)
        self.classes = check_classes(classes)
        self.regime = FULL
        self.preprocessing: Preprocessing = backbone.preprocessing
        self.backbone_fingerprint = backbone.fingerprint
        self.source = backbone.source
        self.record: dict[str, Any] = {}

    @classmethod
    @plain_torch()
    def create(cls, backbone: Backbone, *, name: str, classes: Sequence[str], seed: int | None = None) -> FullModel:
        """A trainable float32 copy of `backbone` with a new head N(0, 0.02); the backbone itself stays as it is.

        seed: of the head; without it, it comes from torch's global generator.
        """
        classes = new_classes(classes)
        count = len(classes)
        generator = torch.Generator().manual_seed(seed) if seed is not None else None
        vit = copy.deepcopy(backbone.vit).float()
        vit.head = new_head(vit.num_features, count, generator, backbone.device)
        if hasattr(vit, "head_dist"):  # a distilled DeiT answers with the mean of two heads
            vit.head_dist = new_head(vit.num_features, count, generator, backbone.device)
        vit.num_classes = count
        vit.global_pool = vit.global_pool or "token"  # a model cut down to its tokens has lost this
        vit.requires_grad_(True)
        return cls(backbone, vit, name=name, classes=classes).train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, classes) logits of normalised images (B, 3, height, width)."""
        logits: Tensor = self.vit(images)
        return logits

    def without_decay(self) -> set[nn.Parameter]:
        """Parameters that weight decay leaves alone: tokens, positions, and vectors such as biases and norms."""
        tokens = [getattr(self.vit, name, None) for name in ("cls_token", "reg_token", "dist_token", "pos_embed")]
        vectors = [parameter for parameter in self.vit.parameters() if parameter.ndim <= 1]
        return {parameter for parameter in (*tokens, *vectors) if isinstance(parameter, nn.Parameter)}

    def save(self, path: str | Path) -> None:
        """Writes a `.safetensors` file that `load_backbone` reads, atomically."""
        save_checkpoint(self.vit, self.preprocessing, path, classes=self.classes, record=self.record)

    def extra_repr(self) -> str:
        return f"{self.name!r}, full, {len(self.classes)} classes, from {self.source!r}"


def new_head(inputs: int, classes: int, generator: torch.Generator | None, device: torch.device) -> nn.Linear:
    """A linear layer with weights N(0, 0.02) and no bias yet."""
    # Made without values, or torch would draw some from its global generator.
    head = nn.Linear(inputs, classes, device="meta", dtype=torch.float32).to_empty(device=device)
    with torch.no_grad():
        head.weight.copy_(
            torch.randn(head.weight.shape, generator=generator, dtype=torch.float32, device="cpu") * HEAD_STD
        )
        head.bias.zero_()
    return head


Trainable = Task | FullModel


def create(
    backbone: Backbone,
    *,
    regime: str = "memory",
    name: str,
    classes: Sequence[str],
    extends: Sequence[Task] = (),
    seed: int | None = None,
    **options: Unpack[Options],
) -> Trainable:
    """A new Task, or FullModel in regime `full`; the arguments are those of `Task.create`."""
    rules = find_regime(regime)
    if not rules.whole:
        return Task.create(backbone, name=name, classes=classes, extends=extends, regime=regime, seed=seed, **options)
    choose(rules, options)  # which a whole model has none of
    if extends:
        raise MemtokError(
            f"expected no {Argument('extends')} in regime {regime!r}, found some; leave it out, or use regime 'memory'"
        )
    return FullModel.create(backbone, name=name, classes=classes, seed=seed)


@dataclass(frozen=True)
class Forward:
    """From a batch to the logits (B, classes) of every task. folded: a block in which nothing trains."""

    run: Callable[[Any], list[Tensor]]
    folded: Callable[[], AbstractContextManager[None]] = nullcontext

    def __call__(self, batch: Tensor | KeptBatch) -> list[Tensor]:
        return self.run(batch)


def forward_of(trainables: Sequence[Trainable], compiler: Compiler | None = None) -> Forward:
    """From a batch to logits (B, classes) per task, which training differentiates, compiled if there is a compiler.

    A batch: normalised images (B, 3, height, width), or for tasks their kept traces. Only tasks that compose share a
    pass; MemtokError for several of which one does not.
    """
    first = trainables[0]
    if isinstance(first, FullModel):
        whole = compiler.function(full_logits, first.vit) if compiler else first
        return Forward(lambda images: [whole(images)])
    if compiler and not first.composable and len(trainables) == 1:
        variant = compiler.function(variant_logits, first.backbone, first)
        return Forward(lambda images: [variant(images)])
    names = [task.name for task in trainables]
    tasks = [task for task in trainables if isinstance(task, Task)]
    model = MemoryViT(first.backbone, topological(tasks)).select(names)
    model.run_with(compiler.layers if compiler else None)

    def logits(batch: Tensor | KeptBatch) -> list[Tensor]:
        out = answers(model, batch)
        return [out[name] for name in names]

    return Forward(logits, model.folded)


def full_logits(vit: Any, images: Tensor) -> Tensor:
    """(B, classes) of a whole model; what is compiled of regime `full`."""
    logits: Tensor = vit(images)
    return logits


def variant_logits(backbone: Backbone, task: Task, images: Tensor) -> Tensor:
    """(B, classes) of a task that image tokens see; what is compiled of such regimes."""
    return variant_outputs(backbone, task, images).logits[task.name]


def answers(model: MemoryViT, batch: Tensor | KeptBatch) -> Outputs:
    """What the tasks of a model say to a batch of images, or of kept traces; no base output."""
    if isinstance(batch, KeptBatch):
        return model.answer(batch.trace(model.backbone.dtype), base=False)
    outputs: Outputs = model(batch, base=False)
    return outputs


def frozen_parts(trainable: Trainable) -> tuple[nn.Module, ...]:
    """What the forward pass needs beside the trainable itself."""
    return () if isinstance(trainable, FullModel) else (trainable.backbone, *trainable.ancestors())


def check_trainable(trainable: Trainable) -> None:
    """MemtokError unless all parameters may change and are float32."""
    if not isinstance(trainable, Task | FullModel):
        raise MemtokError(
            f"expected a Task or a FullModel to train, found {type(trainable).__name__}; make one with Task.create",
            argument="task",
        )
    for key, parameter in trainable.named_parameters():
        if not parameter.requires_grad:
            raise MemtokError(
                f"expected a task that may train, found {trainable.name!r} with {key} frozen (another task extends it, "
                "or it was frozen by hand); train a copy: copy.deepcopy(task).requires_grad_(True)",
                argument="task",
            )
        if parameter.dtype != torch.float32:
            raise MemtokError(
                f"expected parameters in float32, found {key} of {trainable.name!r} in {parameter.dtype}; call "
                f".float() on it ({Argument('precision', 'bf16')} computes faster and keeps float32 parameters)",
                argument="task",
            )


def count_parameters(trainable: Trainable) -> tuple[int, int]:
    """(numbers that train, numbers in the whole model, the backbone and extended tasks among them)."""
    own = sum(parameter.numel() for parameter in trainable.parameters())
    frozen = sum(parameter.numel() for part in frozen_parts(trainable) for parameter in part.parameters())
    return own, own + frozen
