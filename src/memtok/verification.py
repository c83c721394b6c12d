"""The proof that nothing old changed: a composed model against the source model and against the reference.

Three things are checked on the same images. The base output and the features are bitwise those of the source model's
own forward pass, loaded anew. Every task answers as it does alone, with what it extends, in the literal masked form of
`memtok.reference`. And not a byte of the weights is different afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memtok.backbone import Backbone
from memtok.checkpoint import read_checkpoint
from memtok.data import DataSource, ImageSet, batches, evaluation_transform, open_data
from memtok.errors import MemtokError
from memtok.evaluation import Progress, undisturbed
from memtok.model import MemoryViT
from memtok.preprocessing import Preprocessing
from memtok.reference import reference_outputs, variant_outputs
from memtok.task import Task

TOLERANCE = 1e-5  # in float32; DESIGN section 4
IMAGES = 32


@dataclass(frozen=True)
class VerifyReport:
    """What was found on `images` images.

    features_bitwise, base_bitwise: equal to the source model's own, bit by bit; base_bitwise is None for a source
    without classifier. base_difference: the largest absolute difference of either, 0 where all is well.
    tasks: for each task the largest difference of a logit from the reference, over the largest logit of that image if
    that is above 1. unchanged: the weights' bytes are the same before and after.
    """

    features_bitwise: bool
    base_bitwise: bool | None
    base_difference: float
    tasks: dict[str, float]
    unchanged: bool
    images: int
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether all checks passed."""
        return self.images > 0 and not self.failures

    @property
    def largest_difference(self) -> float:
        """Of all tasks; 0 without tasks."""
        return max(self.tasks.values(), default=0.0)

    @property
    def failures(self) -> tuple[str, ...]:
        """What did not pass, one line each."""
        found = []
        if not self.features_bitwise or self.base_bitwise is False:
            what = "base output" if self.base_bitwise is False else "features"
            found.append(f"the {what} differ from the source model's own by up to {self.base_difference:.3g}")
        for name, difference in self.tasks.items():
            if not difference <= self.tolerance:  # so that a NaN fails
                found.append(f"task {name!r} differs from the reference by up to {difference:.3g}")
        if not self.unchanged:
            found.append("the weights changed while the model ran")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON-able values; differences that are not finite become texts."""
        return {
            "ok": self.ok,
            "images": self.images,
            "tolerance": self.tolerance,
            "base": {
                "bitwise": self.base_bitwise,
                "features_bitwise": self.features_bitwise,
                "difference": jsonable(self.base_difference),
            },
            "tasks": {name: {"difference": jsonable(value)} for name, value in self.tasks.items()},
            "largest_difference": jsonable(self.largest_difference),
            "weights_unchanged": self.unchanged,
            "failures": list(self.failures),
        }


def verify(
    backbone: Backbone,
    tasks: Sequence[Task],
    data: str | DataSource | ImageSet | Tensor | None = None,
    *,
    source: str | Path | nn.Module | None = None,
    tolerance: float = TOLERANCE,
    images: int = IMAGES,
    batch_size: int = 16,
    seed: int = 0,
    preprocessing: Preprocessing | None = None,
    data_dir: Path | None = None,
    on_bad_image: str = "fail",
    progress: Progress | None = None,
) -> VerifyReport:
    """Checks that `tasks` change neither the backbone nor each other.

    tasks: with all that they extend; those that compose are put into one model, any other is checked by itself.
    data: a spec or source, of whose test part `images` are taken; or (B, 3, height, width) normalised images; or None
    for random ones drawn from `seed`. source: where the backbone was loaded from, if it was made from an object.
    Raises MemtokError where the check cannot be made; a check that fails is said by the report.
    """
    if backbone.dtype != torch.float32:
        raise MemtokError(
            f"expected a backbone in float32 to verify, found {backbone.dtype}; load it with dtype=torch.float32"
        )
    if images < 1 or batch_size < 1 or (isinstance(data, Tensor) and not len(data)):
        raise MemtokError("expected at least one image to verify on, found none; give images, and batch_size from 1 on")
    models = [MemoryViT(backbone, [task for task in tasks if task.composable], preprocessing=preprocessing)]
    models += [MemoryViT(backbone, [task], preprocessing=preprocessing) for task in tasks if not task.composable]
    original = read_original(backbone, source)
    prepared = next((model for model in models if model.tasks), models[0]).preprocessing
    chosen = choose_images(backbone, prepared, data, images, seed, data_dir, on_bad_image)
    before = digest(backbone, tasks)
    seen = Differences()
    with undisturbed(nn.ModuleList(models)):
        for batch in split(chosen, prepared, batch_size):
            compare(models, original, batch.to(backbone.device), seen)
            if progress is not None:
                progress(seen.images, len(chosen))
    return VerifyReport(
        features_bitwise=seen.features_bitwise,
        base_bitwise=seen.base_bitwise,
        base_difference=seen.base,
        tasks={task.name: seen.tasks[task.name] for task in tasks},
        unchanged=digest(backbone, tasks) == before,
        images=seen.images,
        tolerance=tolerance,
    )


class Differences:
    """What has been seen so far."""

    def __init__(self) -> None:
        self.images = 0
        self.features_bitwise = True
        self.base_bitwise: bool | None = None
        self.base = 0.0
        self.tasks: dict[str, float] = {}


def compare(models: Sequence[MemoryViT], original: nn.Module, images: Tensor, seen: Differences) -> None:
    """Adds what one batch (B, 3, height, width) shows."""
    features, base = own_forward(original, images)
    for model in models:
        out = model(images)
        assert out.features is not None
        seen.features_bitwise &= torch.equal(out.features, features)
        seen.base = largest(seen.base, difference(out.features, features))
        if base is not None:
            assert out.base is not None
            seen.base_bitwise = seen.base_bitwise is not False and torch.equal(out.base, base)
            seen.base = largest(seen.base, difference(out.base, base))
        for task in model.tasks:
            alone = reference_outputs if task.composable else reference_of_variant
            expected = alone(model.backbone, [task], images)[task.name]
            scale = expected.abs().amax(dim=1, keepdim=True).clamp(min=1.0)  # (B, 1)
            found = difference(out[task.name] / scale, expected / scale)
            seen.tasks[task.name] = largest(seen.tasks.get(task.name, 0.0), found)
    seen.images += len(images)


def reference_of_variant(backbone: Backbone, tasks: Sequence[Task], images: Tensor) -> Any:
    """The reference of a task that is not composable, which is the only form in which it is computed at all."""
    return variant_outputs(backbone, tasks[0], images)


def own_forward(vit: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Features (B, D) and classifier output (B, base classes) or None by timm's own code; a class-token model."""
    tokens = vit.forward_features(images)  # (B, N, D), after `norm`
    features = vit.fc_norm(tokens[:, 0]) if isinstance(vit.norm, nn.Identity) else tokens[:, 0]
    return features, None if isinstance(vit.head, nn.Identity) else vit(images)


def read_original(backbone: Backbone, source: str | Path | nn.Module | None) -> nn.Module:
    """The source model, loaded anew; MemtokError if it is not the one that the backbone came from."""
    if source is None:
        source = backbone.source
        if source.startswith("object:"):
            raise MemtokError(
                f"expected source= for a backbone made from an object, found none ({source}); give the model itself"
            )
    checkpoint = read_checkpoint(
        source, image_size=backbone.preprocessing.image_size, architecture=backbone.architecture
    )
    if checkpoint.fingerprint != backbone.fingerprint:
        raise MemtokError(
            f"expected the backbone {backbone.fingerprint[:19]} in {checkpoint.source}, found "
            f"{checkpoint.fingerprint[:19]}; name the source that it was loaded from"
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
    """The images to look at: of a data set, as given, or random."""
    if isinstance(data, Tensor):
        return data
    if data is None:
        channels = int(backbone.vit.patch_embed.proj.in_channels)
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, channels, *preprocessing.image_size, generator=generator)
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


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference; NaN if one of the numbers is."""
    return float((found - expected).abs().max()) if found.numel() else 0.0


def largest(one: float, other: float) -> float:
    """The larger number, NaN if either is: a NaN must not get lost on the way."""
    return one if one != one or one > other else other


def digest(backbone: Backbone, tasks: Sequence[Task]) -> str:
    """A hash over the bytes of all weights."""
    found = hashlib.sha256()
    for module in (backbone, *tasks):
        for name, tensor in sorted(module.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def jsonable(value: float) -> float | str:
    """JSON knows no NaN and no infinity."""
    return value if value == value and abs(value) != float("inf") else str(value)
