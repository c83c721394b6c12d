"""`memtok.export`: a model as one file that runs without memtok, compared with PyTorch before it takes its place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memtok.checks import check_choice, check_count
from memtok.data import DataSource, ImageSet, open_data
from memtok.errors import Argument, MemtokError
from memtok.evaluation import undisturbed
from memtok.exports.description import EXTRA_FILE, FORMATS, WEIGHTS, Description
from memtok.exports.opened import NEEDED
from memtok.exports.parity import TOLERANCES, Answer, Parity, compare, reader_of
from memtok.exports.program import TRUNK, Answers, check_outputs, describe, program_of
from memtok.exports.progress import COMPARING, TRACING, WRITING, Begin, ExportListener, listener_of, stages
from memtok.files import atomic_write
from memtok.model import MemoryViT
from memtok.surroundings import plain_torch
from memtok.verification import choose_images, split

BUNDLED = "digits"  # the images that a file is compared on unless told otherwise
IMAGES, BATCH = 64, 16
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportResult:
    """What was written: where, in which form, of how many bytes, what it holds, and how near it is to PyTorch."""

    path: str
    format: str
    bytes: int
    description: Description
    parity: Parity

    def to_json(self) -> dict[str, Any]:
        """{"file", "format", "bytes", "metadata", "parity"}; metadata is what the file itself has."""
        return {
            "file": self.path,
            "format": self.format,
            "bytes": self.bytes,
            "metadata": self.description.to_dict(),
            "parity": self.parity.to_json(),
        }


@plain_torch()
def export(
    model: MemoryViT,
    path: str | Path,
    *,
    format: str = "onnx",
    weights: str = "float32",
    probabilities: bool = False,
    base: bool = False,
    embedding: bool = False,
    parity: str | DataSource | ImageSet | Tensor | None = None,
    images: int = IMAGES,
    tolerance: float | None = None,
    data_dir: Path | None = None,
    on_bad_image: str = "fail",
    progress: bool | ExportListener = False,
) -> ExportResult:
    """Writes `model` as a file that answers without memtok: one input, `images`, and one output per task, by its name.

    images: (batch, 3, height, width) float32, batches of any size, prepared by `model.preprocessing` as
    `MemoryViT.prepare` and `OnnxModel.prepare` do. Outputs: (batch, classes) float32 of each task; with base=True also
    `base`; with embedding=True also `embedding`, (batch, dim), the features of the backbone. probabilities: softmax
    of the logits. Class names, preprocessing and fingerprints are in the metadata, memory is folded.

    format: "onnx", one ONNX file; or "torch", a program of `torch.export`, whose outputs are a dict by name.
    weights: of an ONNX file. "float32"; "float16", stored so and computed in float32; "int8", those of the trunk's
    matrix products, by onnxruntime's dynamic quantisation; what belongs to the tasks stays float32.

    Before the file takes the place of `path` it is compared with PyTorch, on `images` images of `parity`: a spec or
    source, of whose test part they are taken; (B, 3, height, width) normalised images; None takes the digits that
    memtok brings along. tolerance: how far an answer may be from PyTorch's, relative to the largest one (absolute with
    probabilities); None is 0.0001 for float32, 0.01 for float16 and 0.25 for int8.

    progress: True for a bar on standard error that names the stage, or lines where that is no terminal; or an
    `ExportListener`.

    Raises MemtokError, and leaves no file, for a model beyond that, one that is not in float32 on the CPU, one without
    an output to write, a task with the name of another output, a file of more than 2 GiB, and without the packages of
    the extra `onnx`.
    """
    check_arguments(format, weights, images, tolerance)
    check_model(model)
    check_packages(format)
    model = MemoryViT(model.backbone, model.tasks, preprocessing=model.preprocessing).select(model.names)  # uncompiled
    description = describe(model, weights=weights, probabilities=probabilities, base=base, embedding=embedding)
    check_outputs(description)
    bound = TOLERANCES[weights] if tolerance is None else tolerance
    names = stages(format, weights)
    with closing(listener_of(progress)) as listener:

        def begin(stage: str) -> None:
            listener.stage(stage, names.index(stage) + 1, len(names))

        source = BUNDLED if parity is None else parity
        if isinstance(source, str):
            source = open_data(source, data_dir=data_dir, on_bad_image=on_bad_image, progress=listener.reading)
        chosen = choose_images(model.backbone, model.preprocessing, source, images, 0, data_dir, on_bad_image)
        with atomic_write(path) as temporary:
            write(Answers(model, description, trunk=weights == "int8"), temporary, format, begin)
            begin(COMPARING)
            written = reader_of(temporary, description, format)
            batches = watched(split(chosen, model.preprocessing, BATCH), len(chosen), listener)
            with undisturbed(model), model.folded():
                found = compare(answer_of(model, description), written, batches, description, bound)
            found.check()
            size = temporary.stat().st_size
    return ExportResult(str(path), format, size, description, found)


def write(answers: Answers, place: Path, form: str, begin: Begin) -> None:
    """Writes the file."""
    begin(TRACING)
    program = program_of(answers)
    if form == "torch":
        begin(WRITING)
        with place.open("wb") as stream:
            torch.export.save(program, stream, extra_files={EXTRA_FILE: answers.description.to_json()})
        return
    from memtok.exports.graph import onnx_bytes

    names = [*answers.description.outputs, *([TRUNK] if answers.trunk else [])]
    content = onnx_bytes(program, answers.description, names, begin)
    begin(WRITING)
    place.write_bytes(content)


def answer_of(model: MemoryViT, description: Description) -> Answer:
    """What PyTorch answers, output by output, as it is exported."""
    answers = Answers(model, description, trunk=False)

    def ask(images: Tensor) -> dict[str, NDArray[np.float32]]:
        return {name: tensor.numpy() for name, tensor in answers(images).items()}

    return ask


def watched(batches: Iterable[Tensor], total: int, listener: ExportListener) -> Iterator[Tensor]:
    """The batches, each reported once it was used."""
    done = 0
    listener.comparing(done, total)
    for batch in batches:
        yield batch
        done += len(batch)
        listener.comparing(done, total)


def check_arguments(form: str, weights: str, images: int, tolerance: float | None) -> None:
    """MemtokError for values that do not make sense, alone or together."""
    check_choice("format", form, FORMATS)
    check_choice("weights", weights, WEIGHTS)
    check_count("images", images, 1)
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise MemtokError(f"expected {Argument('tolerance')} as a number of 0 or more, found {tolerance}; change it")
    if form == "torch" and weights != "float32":
        raise MemtokError(
            f"expected {Argument('weights', 'float32')} with {Argument('format', 'torch')}, found {weights}; leave it "
            f"out, or take {Argument('format', 'onnx')}"
        )


def check_model(model: MemoryViT) -> None:
    """MemtokError unless this is a model that can be exported as it stands."""
    if not isinstance(model, MemoryViT):
        raise MemtokError(
            f"expected a model to export, found {type(model).__name__}; make one with MemoryViT(backbone, tasks)",
            argument="model",
        )
    backbone = model.backbone
    if backbone.dtype != torch.float32 or backbone.device.type != "cpu":
        raise MemtokError(
            f"expected a model in torch.float32 on the CPU to export, found {backbone.dtype} on {backbone.device}; "
            "load the backbone again with dtype=torch.float32, device='cpu'",
            argument="model",
        )


def check_packages(form: str) -> None:
    """MemtokError without the packages that write and run ONNX, where that is asked for."""
    missing = [name for name in PACKAGES if find_spec(name) is None] if form == "onnx" else []
    if missing:
        raise MemtokError(
            f"expected {', '.join(PACKAGES)} to be installed for ONNX, found no {' and no '.join(missing)}; {NEEDED}"
        )
