"""The attention weights of class tokens, measured and made ready for drawing.

Letters for shapes: L layers, B images, H heads, Q class tokens of a task, N tokens of the trunk, P of them prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from memtok.data import ImageSet
from memtok.evaluation import undisturbed
from memtok.inputs import prepare
from memtok.model import MemoryViT
from memtok.outputs import Outputs, TaskAttention
from memtok.reference import attention_mask

PARTS = ("image patches", "base class token", "own class token", "own memory")


@dataclass(frozen=True)
class View:
    """The images and charts of the report that are not made from numbers of the result.

    images: by digit. maps: by digit the task that was trained on it and the attention weights of its class token on the
    patches, (L, rows, columns) averaged over heads; each layer's map adds up to the share that goes to patches. mask:
    the attention mask of the model, (N + T, N + T + M) bool. rows, columns: labels along its edges, with counts.
    """

    images: dict[str, Image.Image]
    maps: dict[str, tuple[str, NDArray[np.float32]]]
    mask: NDArray[np.bool_]
    rows: list[tuple[str, int]]
    columns: list[tuple[str, int]]


def look(model: MemoryViT, images: ImageSet) -> dict[str, TaskAttention]:
    """The attention weights of every task on these images."""
    pictures = [images[index][0] for index in range(len(images))]
    with undisturbed(model):
        out: Outputs = model(prepare(pictures, model.preprocessing, model.backbone.device), base=False, attention=True)
    return out.attention


def attention_shares(model: MemoryViT, name: str, images: ImageSet) -> dict[str, tuple[float, ...]]:
    """For each of PARTS the share of the attention of task `name` in every layer, averaged over images and heads."""
    seen, prefix = look(model, images)[name], model.backbone.prefix_tokens
    parts = (seen.image[..., prefix:], seen.image[..., :prefix], seen.class_tokens, seen.memory)
    averages = (part.sum(dim=-1).mean(dim=(1, 2, 3)) for part in parts)  # (L,) each, from (L, B, H, Q, columns)
    return {label: tuple(average.tolist()) for label, average in zip(PARTS, averages, strict=True)}


def draw_view(model: MemoryViT, images: ImageSet, knows: Mapping[str, tuple[str, ...]]) -> View:
    """The view of one image per class. knows: the classes that each task was trained on."""
    attention, backbone = look(model, images), model.backbone
    shown, maps = {}, {}
    for index in range(len(images)):
        image, label = images[index]
        digit = str(label)
        task = next(name for name, classes in knows.items() if digit in classes)
        patches = attention[task].image[:, index, ..., backbone.prefix_tokens :].mean(dim=(1, 2))  # (L, patches)
        shown[digit] = image
        maps[digit] = task, patches.reshape(len(patches), *backbone.grid).numpy()
    trunk = [("image and base", backbone.tokens)]
    tokens = [(f"class token “{task.name}”", task.queries) for task in model.tasks]
    memory = [(f"memory “{task.name}”", task.cells) for task in model.tasks if task.cells]
    mask = attention_mask(backbone.tokens, model.tasks).numpy()
    return View(shown, maps, mask, trunk + tokens, trunk + tokens + memory)
