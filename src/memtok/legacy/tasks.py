"""Checkpoints of the public reproduction (github.com/necrashter/transformers-learnable-memory), read as tasks.

Such a file is a state dict of the whole model: the backbone under transformers' names, class tokens and heads in lists
whose first entry is the base one, memory per layer, and the attention mask as a buffer in every layer. The mask tells
which task extends which. Memory joined after the LayerNorm there, class tokens stood behind the patches (each with the
position embedding of the class, so their place changes nothing), and images were pixels in [0, 1] without
normalisation. Imported tasks keep the placement and the preprocessing, or their accuracy would never come back.

The file is read with `torch.load(weights_only=True)`, which executes nothing (files.py). Every tensor is
accounted for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from memtok.backbone import Backbone
from memtok.checkpoint import Checkpoint
from memtok.checkpoint.architecture import describe, trunk_tensors
from memtok.checkpoint.conversion import convert
from memtok.checkpoint.fingerprint import fingerprint_of
from memtok.checks import new_classes
from memtok.errors import Argument, MemtokError
from memtok.legacy.files import LegacyFile, legacy_files
from memtok.legacy.state import CLASS_TOKEN, MEMORY, MLP_BIAS, OWN, PATCHES, OldCheckpoint, read_old
from memtok.preprocessing import Preprocessing
from memtok.task import Task

# What `first_difference` compares beside shapes and numbers.
FACTS = ("mlp", "activation", "epsilon", "norm", "positions", "registers", "distilled", "pre_norm", "final_norm")


def read_legacy(
    source: str | Path,
    backbone: Backbone,
    classes: Sequence[Sequence[str]] | None = None,
    *,
    file: str | Sequence[str] | None = None,
) -> list[Task]:
    """The tasks of an old checkpoint, in their order, on the backbone's device.

    source: a file; or a folder or `org/name` on the Hub, of which `file` names one file or several (else all `*.pt`).
    backbone: the one that the file was trained on; its weights are compared exactly. classes: class names of each
    task, in order over all files; without them they are called "0", "1", and so on. Tasks are named by the file's stem
    without `_model`, followed by -1, -2 and so on where a file has several; tasks of one file extend each other as its
    attention mask says. Raises MemtokError for a file of another kind, for one that is not whole, and for one whose
    backbone is another (`legacy_backbone` reads that one).
    """
    tasks = [task for found in legacy_files(source, file) for task in read_file(found, backbone)]
    if classes is not None:
        name_classes(tasks, classes)
    return tasks


def legacy_backbone(source: str | Path, backbone: Backbone, *, file: str | None = None) -> Backbone:
    """The backbone inside an old checkpoint, whatever its weights, with the file's first classifier as its head.

    backbone: one of the same architecture; what tensors do not determine (heads, activation, epsilon) is taken from it.
    The result carries the reproduction's preprocessing, and is written with `memtok.checkpoint.save_checkpoint`. Raises
    MemtokError for a file of another architecture, or of another kind.
    """
    found = legacy_files(source, file)
    if len(found) > 1:
        names = ", ".join(item.path.name for item in found)
        raise MemtokError(
            f"expected one old checkpoint, found {len(found)} in {source} ({names}); name one with {Argument('file')}"
        )
    old = read_old(found[0])
    vit = old_vit(old, backbone, head=True)
    preprocessing = legacy_preprocessing(old, backbone)
    own = Backbone(
        Checkpoint(vit.requires_grad_(False).eval(), fingerprint_of(vit), preprocessing, old.file.label, "checkpoint")
    )
    return own.to(device=backbone.device, dtype=backbone.dtype)


def read_file(file: LegacyFile, backbone: Backbone) -> list[Task]:
    """The tasks of one file; see `read_legacy`."""
    old = read_old(file)
    check_same_backbone(old, backbone)
    return make_tasks(old, backbone)


def old_vit(old: OldCheckpoint, backbone: Backbone, *, head: bool = False) -> nn.Module:
    """The backbone inside an old checkpoint as a timm model; what tensors do not determine is taken from `backbone`.

    head: with the file's first classifier. MemtokError where the architecture is another than the backbone's.
    """
    state, label, facts = old.state, old.file.label, describe(backbone.vit)
    patches = state[PATCHES]
    found = {
        "width": (facts.dim, patches.shape[0]),
        "layers": (facts.depth, old.depth),
        "patch": (facts.patch_size, tuple(patches.shape[-2:])),
        "MLP width": (facts.mlp_hidden, len(state[MLP_BIAS.format(0)])),
    }
    for what, (expected, own) in found.items():
        if expected != own:
            raise MemtokError(
                f"expected the backbone {backbone.source} ({what} {expected}) inside {label}, found one of {what} "
                f"{own}; give the backbone that it was trained on",
                argument="backbone",
            )
    tensors = {key: value for key, value in state.items() if not OWN.fullmatch(key)}
    tensors["vit.embeddings.cls_token"] = state[CLASS_TOKEN.format(0)]
    if head:
        tensors |= {f"classifier.{leaf}": state[f"classifiers.0.{leaf}"] for leaf in ("weight", "bias")}
    config = {
        "model_type": "vit",
        "hidden_size": facts.dim,
        "num_hidden_layers": old.depth,
        "num_attention_heads": facts.heads,
        "intermediate_size": facts.mlp_hidden,
        "image_size": old.image_size,
        "patch_size": patches.shape[-1],
        "hidden_act": "gelu",
        "layer_norm_eps": facts.epsilon,
        "qkv_bias": facts.qkv_bias,
    }
    try:
        return convert(config, tensors).vit
    except MemtokError as error:
        fault = error.message.partition(";")[0]
        raise MemtokError(f"{fault}, in the backbone inside {label}; it is damaged, get the file again") from error


def check_same_backbone(old: OldCheckpoint, backbone: Backbone) -> None:
    """MemtokError that names the first difference, unless the file has exactly the weights of the given backbone."""
    vit = old_vit(old, backbone)
    if fingerprint_of(vit) != backbone.fingerprint:
        raise MemtokError(
            f"expected the backbone {backbone.source} ({backbone.fingerprint[:19]}) inside {old.file.label}, found "
            f"another, first difference: {first_difference(vit, backbone.vit)}; give the one that it was trained on, "
            "or write the one inside with `memtok import-legacy --base-out FILE.safetensors` and use that",
            argument="backbone",
        )


def first_difference(own: nn.Module, other: nn.Module) -> str:
    """Where the file's model and another differ first: a fact of the architecture, a shape, else numbers."""
    mine, theirs = describe(own), describe(other)
    for fact in FACTS:
        if getattr(mine, fact) != getattr(theirs, fact):
            return f"{fact} {getattr(mine, fact)} there and {getattr(theirs, fact)} here"
    inside, given = dict(trunk_tensors(own)), dict(trunk_tensors(other))
    for name in inside:
        if name not in given:
            return f"{name} there and not here"
        if inside[name].shape != given[name].shape:
            return f"{name} of shape {tuple(inside[name].shape)} there and {tuple(given[name].shape)} here"
    for name, value in inside.items():
        distance = float((value.float() - given[name].detach().to("cpu", torch.float32)).abs().max())
        if distance:
            return f"numbers of {name}, by up to {distance:.3g}"
    return "the size of the images that its position embeddings are for"


def make_tasks(old: OldCheckpoint, backbone: Backbone) -> list[Task]:
    """The tasks of an old checkpoint, bound to the backbone."""
    stem = old.file.path.stem.removesuffix("_model")
    if stem == "base":
        raise MemtokError(f"expected a name that a task may have, found {old.file.label}; rename that file")
    count, tasks = len(old.cells), list[Task]()
    for index in range(count):
        head = f"classifiers.{index + 1}."
        tensors = {
            "class_tokens": old.state[CLASS_TOKEN.format(index + 1)][0],
            "memory": torch.cat([old.state[MEMORY.format(layer, index)] for layer in range(old.depth)]),
            "head.weight": old.state[head + "weight"],
            "head.bias": old.state[head + "bias"],
        }
        tasks.append(
            Task(
                backbone,
                name=stem if count == 1 else f"{stem}-{index + 1}",
                classes=[str(label) for label in range(len(tensors["head.bias"]))],
                tensors={key: value.to(backbone.device, torch.float32) for key, value in tensors.items()},
                placement="after-norm",
                extends=[tasks[other] for other in old.extends[index]],
                preprocessing=legacy_preprocessing(old, backbone),
                record={"imported": old.file.origin, "arrangement": old.arrangement, "regime": "memory"},
            )
        )
    return tasks


def name_classes(tasks: Sequence[Task], classes: Sequence[Sequence[str]], labels: Sequence[str] | None = None) -> None:
    """Gives the tasks these class names; MemtokError where their number does not fit. labels: where they came from."""
    if len(classes) != len(tasks):
        raise MemtokError(
            f"expected {len(tasks)} lists of class names, one for each of {', '.join(task.name for task in tasks)} in "
            f"this order, found {len(classes)}; give one per task",
            argument="classes",
        )
    for index, (task, names) in enumerate(zip(tasks, classes, strict=True)):
        where = f" in {labels[index]}" if labels else ""
        if len(names) != len(task.classes):
            raise MemtokError(
                f"expected {len(task.classes)} class names for {task.name!r}{where}, found {len(names)}; give one per "
                "output of its head",
                argument="classes",
            )
        task.classes = new_classes(names)


def legacy_preprocessing(old: OldCheckpoint, backbone: Backbone) -> Preprocessing:
    """The preprocessing of the reproduction: resized to the size of its model, pixels in [0, 1], not normalised."""
    size = (old.image_size, old.image_size)
    return Preprocessing(
        image_size=size,
        resize=size,
        crop=False,
        interpolation="bilinear",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        position_resize=backbone.preprocessing.position_resize,
    )
