"""The proof that nothing old changed: a composed model against the source model and against the reference.

Three things are checked on the same images. The base output and the features are bitwise those of the source model's
own forward pass, loaded anew. Every task answers as it does alone, with what it extends, in the literal masked form of
`memtok.reference`; rounding is told from a fault by that reference in float64, see rounding.py. And not a byte of the
weights is different afterwards.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memtok.backbone import CHANNELS, Backbone
from memtok.checkpoint import read_checkpoint
from memtok.data import DataSource, ImageSet, batches, evaluation_transform, open_data
from memtok.errors import MemtokError
from memtok.evaluation import Progress, undisturbed
from memtok.model import MemoryViT
from memtok.preprocessing import Preprocessing
from memtok.reference import reference_outputs, variant_outputs
from memtok.rounding import Rounding, TaskDifferences, difference, jsonable, largest
from memtok.surroundings import plain_torch
from memtok.task import Task, topological

IMAGES = 32
SAMPLES = 8  # of what rounding does to the reference, beside the reference itself


@dataclass(frozen=True)
class VerifyReport:
    """What was found on `images` images.

    features_bitwise, base_bitwise: equal to the source model's own, bit by bit; base_bitwise is None for a source
    without classifier. base_difference: the largest absolute difference of either, 0 where all is well.
    differences: of each task from the reference. unchanged: the weights' bytes are the same before and after.
    """

    features_bitwise: bool
    base_bitwise: bool | None
    base_difference: float
    differences: dict[str, TaskDifferences]
    unchanged: bool
    images: int

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        return self.images > 0 and not self.failures

    @property
    def tasks(self) -> dict[str, float]:
        """For each task the difference of its composed answers from the reference."""
        return {name: found.composed for name, found in self.differences.items()}

    @property
    def largest_difference(self) -> float:
        """Of all tasks; 0 without tasks."""
        return functools.reduce(largest, self.tasks.values(), 0.0)

    @property
    def tolerance(self) -> float:
        """The largest difference that rounding explains in any task; 0 without tasks."""
        return max((found.tolerance for found in self.differences.values()), default=0.0)

    @property
    def failures(self) -> tuple[str, ...]:
        """What did not pass, one line each."""
        found = []
        if not self.features_bitwise or self.base_bitwise is False:
            what = "base output" if self.base_bitwise is False else "features"
            found.append(f"the {what} differ from the source model's own by up to {self.base_difference:.3g}")
        for name, differences in self.differences.items():
            found += [f"task {name!r} {failure}" for failure in differences.failures]
        if not self.unchanged:
            found.append("the weights changed while the model ran")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON-able values; differences that are not finite become texts."""
        return {
            "ok": self.ok,
            "images": self.images,
            "tolerance": jsonable(self.tolerance),
            "base": {
                "bitwise": self.base_bitwise,
                "features_bitwise": self.features_bitwise,
                "difference": jsonable(self.base_difference),
            },
            "tasks": {name: found.to_json() for name, found in self.differences.items()},
            "largest_difference": jsonable(self.largest_difference),
            "weights_unchanged": self.unchanged,
            "failures": list(self.failures),
        }


@plain_torch()
def verify(
    backbone: Backbone,
    tasks: Sequence[Task] | MemoryViT,
    data: str | DataSource | ImageSet | Tensor | None = None,
    *,
    source: str | Path | nn.Module | None = None,
    images: int = IMAGES,
    batch_size: int = 16,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
    data_dir: Path | None = None,
    on_bad_image: str = "fail",
    progress: Progress | None = None,
) -> VerifyReport:
    """Checks that `tasks` change neither the backbone nor each other.

    tasks: with all that they extend; those that compose are put into one model, any other is checked by itself. Or a
    model of this backbone, to check that very object, uncompiled. data: a spec or source, of whose test part `images`
    are taken; or (B, 3, height, width) normalised images; or None for random ones drawn from `seed`. source: where the
    backbone was loaded from, if it was made from an object. preprocessing: where that of the tasks differs or does not
    fit the backbone's size; a given model has its own.

    It costs, for each task and image, a forward pass in float32 and one in float64, and needs room for the backbone in
    float64. Raises MemtokError where the check cannot be made; a check that fails is said by the report.
    """
    if backbone.dtype != torch.float32:
        raise MemtokError(
            f"expected a backbone in float32 to verify, found {backbone.dtype}; load it with dtype=torch.float32",
            argument="backbone",
        )
    if images < 1 or batch_size < 1 or (isinstance(data, Tensor) and not len(data)):
        raise MemtokError(
            "expected at least one image to verify on, found none; give images, and batch_size from 1 on",
            argument="images",
        )
    models = models_of(backbone, tasks, preprocessing)
    original = read_original(backbone, source)
    prepared = next((model for model in models if model.tasks), models[0]).preprocessing
    chosen = choose_images(backbone, prepared, data, images, seed, data_dir, on_bad_image)
    everything = [task for model in models for task in model.tasks]
    before = digest(backbone, everything)
    seen = Seen(Rounding(seed))
    with undisturbed(nn.ModuleList(models)):
        doubles = in_double(models)
        for batch in split(chosen, prepared, batch_size):
            compare(models, doubles, original, batch.to(backbone.device, backbone.dtype), seen)
            if progress is not None:
                progress(seen.images, len(chosen))
    answered = tasks.names if isinstance(tasks, MemoryViT) else [task.name for task in tasks]
    return VerifyReport(
        features_bitwise=seen.features_bitwise,
        base_bitwise=seen.base_bitwise,
        base_difference=seen.base,
        differences={name: seen.rounding.differences(name) for name in answered},
        unchanged=digest(backbone, everything) == before,
        images=seen.images,
    )


@dataclass
class Seen:
    """What has been seen so far; of the base and the features as in VerifyReport."""

    rounding: Rounding
    images: int = 0
    features_bitwise: bool = True
    base_bitwise: bool | None = None
    base: float = 0.0


def models_of(
    backbone: Backbone, tasks: Sequence[Task] | MemoryViT, preprocessing: Preprocessing | None
) -> list[MemoryViT]:
    """One model of all tasks that compose, and one for each other; or the given model alone."""
    if isinstance(tasks, MemoryViT):
        if tasks.backbone is not backbone:
            raise MemtokError("expected a model of this backbone to verify, found one of another; give model.backbone")
        return [tasks]
    models = [MemoryViT(backbone, [task for task in tasks if task.composable], preprocessing=preprocessing)]
    return models + [MemoryViT(backbone, [task], preprocessing=preprocessing) for task in tasks if not task.composable]


def in_double(models: Sequence[MemoryViT]) -> list[MemoryViT]:
    """New models of the same tasks in float64, with one copy of the backbone. On the CPU where the device has none."""
    fresh = [MemoryViT(model.backbone, model.tasks, preprocessing=model.preprocessing) for model in models]
    copies = copy.deepcopy(nn.ModuleList(fresh))
    if models[0].backbone.device.type == "mps":
        copies.cpu()
    copies.double()
    return [model for model in copies if isinstance(model, MemoryViT)]


def compare(
    models: Sequence[MemoryViT], doubles: Sequence[MemoryViT], original: nn.Module, images: Tensor, seen: Seen
) -> None:
    """Adds what one batch (B, 3, height, width) shows. doubles: the same models in float64."""
    features, base = own_forward(original, images)
    for model, double in zip(models, doubles, strict=True):
        out = model(images)
        assert out.features is not None
        seen.features_bitwise &= torch.equal(out.features, features)
        seen.base = largest(seen.base, difference(out.features, features))
        if base is not None:
            assert out.base is not None
            seen.base_bitwise = seen.base_bitwise is not False and torch.equal(out.base, base)
            seen.base = largest(seen.base, difference(out.base, base))
        compare_tasks(model, double, images, out.logits, seen.rounding)
    seen.images += len(images)


def compare_tasks(
    model: MemoryViT, double: MemoryViT, images: Tensor, composed: dict[str, Tensor], rounding: Rounding
) -> None:
    """Adds what one batch shows of each task. composed: its answers in `model`."""
    exact_images = images.to(double.backbone.device).double()
    alone = answers_alone(model, images) if all(task.composable for task in model.tasks) else composed
    streams = double(exact_images, base=False)
    for task, exact_task in zip(model.tasks, double.tasks, strict=True):
        if task.name not in composed:
            continue
        exact = reference(double.backbone, exact_task, exact_images)
        if task.name not in rounding.sizes:  # the first batch
            add_rounded_references(model.backbone, task, images, exact, rounding)
        rounding.add(
            task.name,
            exact,
            composed=composed[task.name],
            alone=alone[task.name],
            reference=reference(model.backbone, task, images),
            double=streams[task.name],
        )


def add_rounded_references(backbone: Backbone, task: Task, images: Tensor, exact: Tensor, rounding: Rounding) -> None:
    """Adds answers of the reference with noise of the size of rounding in the task, what it extends and the images.

    Each sample uses other images if there are enough, so that together they cost about one pass over the batch.
    """
    for sample in range(SAMPLES):
        rows = slice(sample % len(images), None, SAMPLES)
        copies = copy.deepcopy(topological([task]))  # the last is the task itself
        for parameter in nn.ModuleList(copies).parameters():
            parameter.copy_(rounding.noisy(parameter))
        answers = reference(backbone, copies[-1], rounding.noisy(images[rows]))
        rounding.add(task.name, exact[rows], reference=answers)


def answers_alone(model: MemoryViT, images: Tensor) -> dict[str, Tensor]:
    """(B, classes) answers of each task in a model of its own, with what it extends, from one pass of the trunk."""
    trace = model.trace(images)
    alone = {}
    for task in model.tasks:
        own = MemoryViT(model.backbone, topological([task]), preprocessing=model.preprocessing)
        alone[task.name] = own.select([task.name]).answer(trace)[task.name]
    return alone


def reference(backbone: Backbone, task: Task, images: Tensor) -> Tensor:
    """(B, classes) answers of one task, with what it extends, in the dense form; the only form of some regimes."""
    if task.composable:
        return reference_outputs(backbone, [task], images)[task.name]
    return variant_outputs(backbone, task, images)[task.name]


def own_forward(vit: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Features (B, D) and classifier output (B, base classes) or None by timm's own code."""
    tokens = vit.forward_features(images)  # (B, N, D), after `norm`
    if vit.cls_token is None and not vit.global_pool:
        features = vit.fc_norm(tokens[:, vit.num_prefix_tokens :].mean(dim=1))
    elif vit.cls_token is None:
        features = vit.forward_head(tokens, pre_logits=True)
    else:
        features = vit.fc_norm(tokens[:, 0]) if isinstance(vit.norm, nn.Identity) else tokens[:, 0]
    return features, None if isinstance(vit.head, nn.Identity) else vit(images)


def read_original(backbone: Backbone, source: str | Path | nn.Module | None) -> nn.Module:
    """The source model, loaded anew; MemtokError if it is not the one that the backbone came from."""
    if source is None:
        source = backbone.source
        if source.startswith("object:"):
            raise MemtokError(
                f"expected source= for a backbone made from an object, found none ({source}); give the model itself",
                argument="source",
            )
    checkpoint = read_checkpoint(
        source, image_size=backbone.preprocessing.image_size, architecture=backbone.architecture
    )
    if checkpoint.fingerprint != backbone.fingerprint:
        raise MemtokError(
            f"expected the backbone {backbone.fingerprint[:19]} in {checkpoint.source}, found "
            f"{checkpoint.fingerprint[:19]}; name the source that it was loaded from",
            argument="source",
        )
    return checkpoint.vit.eval().to(backbone.device)


def choose_images(
    backbone: Backbone,
    preprocessing: Preprocessing,
    data: str | DataSource | ImageSet | Tensor | None,
    count: int,
    seed: int,
    data_dir: Path | None,
    on_bad_image: str,
) -> ImageSet | Tensor:
    """The images to verify on: of a data set, as given, or random."""
    if isinstance(data, Tensor):
        return data
    if data is None:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, CHANNELS, *preprocessing.image_size, generator=generator, dtype=torch.float32)
    if isinstance(data, str):
        data = open_data(data, data_dir=data_dir, on_bad_image=on_bad_image)
    return (data.test if isinstance(data, DataSource) else data).take(count, seed)


def split(images: ImageSet | Tensor, preprocessing: Preprocessing, batch_size: int) -> Iterator[Tensor]:
    """Batches (B, 3, height, width)."""
    if isinstance(images, Tensor):
        yield from torch.split(images, batch_size)
        return
    for batch, _, _ in batches(images, evaluation_transform(preprocessing), batch_size=batch_size):
        yield batch


def digest(backbone: Backbone, tasks: Sequence[Task]) -> str:
    """A hash over the bytes of all weights."""
    found = hashlib.sha256()
    for module in (backbone, *tasks):
        for name, tensor in sorted(module.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
