"""Accuracy of tasks, composed in one model and each alone.

Images are prepared as the tasks were trained: resized and centre-cropped, never augmented. Tasks that share a data set
share the pass over its images. Nothing is printed, and the model and the random generators stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from memtok.checks import composed
from memtok.confusion import write_confusion
from memtok.data import DataSource, ImageSet, batches, from_dataset
from memtok.data.datasets import refuse_split
from memtok.data.images import LeftOut, warn_if_dark
from memtok.data.recorded import open_as_trained, opening_key
from memtok.data.sources import listing
from memtok.data.transforms import Normaliser, evaluation_pixels
from memtok.errors import Argument, MemtokError
from memtok.files import csv_text, write_csv
from memtok.folders import slug
from memtok.metrics import Score, Tally
from memtok.model import MemoryViT
from memtok.surroundings import plain_torch

BASE = "base"  # no task may have this name
PARTS = ("test", "validation", "train")
ALL = "all"  # the part of a torch data set, which is used whole

Data = str | DataSource | ImageSet | Dataset[Any]
"""What a task is evaluated on: a spec such as `digits` or `folder:photos`, what `open_data` made of one, or a torch
data set as `memtok.data.from_dataset` takes it, which is used whole."""

Progress = Callable[[int, int], None]
"""Called with (files checked, files in all) while data given by name are opened; then (images evaluated, in all)."""


@dataclass(frozen=True)
class EvaluationTable:
    """Accuracies of one evaluation, by task name.

    tasks: composed, that is in one pass of the whole model. alone: in a model of that task and what it extends; empty
    unless asked for. base: of the backbone's own classifier, None unless asked for. left_out: what could not be read,
    (path, reason) each; skipped: the paths alone. splits: how the data of each task, or of `base`, are split, and which
    "part" was used: "test", "validation", "train", or "all" of a torch data set; not for a bare ImageSet.
    """

    tasks: dict[str, Score]
    alone: dict[str, Score] = field(default_factory=dict)
    base: Score | None = None
    left_out: tuple[LeftOut, ...] = ()
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def skipped(self) -> tuple[str, ...]:
        """The paths of what could not be read."""
        return tuple(one.path for one in self.left_out)

    def __iter__(self) -> Iterator[tuple[str, float]]:
        """(name, value) pairs: `pets/top1`, `pets/balanced`, `pets/images`, `pets/alone_top1` ..., `base/top1` ..."""
        for name, score in self.rows():
            yield from ((f"{name}/{key}", value) for key, value in score)
        for name, score in self.alone.items():
            yield f"{name}/alone_top1", score.top1
            yield f"{name}/alone_top5", score.top5

    def to_json(self) -> dict[str, Any]:
        """{"tasks": {NAME: {"top1", "top5", "images", "balanced", "recall", "confusion"}}, "base": the same or null}.

        Accuracies in [0, 1]; recall and confusion as in `Score.to_json`. "alone" is as "tasks" without these two. And
        "skipped_images", how many were left out, "left_out": [{"path", "reason"}], and
        "splits": {NAME: {"spec", "part", "kind", "seed", "fraction", "digest", "counts"}}.
        """
        return {
            "tasks": {name: score.to_json() for name, score in self.tasks.items()},
            "base": None if self.base is None else self.base.to_json(),
            "alone": {name: dict(score) for name, score in self.alone.items()},
            "skipped_images": len(self.left_out),
            "left_out": [one._asdict() for one in self.left_out],
            "splits": self.splits,
        }

    def write_csv(self, path: str | Path) -> None:
        """One row per task and class, composed: task, class, images, top1, top5, part.

        top1 (the recall of the class) and top5 are empty for a class without images, part for a bare ImageSet.
        """
        rows: list[list[object]] = [["task", "class", "images", "top1", "top5", "part"]]
        for name, score in self.rows():
            for row in score.per_class:
                values = ["" if value is None else f"{value:.6f}" for value in (row.top1, row.top5)]
                rows.append([name, row.name, row.images, *values, self.part(name)])
        write_csv(path, csv_text(rows))

    def write_confusions(self, folder: str | Path) -> list[Path]:
        """Writes the confusion matrix of every task, and of `base`, as PNG, CSV and JSON; returns the paths."""
        written: list[Path] = []
        for name, score in self.rows():
            split = self.splits.get(name)
            images = f"{split['part']} part of {split['spec']}" if split else "images as given"
            written += write_confusion(Path(folder), slug(name), score, f"{name}: {images}")
        return written

    def part(self, name: str) -> str:
        """The part of the data that a task, or `base`, was measured on; empty for a bare ImageSet."""
        return str(self.splits[name]["part"]) if name in self.splits else ""

    def rows(self) -> list[tuple[str, Score]]:
        """The scores of the tasks, composed, and of `base` if it was asked for."""
        return [*self.tasks.items(), *([] if self.base is None else [(BASE, self.base)])]


@dataclass
class Pass:
    """One pass over the images of a data set: which outputs are scored, and the class numbers of labels."""

    images: ImageSet
    labels: dict[str, Tensor | None]  # task or `base` -> its class number for each label; None: the label itself


@dataclass(frozen=True)
class Opening:
    """Arguments for opening data that are given by name; see `evaluate`."""

    part: str | None
    split: str | None
    data_dir: Path | None
    on_bad_image: str
    progress: Progress | None


@plain_torch()
def evaluate(
    model: MemoryViT,
    data: Data | Mapping[str, Data],
    *,
    base: Data | None = None,
    alone: bool = False,
    part: str | None = None,
    batch_size: int = 64,
    workers: int = 0,
    data_dir: Path | None = None,
    split: str | None = None,
    on_bad_image: str = "fail",
    progress: Progress | None = None,
) -> EvaluationTable:
    """Measures the tasks of `model` on labelled images.

    data: by name, the data of each task to measure; or, for a model with one task, its data. base: data for the
    backbone's own classifier, matched by class names if the checkpoint has them, else by position.
    alone: also measure each task without the others. part: of a data source, "test", "validation" or "train"; None is
    its test part, or its validation part if it has no other; `splits` of the result has it.
    split: "official" or "80-20", of data given by name; None is the split in the training record of the task, if the
    data are the same, else as in `open_data`.

    The classes of a data set are matched to those of the task by name, so their order does not matter and some may be
    missing. A label that the backbone has twice gets its index appended: `crane (134)` and `crane (517)`.
    Raises MemtokError for an unknown task, for a class that a task does not know, for data that cannot be read, for a
    test part that is not there, and for a split by which a task would be tested on images that it was trained on.
    """
    wanted = by_task(model, data)
    if base is not None:
        wanted[BASE] = base
    passes, left_out, splits = plan(model, wanted, Opening(part, split, data_dir, on_bad_image, progress))
    singles = {name: model.select([name]) for name in wanted if name != BASE} if alone else {}
    tallies = {name: Tally(classes_of(model, name)) for name in wanted}
    tallies_alone = {name: Tally(classes_of(model, name)) for name in singles}
    total, done = sum(len(walk.images) for walk in passes), 0
    transform, normalise = evaluation_pixels(model.preprocessing), Normaliser(model.preprocessing)
    with undisturbed(model), ExitStack() as stack:
        for answering in (model, *singles.values()):
            stack.enter_context(answering.folded())
        for walk in passes:
            for pixels, labels, _ in batches(walk.images, transform, batch_size=batch_size, workers=workers):
                images = normalise(pixels.to(model.backbone.device, non_blocking=True))
                count(model, singles, walk, tallies, tallies_alone, images, labels)
                done += len(images)
                if progress is not None:
                    progress(done, total)
    scores = {name: tally.score() for name, tally in tallies.items()}
    base_score = scores.pop(BASE, None)
    alone_scores = {name: tally.score() for name, tally in tallies_alone.items()}
    return EvaluationTable(scores, alone_scores, base_score, left_out, splits)


def count(
    model: MemoryViT,
    singles: Mapping[str, MemoryViT],
    walk: Pass,
    tallies: Mapping[str, Tally],
    tallies_alone: Mapping[str, Tally],
    images: Tensor,
    labels: Tensor,
) -> None:
    """Predicts one batch (B, 3, height, width) and adds the predictions of every task of this pass to its tallies."""
    with_base = BASE in walk.labels
    composable = all(task.composable for task in model.tasks)
    trace = model.trace(images, base=with_base) if composable else None  # one pass of the trunk for all answers
    out = model(images, base=with_base) if trace is None else model.answer(trace, base=with_base)
    for name, numbers in walk.labels.items():
        own = labels if numbers is None else numbers[labels]
        answer = out.base if name == BASE else out[name]
        assert answer is not None
        tallies[name].add(answer, own)
        if name in singles:
            # A task that does not compose is the only one of the model.
            single = out if trace is None else singles[name].answer(trace, base=False)
            tallies_alone[name].add(single[name], own)


def by_task(model: MemoryViT, data: Data | Mapping[str, Data]) -> dict[str, Data]:
    """`data` by task name; MemtokError for an unknown name."""
    listed = ", ".join(repr(name) for name in model.names) or "none"
    if not isinstance(data, Mapping):
        if len(model.names) != 1:
            raise MemtokError(
                f"expected data for each task of a model with the tasks {listed}, found data without a name; "
                "give a dict of task name to data",
                argument="data",
            )
        return {model.names[0]: data}
    for name in data:
        if name not in model.names:
            hint = "; for the backbone's own answer use base=" if name == BASE else "; check the spelling"
            raise MemtokError(f"expected data for the tasks {listed}, found data for {name!r}{hint}", argument="data")
    return dict(data)


def plan(
    model: MemoryViT, wanted: Mapping[str, Data], opening: Opening
) -> tuple[list[Pass], tuple[LeftOut, ...], dict[str, dict[str, Any]]]:
    """The passes to run, one per data set and split, the images that could not be read, and the splits by task."""
    part = opening.part
    if part is not None and part not in PARTS:
        raise MemtokError(
            f"expected one of the parts {', '.join(PARTS)}, found {part!r}; choose one of these", argument="part"
        )
    opened: dict[object, DataSource | ImageSet] = {}
    passes: dict[object, Pass] = {}
    left_out: dict[LeftOut, None] = {}
    splits: dict[str, dict[str, Any]] = {}
    for name, given in wanted.items():
        # Tasks that were trained with different splits of one data set are evaluated on different images.
        key: object = opening_key(given, record_of(model, name)) if isinstance(given, str) else id(given)
        if key not in opened:
            opened[key] = source = open_any(given, model, name, opening)
            if isinstance(source, DataSource):
                warn_if_dark(source.peak, model.preprocessing, source.spec)
        source = opened[key]
        numbers = None
        if isinstance(source, DataSource):
            key = (given, source.split_digest) if isinstance(given, str) else key
            numbers = class_numbers(model, name, source)
            left_out |= dict.fromkeys(source.left_out)
            images, splits[name] = measured(source, part, whole=not isinstance(given, str | DataSource))
        else:
            images = source
        passes.setdefault(key, Pass(images, {})).labels[name] = numbers
    return list(passes.values()), tuple(left_out), splits


def measured(source: DataSource, part: str | None, *, whole: bool) -> tuple[ImageSet, dict[str, Any]]:
    """The images to evaluate on, and their description; `whole`: of a torch data set without parts."""
    if whole:
        images = source.validation
        return images, {"spec": source.spec, "part": ALL, **source.split, "counts": {ALL: len(images)}}
    chosen = source.measured_part(part)
    return getattr(source, chosen), {"spec": source.spec, "part": chosen, **source.split}


def open_any(given: Data, model: MemoryViT, name: str, opening: Opening) -> DataSource | ImageSet:
    """What `given`, the data for task `name`, names or holds."""
    classes = classes_of(model, name)
    if isinstance(given, str):
        return open_as_trained(
            given,
            record_of(model, name),
            who="the backbone" if name == BASE else f"task {name!r}",
            classes=classes,
            part=opening.part,
            split=opening.split,
            data_dir=opening.data_dir,
            on_bad_image=opening.on_bad_image,
            progress=opening.progress,
        )
    refuse_split(opening.split, given)
    if isinstance(given, DataSource | ImageSet):
        return given
    inner: Any = given
    while isinstance(inner, Subset):
        inner = inner.dataset
    names = tuple(map(str, getattr(inner, "classes", None) or classes))  # those of the task, if the data set has none
    if name == BASE and names == model.backbone.classes:
        names = classes  # by position, also if a label is there twice
    return from_dataset(given, names, validation=given)  # all of it is the validation part


def record_of(model: MemoryViT, name: str) -> dict[str, Any]:
    """The training record of a task, or of the backbone."""
    if name == BASE:
        return model.backbone.record
    return next(task.record for task in model.tasks if task.name == name)


def classes_of(model: MemoryViT, name: str) -> tuple[str, ...]:
    """The class names of a task, or of the backbone's own classifier (`base`); numbers where it has no names."""
    if name != BASE:
        return next(task.classes for task in model.tasks if task.name == name)
    outputs = model.backbone.base_classes
    if not outputs:
        raise MemtokError(
            f"expected a backbone with a classifier to measure its own answer, found {model.backbone.source} without; "
            f"leave {Argument('base')} out"
        )
    known = model.backbone.classes
    return distinct_labels(known) if len(known) == outputs else tuple(str(number) for number in range(outputs))


def distinct_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels in order, made unique: one that is there twice gets its index appended, as in `crane (134)`."""
    often = Counter(labels)
    numbered = [f"{label} ({number})" for number, label in enumerate(labels)]
    found = tuple(label if often[label] == 1 else other for label, other in zip(labels, numbered, strict=True))
    return found if len(set(found)) == len(found) else tuple(numbered)


def class_numbers(model: MemoryViT, name: str, source: DataSource) -> Tensor:
    """(classes of the source,) int64: the index of each of its classes among those of the task, or of `base`."""
    own = [composed(label) for label in classes_of(model, name)]  # earlier versions took names as they came
    unknown = [label for label in source.classes if label not in own]
    for label in unknown:
        twice = [other for number, other in enumerate(own) if other == f"{label} ({number})"]
        if name == BASE and len(twice) > 1:
            raise MemtokError(
                f"expected labels in {source.spec} that name one class of the backbone, found {label!r}, which names "
                f"{len(twice)}; rename it to {twice[0]!r} or {twice[1]!r}, whichever is meant",
                argument="base",
            )
    if name == BASE and len(unknown) == len(source.classes) == len(own):
        return torch.arange(len(own))  # other names for as many classes: by position
    if unknown:
        who = "the backbone" if name == BASE else f"task {name!r}"
        shown = listing([repr(label) for label in own], 5)
        raise MemtokError(
            f"expected only classes of {who} in {source.spec} ({shown}), found {unknown[0]!r}; "
            "name another data set or rename its classes",
            argument="base" if name == BASE else "data",
        )
    return torch.tensor([own.index(label) for label in source.classes])


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards every module is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
