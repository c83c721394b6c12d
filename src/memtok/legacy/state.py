"""The content of an old checkpoint: its tensors, and by its attention mask, which task extends which."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memtok.errors import MemtokError
from memtok.legacy.files import PUBLISHED, LegacyFile, load_state

CLASS_TOKEN = "vit.embeddings.cls_tokens.{}"
POSITIONS = "vit.embeddings.position_embeddings"
PATCHES = "vit.embeddings.patch_embeddings.projection.weight"
MLP_BIAS = "vit.encoder.layer.{}.intermediate.dense.bias"
MEMORY = "vit.encoder.layer.{}.attention.attention.memory_tokens.{}"
MASK = "vit.encoder.layer.{}.attention.attention.attention_mask"
LAYER = re.compile(r"vit\.encoder\.layer\.([0-9]+)\.")
NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REPLACED = ("vit.embeddings.cls_token", "classifier.weight", "classifier.bias")  # lists in the reproduction
OWN = re.compile(
    r"vit\.embeddings\.cls_tokens\.(?P<token>[0-9]+)|classifiers\.(?P<head>[0-9]+)\.(weight|bias)"
    r"|vit\.encoder\.layer\.[0-9]+\.attention\.attention\.(attention_mask|memory_tokens\.(?P<memory>[0-9]+))"
)


@dataclass(frozen=True)
class OldCheckpoint:
    """A state dict of the reproduction, checked, but not yet compared with a backbone.

    file: where it is. state: its tensors. depth: layers. patches: image tokens. cells: memory cells of each
    task. extends: for each task, the positions of those that it extends.
    """

    file: LegacyFile
    state: dict[str, Tensor]
    depth: int
    patches: int
    cells: tuple[int, ...]
    extends: tuple[tuple[int, ...], ...]

    @property
    def arrangement(self) -> str:
        """How the tasks were composed: "alone", "concatenated" or "extended"."""
        return "alone" if len(self.cells) == 1 else "extended" if any(self.extends) else "concatenated"

    @property
    def image_size(self) -> int:
        """Pixels of the square images that it was trained on, from its position embeddings and patches."""
        return int(round(self.patches**0.5) * self.state[PATCHES].shape[-1])


def read_old(file: LegacyFile) -> OldCheckpoint:
    """An old checkpoint with all its parts checked against each other; MemtokError names the first that is wrong."""
    state, label = load_state(file), file.label
    if CLASS_TOKEN.format(0) not in state:
        raise MemtokError(
            f"expected a state dict of the public reproduction in {label}, found none of its class tokens "
            f"({CLASS_TOKEN.format(0)}); import files named like {PUBLISHED[0]}"
        )
    check_tensors(state, label)
    check_indices(state, label)
    count = max(added_task(found) for key in state if (found := OWN.fullmatch(key)))
    if count < 1:
        raise MemtokError(f"expected at least one added task in {label}, found the base one only; name another")
    depth = max((int(found[1]) for key in state if (found := LAYER.match(key))), default=-1) + 1
    if count * depth > len(state):  # every layer has memory cells of every task
        raise MemtokError(
            f"expected memory of {count} tasks in {depth} layers of {label}, found {len(state)} tensors only; it is "
            "damaged"
        )
    check_names(state, label, count, depth)
    dim = check_shapes(state, label, count)
    cells = tuple(state[MEMORY.format(0, index)].shape[-2] for index in range(count))
    for layer in range(depth):
        for index in range(count):
            check_shape(state, MEMORY.format(layer, index), (1, cells[index], dim), label)
    patches = state[POSITIONS].shape[1] - 1
    first = state[MASK.format(0)]
    for layer in range(depth):
        if not torch.equal(state[MASK.format(layer)], first):
            raise MemtokError(
                f"expected one attention mask in all layers of {label}, found another in layer {layer}; it is damaged"
            )
    return OldCheckpoint(file, state, depth, patches, cells, read_mask(first, cells, patches, label))


def check_tensors(state: dict[str, Tensor], label: str) -> None:
    """MemtokError for a tensor of another type, a sparse one, or one without data."""
    for key, value in state.items():
        if value.dtype not in NUMBERS:
            raise MemtokError(f"expected {key} of {label} in floating point, found {value.dtype}; it is damaged")
        dense = value.layout == torch.strided and not value.is_nested and value.device.type == "cpu"
        if not dense or value.numel() * value.element_size() > max(value.untyped_storage().nbytes(), 1 << 28):
            raise MemtokError(
                f"expected the numbers of {key} in {label}, found a tensor that lacks them; it is damaged"
            )


def check_indices(state: dict[str, Tensor], label: str) -> None:
    """MemtokError for a task or a layer of a higher number than there are tensors."""
    for key in state:
        own, layer = OWN.fullmatch(key), LAYER.match(key)
        found = [own["token"] or own["head"] or own["memory"]] if own else []
        for digits in (*found, layer[1] if layer else None):
            if digits and (len(digits) > 9 or int(digits) >= len(state)):
                raise MemtokError(
                    f"expected tasks and layers below {len(state)} in {label}, which has so many tensors, found "
                    f"{key[:100]}; it is damaged"
                )


def added_task(found: re.Match[str]) -> int:
    """Which added task a name of the reproduction's own belongs to, counted from 1; 0 for the base."""
    listed = found["token"] or found["head"]  # the base is the first entry of these lists, but has no memory
    return int(listed) if listed else int(found["memory"]) + 1 if found["memory"] else 0


def check_names(state: dict[str, Tensor], label: str, count: int, depth: int) -> None:
    """MemtokError for the first name that is missing or too many among those that the reproduction brought along."""
    wanted = {POSITIONS, PATCHES, MLP_BIAS.format(0), *(MASK.format(layer) for layer in range(depth))}
    for index in range(count + 1):
        wanted |= {CLASS_TOKEN.format(index), f"classifiers.{index}.weight", f"classifiers.{index}.bias"}
    for index in range(count):
        wanted |= {MEMORY.format(layer, index) for layer in range(depth)}
    missing = sorted(wanted - state.keys())
    if missing:
        raise MemtokError(f"expected {missing[0]} in {label}, found no such tensor; the checkpoint is not whole")
    extra = sorted(key for key in state.keys() - wanted if OWN.fullmatch(key) or key in REPLACED)
    if extra:
        raise MemtokError(f"expected {count} added tasks in {label}, found {extra[0]} besides; it is damaged")


def check_shapes(state: dict[str, Tensor], label: str, count: int) -> int:
    """MemtokError unless heads and class tokens have the shapes that fit, and all is finite; returns the width."""
    for key, number in {POSITIONS: 3, PATCHES: 4, MLP_BIAS.format(0): 1}.items():
        if state[key].ndim != number:
            raise MemtokError(
                f"expected {key} of {label} in {number} dimensions, found {state[key].ndim}; it is damaged"
            )
    dim = state[PATCHES].shape[0]
    for index in range(count + 1):
        check_shape(state, CLASS_TOKEN.format(index), (1, 1, dim), label)
        outputs = state[f"classifiers.{index}.bias"].numel()
        check_shape(state, f"classifiers.{index}.weight", (outputs, dim), label)
        check_shape(state, f"classifiers.{index}.bias", (outputs,), label)
    for index in range(count):
        if state[MEMORY.format(0, index)].ndim != 3:
            check_shape(state, MEMORY.format(0, index), (1, 1, dim), label)
    for key, value in state.items():
        if not key.endswith(".attention_mask") and not bool(torch.isfinite(value).all()):
            raise MemtokError(f"expected finite numbers in {key} of {label}, found others; get the file again")
    return dim


def check_shape(state: dict[str, Tensor], key: str, shape: tuple[int, ...], label: str) -> None:
    """MemtokError unless the tensor has this shape."""
    if tuple(state[key].shape) != shape:
        raise MemtokError(f"expected {key} of {label} of shape {shape}, found {tuple(state[key].shape)}; it is damaged")


def read_mask(mask: Tensor, cells: Sequence[int], patches: int, label: str) -> tuple[tuple[int, ...], ...]:
    """For each task, the positions of those that it extends.

    mask: (1, patches + 1 + tasks, the same + all cells) of 0 (row sees column) and -inf. Rows: image tokens, the base
    class token, the tasks' class tokens. Columns: the same, then the memory of each task in order. MemtokError for a
    mask that is no concatenation and no extension.
    """
    trunk, count = patches + 1, len(cells)
    shape = (1, trunk + count, trunk + count + sum(cells))
    if tuple(mask.shape) != shape:
        raise MemtokError(
            f"expected an attention mask of shape {shape} for {count} tasks in {label}, found {tuple(mask.shape)}; it "
            "is damaged"
        )
    sees = mask[0] == 0  # (rows, columns)
    owner = torch.tensor([*range(count), *(index for index in range(count) for _ in range(cells[index]))])
    pairs = sees[trunk:, trunk : trunk + count]  # (tasks, tasks): row i sees the class token of column j
    extends = tuple(tuple(other for other in range(index) if pairs[index, other]) for index in range(count))
    understood = (
        bool((sees | (mask[0] == -torch.inf)).all())
        and bool(sees[:, :trunk].all())
        and not bool(sees[:trunk, trunk:].any())
        and bool((sees[trunk:, trunk:] == pairs[:, owner]).all())  # who attends to a class token attends to its memory
        and bool(pairs.diagonal().all())
        and not bool(pairs.triu(1).any())
        and all(set(extends[other]) <= set(extends[index]) for index in range(count) for other in extends[index])
    )
    if not understood:
        raise MemtokError(
            f"expected the attention mask of concatenated or extended tasks in {label}, found another; such a mask has "
            "no equal in memtok"
        )
    return extends
