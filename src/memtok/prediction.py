"""Class names and probabilities for images, by every task of a model in one pass."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtok.data import UnreadableImageError, read_image
from memtok.data.finding import images_below, summary
from memtok.data.images import LeftOut, guarded, shown
from memtok.data.transforms import Normaliser, evaluation_pixels
from memtok.errors import MemtokError
from memtok.evaluation import BASE, Progress, classes_of, undisturbed
from memtok.files import csv_text, write_csv
from memtok.model import MemoryViT

logger = logging.getLogger("memtok")


@dataclass(frozen=True)
class Prediction:
    """What one task says of one image: (class name, probability), the likeliest first."""

    path: str
    task: str
    ranking: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Predictions:
    """Rows in the order of the images, for each image the tasks in their order.

    left_out: what could not be read, (path, reason) each; skipped: the paths alone.
    """

    rows: tuple[Prediction, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def skipped(self) -> tuple[str, ...]:
        """The paths of what could not be read."""
        return tuple(one.path for one in self.left_out)

    def to_json(self) -> dict[str, Any]:
        """{"images": [{"path", "tasks": {NAME: [{"class", "probability"}]}}], "skipped": [path], "left_out": [{"path",
        "reason"}]}.
        """
        images: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            ranking = [{"class": name, "probability": probability} for name, probability in row.ranking]
            images.setdefault(row.path, {})[row.task] = ranking
        return {
            "images": [{"path": path, "tasks": tasks} for path, tasks in images.items()],
            "skipped": list(self.skipped),
            "left_out": [one._asdict() for one in self.left_out],
        }

    def write_csv(self, path: str | Path) -> None:
        """One row per image, task and rank: image, task, rank (from 1), class, probability."""
        rows: list[list[object]] = [["image", "task", "rank", "class", "probability"]]
        for row in self.rows:
            for rank, (name, probability) in enumerate(row.ranking, start=1):
                rows.append([row.path, row.task, rank, name, f"{probability:.6f}"])
        write_csv(path, csv_text(rows))


def predict(
    model: MemoryViT,
    paths: Sequence[str | Path],
    *,
    top: int = 5,
    base: bool = False,
    batch_size: int = 32,
    on_bad_image: str = "skip",
    progress: Progress | None = None,
) -> Predictions:
    """Classifies image files, and all images in and below folders, with every task of `model`.

    top: how many classes of each task to give (all, if it has fewer). base: also the backbone's own classes, as task
    `base`. on_bad_image: "skip" leaves out what cannot be read, lists it and says so; "fail" raises for it.
    Raises MemtokError for a path that is not there and for a folder without images.
    """
    if top < 1:
        raise MemtokError(f"expected top as a number of classes of 1 or more, found {top}; ask for 1")
    if batch_size < 1:
        raise MemtokError(f"expected batch_size of 1 or more, found {batch_size}; change it")
    if on_bad_image not in ("fail", "skip"):
        raise MemtokError(f"expected on_bad_image 'fail' or 'skip', found {on_bad_image!r}; choose one of these")
    found, left_out = find_images(paths)
    if left_out and on_bad_image == "fail":
        raise UnreadableImageError(*left_out[0])
    classes = {name: classes_of(model, name) for name in (*model.names, *([BASE] if base else []))}
    if not classes:
        raise MemtokError("expected a model with a task, found none; add one, or ask for the base classes")
    rows: list[Prediction] = []
    unreadable: list[LeftOut] = []
    done = 0
    with undisturbed(model):
        for batch in read_batches(model, found, batch_size, on_bad_image, unreadable):
            rows += answer(model, classes, batch, top)
            done += len(batch)
            if progress is not None:
                progress(done + len(unreadable), len(found))
    left_out += unreadable
    if left_out:
        logger.warning("%s", summary(left_out))
    return Predictions(tuple(rows), tuple(left_out))


def answer(
    model: MemoryViT, classes: dict[str, tuple[str, ...]], batch: Sequence[tuple[str, Tensor]], top: int
) -> Iterator[Prediction]:
    """The rows of one batch of (path, (3, height, width) pixels)."""
    pixels = torch.stack([image for _, image in batch]).to(model.backbone.device)
    images = Normaliser(model.preprocessing)(pixels)
    out = model(images, base=BASE in classes)
    likeliest: dict[str, tuple[Any, Any]] = {}
    for name, names in classes.items():
        logits = out.base if name == BASE else out[name]
        assert logits is not None
        if not bool(logits.isfinite().all()):
            raise MemtokError(f"expected finite logits of {name!r}, found others; verify the task file, or use float32")
        values, indices = logits.float().softmax(dim=1).topk(min(top, len(names)), dim=1)  # (B, top)
        likeliest[name] = values.tolist(), indices.tolist()
    for index, (path, _) in enumerate(batch):
        for name, names in classes.items():
            values, indices = likeliest[name]
            ranking = zip((names[number] for number in indices[index]), values[index], strict=True)
            yield Prediction(path, name, tuple(ranking))


def read_batches(
    model: MemoryViT, paths: Sequence[str], batch_size: int, on_bad_image: str, left_out: list[LeftOut]
) -> Iterator[list[tuple[str, Tensor]]]:
    """Batches of (path, pixels of the prepared image); unreadable ones are added to `left_out` or raise."""
    transform = evaluation_pixels(model.preprocessing)

    def read(path: str) -> Tensor | UnreadableImageError:
        try:
            with guarded(path):
                return transform(read_image(path))
        except UnreadableImageError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding leaves the interpreter free
        for start in range(0, len(paths), batch_size):
            part = paths[start : start + batch_size]
            batch: list[tuple[str, Tensor]] = []
            for path, image in zip(part, pool.map(read, part), strict=True):
                if isinstance(image, Tensor):
                    batch.append((path, image))
                elif on_bad_image == "fail":
                    raise image
                else:
                    left_out.append(LeftOut(path, image.reason))
            if batch:
                yield batch


def find_images(paths: Iterable[str | Path]) -> tuple[list[str], list[LeftOut]]:
    """The files among `paths`, and the images in and below the folders among them, sorted; each once. And what is lost.

    A file that is named counts whatever it ends in. Raises MemtokError for a path that is not there, for a folder
    without images, and where nothing is named.
    """
    found: dict[str, None] = {}
    left_out: dict[str, str] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside, lost = images_below(path)
            left_out |= {str(place): reason for place, reason in lost.items()}
            if not inside:
                why = f" ({summary([LeftOut(str(place), reason) for place, reason in lost.items()])})" if lost else ""
                raise MemtokError(f"expected images in the folder {shown(path)}, found none{why}; name another")
            found |= dict.fromkeys(map(str, inside))
        elif os.path.lexists(path):  # what it is, a link to nowhere for example, shows when it is read
            found[str(path)] = None
        else:
            raise MemtokError(
                f"expected an image or a folder of images at {shown(path)}, found nothing; check the path"
            )
    if not found:
        raise MemtokError("expected images, found no path; name files or folders")
    return list(found), [LeftOut(path, reason) for path, reason in left_out.items()]
