"""Checkpoints of the public reproduction (github.com/necrashter/transformers-learnable-memory), read as tasks.

Such a file is a state dict of the whole model: the backbone under transformers' names, class tokens and heads in lists
whose first entry is the base one, memory per layer, and the attention mask as a buffer. From the mask it follows who
extends whom. Memory joined after the LayerNorm there, and images were pixels in [0, 1] without normalisation; imported
tasks keep both, or their accuracy would never come back.

The file is read with `torch.load(weights_only=True)`, which executes nothing.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtok.backbone import Backbone
from memtok.checkpoint.architecture import describe
from memtok.checkpoint.conversion import convert
from memtok.checkpoint.fingerprint import fingerprint_of
from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing
from memtok.task import Task

CLASS_TOKEN = "vit.embeddings.cls_tokens.{}"
MEMORY = "vit.encoder.layer.{}.attention.attention.memory_tokens.{}"
MASK = "vit.encoder.layer.{}.attention.attention.attention_mask"


def read_legacy(path: str | Path, backbone: Backbone, classes: Sequence[Sequence[str]] | None = None) -> list[Task]:
    """The tasks of an old checkpoint, in their order, on the backbone's device.

    classes: class names of each task; without them they are called "0", "1", and so on. Tasks are named by the file's
    stem without `_model`, followed by -1, -2 and so on where there are several. Raises MemtokError for a file of
    another kind and for one whose backbone is another.
    """
    state = load_state(Path(path))
    check_backbone(state, backbone, path)
    count = sum(1 for key in state if re.fullmatch(r"classifiers\.\d+\.weight", key)) - 1
    if count < 1:
        raise MemtokError(f"expected at least one added task in {path}, found the base one only; name another")
    if classes is not None and len(classes) != count:
        raise MemtokError(f"expected class names for the {count} tasks of {path}, found them for {len(classes)}")
    cells = [entry(state, MEMORY.format(0, index), path).shape[1] for index in range(count)]
    extends = read_mask(entry(state, MASK.format(0), path)[0], cells, path)
    preprocessing = legacy_preprocessing(state, backbone, path)
    stem = Path(path).stem.removesuffix("_model")
    if stem == "base":
        raise MemtokError(f"expected a name that a task may have, found {Path(path).name}; rename that file")
    tasks: list[Task] = []
    for index in range(count):
        weight = entry(state, f"classifiers.{index + 1}.weight", path)
        names = [str(label) for label in range(weight.shape[0])] if classes is None else list(classes[index])
        tensors = {
            "class_tokens": entry(state, CLASS_TOKEN.format(index + 1), path)[0],
            "memory": torch.cat([entry(state, MEMORY.format(layer, index), path) for layer in range(backbone.depth)]),
            "head.weight": weight,
            "head.bias": entry(state, f"classifiers.{index + 1}.bias", path),
        }
        tasks.append(
            Task(
                backbone,
                name=stem if count == 1 else f"{stem}-{index + 1}",
                classes=names,
                tensors={key: value.to(backbone.device, torch.float32) for key, value in tensors.items()},
                placement="after-norm",
                extends=[tasks[other] for other in extends[index]],
                preprocessing=preprocessing,
                record={"imported": Path(path).name, "regime": "memory"},
            )
        )
    return tasks


def load_state(path: Path) -> dict[str, Tensor]:
    """The state dict of an old checkpoint; MemtokError for any other file."""
    if not path.is_file():
        raise MemtokError(f"expected an old checkpoint, found no file {path}; check the path")
    try:
        with warnings.catch_warnings(action="ignore"):  # of other pickle protocols; they are refused below
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes the reader stumble over
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MemtokError(
            f"expected a state dict of the public reproduction in {path}, found something else ({first[:120]}); memtok "
            "reads tensors only and executes nothing"
        ) from error
    if not isinstance(state, dict) or CLASS_TOKEN.format(0) not in state:
        raise MemtokError(
            f"expected a state dict of the public reproduction in {path}, found none of its class tokens "
            f"({CLASS_TOKEN.format(0)}); import files named like CIFAR100_model.pt"
        )
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise MemtokError(f"expected tensors only in {path}, found other values; export the model's state_dict() again")
    shapes = {
        "vit.embeddings.position_embeddings": 3,
        CLASS_TOKEN.format(0): 3,
        "vit.embeddings.patch_embeddings.projection.weight": 4,
    }
    for key, dimensions in shapes.items():
        if entry(state, key, path).ndim != dimensions:
            raise MemtokError(
                f"expected {key} of {path} in {dimensions} dimensions, found {state[key].ndim}; it is damaged"
            )
    return state


def entry(state: dict[str, Tensor], key: str, path: str | Path) -> Tensor:
    """A tensor of the state dict; MemtokError if it lacks it."""
    if key not in state:
        raise MemtokError(f"expected {key} in {path}, found no such tensor; the checkpoint is not whole")
    return state[key]


def check_backbone(state: dict[str, Tensor], backbone: Backbone, path: str | Path) -> None:
    """MemtokError unless the backbone inside the file is, number for number, the given one."""
    if fingerprint_of(legacy_vit(state, backbone, path)) != backbone.fingerprint:
        raise MemtokError(
            f"expected a checkpoint of the backbone {backbone.source} ({backbone.fingerprint[:19]}), found other "
            f"weights in {path}; give the backbone that it was trained on"
        )


def legacy_vit(state: dict[str, Tensor], backbone: Backbone, path: str | Path) -> Any:
    """The backbone inside an old checkpoint as a timm model; what tensors do not say is taken from `backbone`."""
    own = re.compile(r"vit\.embeddings\.cls_tokens\.|.*\.(memory_tokens\.\d+|attention_mask)$|classifiers\.")
    tensors = {key: value for key, value in state.items() if not own.match(key)}
    tensors["vit.embeddings.cls_token"] = state[CLASS_TOKEN.format(0)]
    layers = {int(found[1]) for key in state if (found := re.match(r"vit\.encoder\.layer\.(\d+)\.", key))}
    facts = describe(backbone.vit)
    patches = entry(state, "vit.embeddings.patch_embeddings.projection.weight", path)
    config = {
        "model_type": "vit",
        "hidden_size": patches.shape[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": backbone.heads,
        "intermediate_size": entry(state, "vit.encoder.layer.0.intermediate.dense.bias", path).shape[0],
        "image_size": own_image_size(state, path),
        "patch_size": patches.shape[-1],
        "hidden_act": "gelu",
        "layer_norm_eps": facts.epsilon,
    }
    try:
        return convert(config, tensors).vit
    except MemtokError as error:
        raise MemtokError(
            f"expected the backbone {backbone.source} inside {path}, found another one: {error}"
        ) from error


def read_mask(mask: Tensor, cells: Sequence[int], path: str | Path) -> list[list[int]]:
    """For each task, the positions of those that it extends, from the stored mask (rows, columns) of 0 and -inf.

    The last rows are those of the tasks' class tokens, in order; their columns stand before those of the memory.
    """
    count = len(cells)
    first_column = mask.shape[1] - sum(cells) - count
    first_row = mask.shape[0] - count
    if first_row < 0 or first_column < 0:
        raise MemtokError(f"expected an attention mask for {count} tasks in {path}, found one of {tuple(mask.shape)}")
    sees = (mask[first_row:, first_column : first_column + count] == 0).tolist()
    return [[other for other in range(index) if sees[index][other]] for index in range(count)]


def own_image_size(state: dict[str, Tensor], path: str | Path) -> int:
    """Pixels of the square images that an old checkpoint was trained on, from its position embeddings and patches."""
    patches = entry(state, "vit.embeddings.patch_embeddings.projection.weight", path)
    side = round((entry(state, "vit.embeddings.position_embeddings", path).shape[1] - 1) ** 0.5)
    return int(side * patches.shape[-1])


def legacy_preprocessing(state: dict[str, Tensor], backbone: Backbone, path: str | Path) -> Preprocessing:
    """What the reproduction did to images: resized to its model's size, pixels in [0, 1], not normalised."""
    size = own_image_size(state, path)
    return Preprocessing(
        image_size=(size, size),
        resize=(size, size),
        crop=False,
        interpolation="bilinear",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        position_resize=backbone.preprocessing.position_resize,
    )
