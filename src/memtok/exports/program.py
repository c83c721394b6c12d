"""A model as a program of `torch.export`: for batches of any size, with what follows from tasks computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export import export as export_program

from memtok.backbone import CHANNELS
from memtok.checkpoint import portable_source
from memtok.errors import Argument, MemtokError
from memtok.evaluation import classes_of, undisturbed
from memtok.exports.description import BASE, EMBEDDING, INPUT, Description, ExportedTask
from memtok.model import MemoryViT

TRUNK = "trunk\n"
"""The extra output of a program that all of the trunk leads to. No name of a task has a line end."""

EXAMPLES = 2  # images of the batch that is traced; torch takes 1 for a size that is always 1


class Answers(nn.Module):
    """The outputs of a model that were asked for, by name, as float32.

    The backbone's parameters belong to it. The tasks' are no part of it: what is folded of them enters the program as
    constants.
    """

    def __init__(self, model: MemoryViT, description: Description, trunk: bool) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.asked = (model,)  # in a tuple, so that its tasks are not registered
        self.description = description
        self.trunk = trunk

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """For (B, 3, H, W) images: (B, classes) of every task and `base`, (B, D) `embedding`; see `Description`."""
        (model,) = self.asked
        wanted = self.description
        alone = any(not task.composable for task in model.tasks)
        features = wanted.base is not None or wanted.embedding is not None or (self.trunk and not alone)
        out = model(images, base=features)
        found = dict(out.logits)
        if wanted.base is not None:
            assert out.base is not None
            found[BASE] = out.base
        if wanted.scores == "probabilities":
            found = {name: logits.softmax(dim=1) for name, logits in found.items()}
        if wanted.embedding is not None:
            assert out.features is not None
            found[EMBEDDING] = out.features
        if self.trunk:
            # Of a task that stands alone the trunk is the pass that it changes.
            root = out.embeddings[model.names[0]] if alone else out.features
            assert root is not None
            found[TRUNK] = root.clone()  # also where it is an output already: two names for one tensor are not allowed
        return found


def describe(
    model: MemoryViT, *, weights: str = "float32", probabilities: bool = False, base: bool, embedding: bool
) -> Description:
    """What an export of `model` will hold."""
    answered = {task.name: task for task in model.tasks}
    return Description(
        weights=weights,
        scores="probabilities" if probabilities else "logits",
        preprocessing=model.preprocessing,
        backbone=portable_source(model.backbone.source),
        fingerprint=model.backbone.fingerprint,
        tasks=tuple(
            ExportedTask(
                name,
                tuple(answered[name].classes),
                answered[name].fingerprint,
                tuple((other.name, other.fingerprint) for other in answered[name].extends),
            )
            for name in model.names
        ),
        base=classes_of(model, BASE) if base else None,
        embedding=model.backbone.dim if embedding else None,
    )


def check_outputs(description: Description) -> None:
    """MemtokError unless there is an output, and each has a name of its own."""
    if not description.outputs:
        raise MemtokError(
            "expected an output to export, found a model without tasks; add one, or ask for "
            f"{Argument('base', True)} or {Argument('embedding', True)}"
        )
    taken = [INPUT, *([] if description.embedding is None else [EMBEDDING])]
    for task in description.tasks:
        if task.name in taken:
            raise MemtokError(
                f"expected tasks of other names than {' and '.join(map(repr, taken))}, which the file uses itself, "
                f"found {task.name!r}; give it another name (task.name = ..., or `memtok rename`)"
            )


def program_of(answers: Answers) -> ExportedProgram:
    """The program of `answers`: images (batch, 3, H, W) float32 to a dict of tensors by name."""
    (model,) = answers.asked
    height, width = model.preprocessing.image_size
    images = torch.zeros(EXAMPLES, CHANNELS, height, width, dtype=torch.float32)
    with undisturbed(model), model.folded():
        answers(images)  # it leaves what is folded, and the program takes it from there
        return export_program(answers, (images,), dynamic_shapes={INPUT: {0: Dim("batch", min=1)}})
