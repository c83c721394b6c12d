"""Class names and probabilities for images, by every task of a model in one pass."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memtok.data import IMAGE_EXTENSIONS, UnreadableImageError, read_image
from memtok.data.transforms import Normaliser, evaluation_pixels
from memtok.errors import MemtokError
from memtok.evaluation import BASE, Progress, classes_of, undisturbed
from memtok.files import write_text
from memtok.model import MemoryViT
from memtok.surroundings import plain_torch


@dataclass(frozen=True)
class Prediction:
    """What one task says of one image: (class name, probability), the likeliest first."""

    path: str
    task: str
    ranking: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Predictions:
    """Rows in the order of the images, for each image the tasks in their order. skipped: images that were left out."""

    rows: tuple[Prediction, ...]
    skipped: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """{"images": [{"path", "tasks": {NAME: [{"class", "probability"}]}}], "skipped": [path]}."""
        images: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            ranking = [{"class": name, "probability": probability} for name, probability in row.ranking]
            images.setdefault(row.path, {})[row.task] = ranking
        return {
            "images": [{"path": path, "tasks": tasks} for path, tasks in images.items()],
            "skipped": list(self.skipped),
        }

    def write_csv(self, path: str | Path) -> None:
        """One row per image, task and rank: image, task, rank (from 1), class, probability."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["image", "task", "rank", "class", "probability"])
        for row in self.rows:
            for rank, (name, probability) in enumerate(row.ranking, start=1):
                rows.writerow([row.path, row.task, rank, name, f"{probability:.6f}"])
        write_text(path, text.getvalue())


@plain_torch()
def predict(
    model: MemoryViT,
    paths: Sequence[str | Path],
    *,
    top: int = 5,
    base: bool = False,
    batch_size: int = 32,
    on_bad_image: str = "fail",
    progress: Progress | None = None,
) -> Predictions:
    """Classifies image files, and all images in and below folders, with every task of `model`.

    top: how many classes of each task to give (all, if it has fewer). base: also the backbone's own classes, as task
    `base`. on_bad_image: "fail" raises for an image that cannot be read, "skip" leaves it out and lists it.
    Raises MemtokError for a path that is not there and for a folder without images.
    """
    if top < 1:
        raise MemtokError(f"expected top as a number of classes of 1 or more, found {top}; ask for 1")
    if batch_size < 1:
        raise MemtokError(f"expected batch_size of 1 or more, found {batch_size}; change it")
    if on_bad_image not in ("fail", "skip"):
        raise MemtokError(f"expected on_bad_image 'fail' or 'skip', found {on_bad_image!r}; choose one of these")
    found = find_images(paths)
    classes = {name: classes_of(model, name) for name in (*model.names, *([BASE] if base else []))}
    if not classes:
        raise MemtokError("expected a model with a task, found none; add one, or ask for the base classes")
    rows: list[Prediction] = []
    skipped: list[str] = []
    done = 0
    with undisturbed(model), model.folded():
        for batch in read_batches(model, found, batch_size, on_bad_image, skipped):
            rows += answer(model, classes, batch, top)
            done += len(batch)
            if progress is not None:
                progress(done + len(skipped), len(found))
    return Predictions(tuple(rows), tuple(skipped))


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
    model: MemoryViT, paths: Sequence[str], batch_size: int, on_bad_image: str, skipped: list[str]
) -> Iterator[list[tuple[str, Tensor]]]:
    """Batches of (path, pixels of the prepared image); unreadable ones are added to `skipped` or raise."""
    transform = evaluation_pixels(model.preprocessing)

    def read(path: str) -> Tensor | UnreadableImageError:
        try:
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
                    skipped.append(path)
            if batch:
                yield batch


def find_images(paths: Iterable[str | Path]) -> list[str]:
    """The files among `paths`, and the image files in and below the folders among them, sorted by name; each once."""
    found: dict[str, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if is_image(file.relative_to(path)) and file.is_file())
            if not inside:
                raise MemtokError(f"expected images in the folder {path}, found none; name another")
            found |= dict.fromkeys(map(str, inside))
        elif path.exists():
            found[str(path)] = None
        else:
            raise MemtokError(f"expected an image or a folder of images at {path}, found nothing; check the path")
    if not found:
        raise MemtokError("expected images, found no path; name files or folders")
    return list(found)


def is_image(path: Path) -> bool:
    """Whether a file in a folder counts: by its ending, and neither it nor a folder above it is hidden."""
    return path.suffix.lower() in IMAGE_EXTENSIONS and not any(part.startswith(".") for part in path.parts)
