"""A `MemoryViT` that is served: folded once, its parts selected by what a batch asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray

from memtok.checkpoint import portable_source
from memtok.data.transforms import Normaliser
from memtok.evaluation import BASE, classes_of
from memtok.model import MemoryViT
from memtok.preprocessing import Preprocessing
from memtok.serving.models import Answers, NotFiniteError, Pixels, Scores, TaskFacts, readable
from memtok.task import Task

TASK_TOKEN, BACKBONE_TOKEN = "class token of the task", "class token of the backbone"

SELECTED = 0.5
"""A batch that asks for at most this share of the tasks is answered by a model of those alone."""


class TorchModel:
    """A model of tasks that may change: `replacing` and `without` give another one."""

    fixed = False

    def __init__(self, model: MemoryViT) -> None:
        self.model = model
        self.tasks: Mapping[str, TaskFacts] = {task.name: facts(task) for task in answered(model)}
        self._block: AbstractContextManager[None] = model.folded()
        self._block.__enter__()  # until this value is dropped
        self._normalise = Normaliser(model.preprocessing)

    @property
    def preprocessing(self) -> Preprocessing:
        """What happens to an image before."""
        return self.model.preprocessing

    @property
    def backbone(self) -> tuple[str, str]:
        """Source and fingerprint of the backbone."""
        return portable_source(self.model.backbone.source), self.model.backbone.fingerprint

    @property
    def base_classes(self) -> tuple[str, ...] | None:
        """The backbone's own classes, None where it has no classifier."""
        return classes_of(self.model, BASE) if self.model.backbone.base_classes else None

    @property
    def embeds(self) -> bool:
        """True: a backbone always gives its features."""
        return True

    def answer(self, pixels: Pixels, names: Sequence[str], *, base: bool = False, embedding: bool = False) -> Answers:
        """Answers of these tasks to (B, C, H, W) pixels."""
        wanted = set(names)
        with torch.inference_mode():
            images = self._normalise(torch.from_numpy(pixels).to(self.model.backbone.device))
            if len(wanted) <= SELECTED * len(self.tasks):
                part = self.model.select([name for name in self.tasks if name in wanted])
                with part.folded():
                    out = part(images, base=base or embedding)
            else:
                out = self.model(images, base=base or embedding)
            logits = {name: out[name].float() for name in out.names if name in wanted}
            if base:
                assert out.base is not None
                logits[BASE] = out.base.float()
            for name, rows in logits.items():
                if not bool(rows.isfinite().all()):
                    raise NotFiniteError(name, "serve it with --precision float32")
            probabilities = {name: array_of(rows.softmax(dim=1)) for name, rows in logits.items()}
            features = array_of(out.features.float()) if embedding and out.features is not None else None
        return Answers(probabilities, {name: array_of(rows) for name, rows in logits.items()}, features)

    def attention(self, pixels: Pixels, name: str) -> NDArray[np.float32]:
        """(rows, columns) attention weights, mean over heads and the task's class tokens, last layer.

        Of a task without class tokens those of the backbone's, which its head reads.
        """
        backbone = self.model.backbone
        with torch.inference_mode():
            images = self._normalise(torch.from_numpy(pixels[None]).to(backbone.device))
            if self.tasks[name].attention == BACKBONE_TOKEN:
                weights = backbone.attention(images)[0]  # (H, N)
            else:
                found = self.model.select([name])(images, base=False, attention=True).attention[name].image
                weights = found[-1, 0].flatten(0, 1)  # (H queries, N)
        patches = weights.float().mean(dim=0)[backbone.prefix_tokens :]  # (rows * columns,)
        return array_of(patches.reshape(backbone.grid))

    def replacing(self, task: Task) -> TorchModel:
        """A model with this task, in the place of the one of its name if there is one."""
        tasks = list(self.model.tasks)
        places = [place for place, other in enumerate(tasks) if other.name == task.name]
        if places:
            tasks[places[0]] = task
        else:
            tasks.append(task)
        return self._with(tasks)

    def without(self, name: str) -> TorchModel:
        """A model without this task; MemtokError if another extends it."""
        return self._warm(TorchModel(self.model.remove(name)))

    def _with(self, tasks: Sequence[Task]) -> TorchModel:
        return self._warm(TorchModel(MemoryViT(self.model.backbone, tasks)))

    def _warm(self, made: TorchModel) -> TorchModel:
        """Answers once with it: what is computed on the first pass is there when it is swapped in."""
        height, width = made.preprocessing.image_size
        made.answer(np.zeros((1, 3, height, width), np.uint8), list(made.tasks))
        return made


def answered(model: MemoryViT) -> list[Task]:
    """The tasks that a model answers, in order."""
    by_name = {task.name: task for task in model.tasks}
    return [by_name[name] for name in model.names]


def facts(task: Task) -> TaskFacts:
    """What is told of a task."""
    tensors = task.tensors()
    read = None if task.backbone.class_token is None else BACKBONE_TOKEN
    return TaskFacts(
        name=task.name,
        classes=tuple(task.classes),
        fingerprint=task.fingerprint,
        regime=task.regime,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        extends=tuple(other.name for other in task.extends),
        attention=TASK_TOKEN if task.queries else read,
        record=readable(task.record),
    )


def array_of(tensor: torch.Tensor) -> Scores:
    """The numbers of a tensor."""
    found: Scores = np.ascontiguousarray(tensor.cpu().numpy(), dtype=np.float32)
    return found
