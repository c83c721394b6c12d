"""An exported ONNX file that is served, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from memtok.data.pixels import normalised_array
from memtok.errors import MemtokError
from memtok.exports.description import BASE, EMBEDDING
from memtok.exports.opened import OnnxModel
from memtok.preprocessing import Preprocessing
from memtok.serving.models import Answers, NotFiniteError, Pixels, TaskFacts, softmax


class ExportedModel:
    """The tasks of a file, which do not change."""

    fixed = True

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.tasks: Mapping[str, TaskFacts] = {
            task.name: TaskFacts(task.name, task.classes, task.fingerprint, extends=tuple(n for n, _ in task.extends))
            for task in model.description.tasks
        }

    @property
    def preprocessing(self) -> Preprocessing:
        """What happens to an image before."""
        return self.model.preprocessing

    @property
    def backbone(self) -> tuple[str, str]:
        """Source and fingerprint of the backbone."""
        return self.model.description.backbone, self.model.description.fingerprint

    @property
    def base_classes(self) -> tuple[str, ...] | None:
        """The backbone's own classes, None where the file does not have them."""
        return self.model.classes.get(BASE)

    @property
    def embeds(self) -> bool:
        """Whether the file was exported with the embedding."""
        return self.model.description.embedding is not None

    def answer(self, pixels: Pixels, names: Sequence[str], *, base: bool = False, embedding: bool = False) -> Answers:
        """Answers of these tasks to (B, C, H, W) pixels; the file computes all of them."""
        found = self.model(normalised_array(pixels, self.preprocessing))
        scores = {name: found[name] for name in (*names, *([BASE] if base else []))}
        for name, rows in scores.items():
            if not np.isfinite(rows).all():
                raise NotFiniteError(name, "export the model in float32")
        features = found[EMBEDDING] if embedding else None
        if self.model.description.scores == "probabilities":
            return Answers(scores, None, features)
        return Answers({name: softmax(rows) for name, rows in scores.items()}, scores, features)

    def attention(self, pixels: Pixels, name: str) -> NDArray[np.float32]:
        """An exported file has no attention weights: MemtokError."""
        raise MemtokError("expected a model with attention weights, found an exported file; serve the task files")
