"""An exported ONNX file as a model that answers images: with class names and preprocessing, and without torch.

B: images. C, H, W: channels (3), height and width of the model's input.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from memtok.data.finding import find_images, summary
from memtok.data.images import (
    LeftOut,
    UnreadableImageError,
    guarded,
    peak,
    read_in_batches,
    read_upright,
    upright,
    warn_if_dark,
)
from memtok.data.pixels import evaluation_array, normalised_array
from memtok.errors import Argument, MemtokError, one_line
from memtok.exports.description import BASE, INPUT, KEY, Description
from memtok.predictions import Prediction, Predictions
from memtok.preprocessing import Preprocessing

Picture = str | Path | Image.Image
"""A path of an image, or of a folder in and below which all images count; or a PIL image of any mode."""

Pixels = NDArray[np.uint8]

NEEDED = "pip install 'memtok[onnx]'"

logger = logging.getLogger("memtok")


class OnnxModel:
    """A model in an ONNX file that memtok exported; `memtok.load_onnx` opens it.

    description: what the file says of itself: tasks with their classes and fingerprints, preprocessing, weights.
    session: onnxruntime's own object. It may be called from several threads at once.
    """

    def __init__(self, session: Any, description: Description) -> None:
        self.session = session
        self.description = description

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, in order."""
        return tuple(task.name for task in self.description.tasks)

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """The class names of each task by its name, and of `base` where the file has it."""
        return self.description.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """What `predict` and `prepare` do to images."""
        return self.description.preprocessing

    def prepare(self, images: Picture | Iterable[Picture]) -> NDArray[np.float32]:
        """(B, C, H, W) of images: resized, cropped and normalised, bit by bit as `MemoryViT.prepare` does.

        Raises MemtokError for what is no image, for none at all, and for one that cannot be read.
        """
        pictures, left_out = gather(images)
        if left_out:
            raise UnreadableImageError(*left_out[0])
        pixels = [pixels_in(name, picture, self.preprocessing)[0] for name, picture in pictures.items()]
        return normalised_array(np.stack(pixels), self.preprocessing)

    def __call__(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Every output by name, (B, classes) or (B, width), for prepared images (B, C, H, W) in float32.

        What the file holds: logits or probabilities, as `description.scores` says. Raises MemtokError for other shapes.
        """
        shape = (3, *self.preprocessing.image_size)
        if not isinstance(images, np.ndarray) or images.shape[1:] != shape or images.dtype != np.float32:
            found = f"{type(images).__name__} {getattr(images, 'shape', '')} {getattr(images, 'dtype', '')}".strip()
            raise MemtokError(
                f"expected prepared images as a float32 array (batch, {', '.join(map(str, shape))}), found {found}; "
                "make it with model.prepare(images)",
                argument="images",
            )
        names = list(self.description.outputs)
        return dict(zip(names, self.session.run(names, {INPUT: images}), strict=True))

    def predict(
        self,
        images: Picture | Iterable[Picture],
        *,
        top: int = 5,
        base: bool = False,
        batch_size: int = 32,
        on_bad_image: str = "skip",
    ) -> Predictions:
        """Classifies images with every task: class names and probabilities, the most likely first.

        images: paths, folders and PIL images, one or several. top: how many classes of each task to give (all, if it
        has fewer). base: also the backbone's own classes, where the file has them. on_bad_image: "skip" leaves out what
        cannot be read, lists it and logs a warning; "fail" raises. Raises MemtokError as `memtok.predict` does.
        """
        self._check(top, batch_size, on_bad_image, base)
        pictures, left_out = gather(images)
        if left_out and on_bad_image == "fail":
            raise UnreadableImageError(*left_out[0])
        wanted = [*self.names, *([BASE] if base else [])]
        rows: list[Prediction] = []
        unreadable: list[LeftOut] = []
        peaks: list[float] = []
        for batch in read_batches(pictures, self.preprocessing, batch_size, on_bad_image, unreadable, peaks):
            rows += self._rows(batch, wanted, top)
        warn_if_dark(max(peaks, default=None), self.preprocessing, "these")
        left_out += unreadable
        if left_out:
            logger.warning("%s", summary(left_out))
        return Predictions(tuple(rows), tuple(left_out))

    def _check(self, top: int, batch_size: int, on_bad_image: str, base: bool) -> None:
        """MemtokError for values that `predict` cannot take."""
        for name, value in (("top", top), ("batch_size", batch_size)):
            if value < 1:
                raise MemtokError(f"expected {Argument(name)} of 1 or more, found {value}; change it")
        if on_bad_image not in ("fail", "skip"):
            raise MemtokError(
                f"expected {Argument('on_bad_image')} 'fail' or 'skip', found {on_bad_image!r}; choose one of these"
            )
        if base and BASE not in self.classes:
            raise MemtokError(
                f"expected a file with the backbone's own output for {Argument('base')}, found none; export it with "
                "base=True"
            )
        if not self.names and not base:
            raise MemtokError("expected a file with a task, found none; ask for the base classes with base=True")

    def _rows(self, batch: Mapping[str, Pixels], wanted: Sequence[str], top: int) -> Iterator[Prediction]:
        """The predictions of one batch of pixels (C, H, W) by the name of the image."""
        outputs = self(normalised_array(np.stack(list(batch.values())), self.preprocessing))
        found = {name: self._probabilities(name, outputs[name]) for name in wanted}
        for index, path in enumerate(batch):
            for name in wanted:
                row, classes = found[name][index], self.classes[name]
                order = np.argsort(-row, kind="stable")[:top]
                yield Prediction(path, name, tuple((classes[number], float(row[number])) for number in order))

    def _probabilities(self, name: str, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, classes) of an output of the file; MemtokError for what is not finite."""
        if not np.isfinite(scores).all():
            raise MemtokError(f"expected finite scores of {name!r}, found others; export the model again in float32")
        if self.description.scores == "probabilities":
            return scores
        raised = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares: NDArray[np.float32] = raised / raised.sum(axis=1, keepdims=True)
        return shares


def load_onnx(
    path: str | Path, *, threads: int | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> OnnxModel:
    """Opens an ONNX file that `memtok.export` wrote. Needs onnxruntime (the extra `onnx`), and neither torch nor timm.

        model = memtok.load_onnx("model.onnx")
        for row in model.predict(["cat.jpg", "photos"], top=3).rows:
            print(row.path, row.task, row.ranking)        # class names and probabilities, the most likely first

    threads: of onnxruntime for one call; None lets it decide. providers: onnxruntime's, in the order of preference.
    Raises MemtokError for a file that is missing, damaged, or was not written by memtok.
    """
    if threads is not None and threads < 1:
        raise MemtokError(f"expected {Argument('threads')} of 1 or more, found {threads}; change it")
    place = Path(path)
    if not place.is_file():
        raise MemtokError(f"expected an ONNX file at {place}, found none; check the path", argument="path")
    session = session_of(place, threads, providers)
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise MemtokError(
            f"expected an ONNX file that memtok exported, found {place} without metadata of memtok; write it with "
            "memtok.export",
            argument="path",
        )
    description = Description.from_json(text, str(place))
    outputs = [output.name for output in session.get_outputs()]
    if outputs != list(description.outputs):
        raise MemtokError(
            f"expected the outputs {list(description.outputs)} in {place}, found {outputs}; export the model again",
            argument="path",
        )
    return OnnxModel(session, description)


def session_of(path: Path, threads: int | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    """onnxruntime's session of a file; MemtokError for one that it cannot read."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MemtokError(f"expected onnxruntime to be installed, found none; {NEEDED}") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of constants that it folds
    if threads is not None:
        options.intra_op_num_threads = threads
    unknown = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if unknown:
        raise MemtokError(
            f"expected providers among {', '.join(onnxruntime.get_available_providers())}, found {unknown[0]!r}; "
            "choose one of these, or install another build of onnxruntime",
            argument="providers",
        )
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime raises classes of its own for damaged files
        raise MemtokError(
            f"expected an ONNX file that onnxruntime can read, found {path} ({one_line(error)}); export it again",
            argument="path",
        ) from error


def gather(images: Picture | Iterable[Picture]) -> tuple[dict[str, Picture], list[LeftOut]]:
    """The images by their names in the result, each path once; and what was left out of folders."""
    found: dict[str, Picture] = {}
    left_out: dict[LeftOut, None] = {}
    pictures = [images] if isinstance(images, str | Path | Image.Image) else images
    if not isinstance(pictures, Iterable):
        raise no_picture(pictures)
    for index, picture in enumerate(pictures):
        if isinstance(picture, str | Path):
            paths, lost = find_images([picture])
            found |= dict(zip(paths, paths, strict=True))
            left_out |= dict.fromkeys(lost)
        elif isinstance(picture, Image.Image):
            found[f"images[{index}]"] = picture
        else:
            raise no_picture(picture)
    if not found:
        find_images([])  # raises
    return found, list(left_out)


def no_picture(found: object) -> MemtokError:
    """The error for something else."""
    return MemtokError(
        f"expected images as paths or PIL images, found {type(found).__name__}; give one of these", argument="images"
    )


def pixels_in(name: str, picture: Picture, preprocessing: Preprocessing) -> tuple[Pixels, float | None]:
    """The pixels (C, H, W) of an image, and its `peak`; UnreadableImageError for one that cannot be read."""
    with guarded(name):
        image = upright(picture) if isinstance(picture, Image.Image) else read_upright(picture)
        return evaluation_array(image, preprocessing), peak(image)


def read_batches(
    pictures: Mapping[str, Picture],
    preprocessing: Preprocessing,
    batch_size: int,
    on_bad_image: str,
    left_out: list[LeftOut],
    peaks: list[float],
) -> Iterator[dict[str, Pixels]]:
    """Batches of pixels by name; unreadable images are added to `left_out` or raise, peaks are added to `peaks`."""
    lock = Lock()

    def read(name: str) -> Pixels:
        picture = pictures[name]
        if isinstance(picture, Image.Image):
            with lock, guarded(name):  # two threads must not load the same image at once
                picture.load()
        pixels, highest = pixels_in(name, picture, preprocessing)
        if highest is not None:
            peaks.append(highest)
        return pixels

    for batch in read_in_batches(list(pictures), read, batch_size, on_bad_image, left_out):
        yield dict(batch)
