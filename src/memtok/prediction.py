"""Class names and probabilities for images, by every task of a model in one pass."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from PIL import Image
from torch import Tensor

from memtok.data import UnreadableImageError
from memtok.data.finding import find_images, summary
from memtok.data.images import LeftOut, guarded, peak, read_in_batches, warn_if_dark
from memtok.data.transforms import evaluation_pixels
from memtok.errors import Argument, MemtokError
from memtok.evaluation import BASE, Progress, classes_of, undisturbed
from memtok.inputs import Picture, Pictures, check_picture, listed, normalised, opened
from memtok.model import MemoryViT
from memtok.predictions import Prediction, Predictions
from memtok.preprocessing import Preprocessing
from memtok.surroundings import plain_torch

__all__ = ["Prediction", "Predictions", "find_images", "predict"]

logger = logging.getLogger("memtok")


@plain_torch()
def predict(
    model: MemoryViT,
    images: Pictures,
    *,
    top: int = 5,
    base: bool = False,
    batch_size: int = 32,
    on_bad_image: str = "skip",
    unknown_below: float | Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Classifies images with every task of `model`.

    images: paths of files, and of folders, in and below which all images count; PIL images; arrays and tensors; one of
    them or several, mixed: see `memtok.inputs.Picture`. They are preprocessed by `model.preprocessing`.

    unknown_below: a probability in [0, 1], or one for each task by name: if the most likely class of a task has a lower
    probability, the image is unknown to it, and its `answer` is None. A softmax is often overconfident on images unlike
    those of the training: choose the threshold on known and unknown images of your own.
    top: how many classes of each task to give (all, if it has fewer). base: also the backbone's own classes, as task
    `base`. on_bad_image: "skip" leaves out what cannot be read, lists it and logs a warning; "fail" raises.
    Raises MemtokError for a missing path, for a folder without images, and for objects that are no image.
    """
    if top < 1:
        raise MemtokError(f"expected {Argument('top')} as a number of classes of 1 or more, found {top}; ask for 1")
    if batch_size < 1:
        raise MemtokError(f"expected {Argument('batch_size')} of 1 or more, found {batch_size}; change it")
    if on_bad_image not in ("fail", "skip"):
        raise MemtokError(
            f"expected {Argument('on_bad_image')} 'fail' or 'skip', found {on_bad_image!r}; choose one of these"
        )
    found, left_out = gather(images, model.preprocessing)
    if left_out and on_bad_image == "fail":
        raise UnreadableImageError(*left_out[0])
    classes = {name: classes_of(model, name) for name in (*model.names, *([BASE] if base else []))}
    if not classes:
        raise MemtokError("expected a model with a task, found none; add one, or ask for the base classes")
    thresholds = check_thresholds(unknown_below, list(classes))
    rows: list[Prediction] = []
    unreadable: list[LeftOut] = []
    peaks: list[float] = []
    done = 0
    with undisturbed(model), model.folded():
        for batch in read_batches(model, found, batch_size, on_bad_image, unreadable, peaks):
            rows += predict_batch(model, classes, batch, top, thresholds)
            done += len(batch)
            if progress is not None:
                progress(done + len(unreadable), len(found))
    warn_if_dark(max(peaks, default=None), model.preprocessing, "these")
    left_out += unreadable
    if left_out:
        logger.warning("%s", summary(left_out))
    return Predictions(tuple(rows), tuple(left_out), thresholds)


def gather(images: Pictures, preprocessing: Preprocessing) -> tuple[dict[str, Picture], list[LeftOut]]:
    """The images by their names in the result, each path once; and what was left out of folders."""
    found: dict[str, Picture] = {}
    left_out: dict[LeftOut, None] = {}
    pictures = listed(images)
    if not pictures:
        find_images([])  # raises
    for index, picture in enumerate(pictures):
        if isinstance(picture, str | Path):
            paths, lost = find_images([picture])
            found |= dict(zip(paths, paths, strict=True))
            left_out |= dict.fromkeys(lost)
        else:
            check_picture(picture, preprocessing)
            found[f"images[{index}]"] = picture
    return found, list(left_out)


def check_thresholds(unknown_below: float | Mapping[str, float] | None, names: Sequence[str]) -> dict[str, float]:
    """The threshold of each task by name; MemtokError for other names or values."""
    if unknown_below is None:
        return {}
    given = unknown_below if isinstance(unknown_below, Mapping) else dict.fromkeys(names, unknown_below)
    for name, value in given.items():
        if name not in names:
            raise MemtokError(
                f"expected {Argument('unknown_below')} for {', '.join(names)}, found {name!r}; check the spelling"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise MemtokError(
                f"expected {Argument('unknown_below')} as a probability in [0, 1], found {value!r}; change it"
            )
    return {name: float(value) for name, value in given.items()}


def predict_batch(
    model: MemoryViT,
    classes: dict[str, tuple[str, ...]],
    batch: Sequence[tuple[str, Tensor]],
    top: int,
    thresholds: Mapping[str, float],
) -> Iterator[Prediction]:
    """The rows of one batch of (path, (3, height, width) tensor)."""
    images = normalised([image for _, image in batch], model.preprocessing, model.backbone.device)
    out = model(images, base=BASE in classes)
    highest: dict[str, tuple[Any, Any]] = {}
    for name, names in classes.items():
        logits = out.base if name == BASE else out[name]
        assert logits is not None
        if not bool(logits.isfinite().all()):
            raise MemtokError(f"expected finite logits of {name!r}, found others; verify the task file, or use float32")
        values, indices = logits.float().softmax(dim=1).topk(min(top, len(names)), dim=1)  # (B, top)
        highest[name] = values.tolist(), indices.tolist()
    for index, (path, _) in enumerate(batch):
        for name, names in classes.items():
            values, indices = highest[name]
            ranking = tuple(zip((names[number] for number in indices[index]), values[index], strict=True))
            yield Prediction(path, name, ranking, unknown=ranking[0][1] < thresholds.get(name, 0.0))


def read_batches(
    model: MemoryViT,
    pictures: Mapping[str, Picture],
    batch_size: int,
    on_bad_image: str,
    left_out: list[LeftOut],
    peaks: list[float],
) -> Iterator[list[tuple[str, Tensor]]]:
    """Batches of (path, the prepared image); unreadable ones are added to `left_out` or raise.

    The `peak` of images with more than 8 bits is added to `peaks`.
    """
    transform, lock = evaluation_pixels(model.preprocessing), Lock()

    def read(path: str) -> Tensor:
        picture = pictures[path]
        with guarded(path):
            if isinstance(picture, Image.Image):
                with lock:  # two threads must not load the same image at once
                    picture.load()
            image = opened(picture)
            if isinstance(image, Tensor):
                return image
            if (value := peak(image)) is not None:
                peaks.append(value)
            return transform(image)

    return read_in_batches(list(pictures), read, batch_size, on_bad_image, left_out)
