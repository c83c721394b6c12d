"""`memtok predict`: class names and probabilities for images."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import Namespace

from memtok.cli.errors import UsageError
from memtok.cli.options import (
    Kind,
    Parser,
    add,
    add_backbone,
    add_device,
    add_files,
    add_json,
    add_list,
    add_on_bad_image,
    add_switch,
    require,
    require_backbone,
    whole,
)
from memtok.cli.output import check_outputs, note_left_out, progress, table, write_result
from memtok.errors import MemtokError

USAGE = "FILE... [--backbone SRC] --images PATH..."
EXAMPLES = """
  memtok predict pets.safetensors --backbone facebook/dinov2-small --images cat.jpg
  memtok predict all.safetensors --backbone small --images photos --top 3 --csv predictions.csv
"""


def configure(parser: Parser) -> None:
    """Adds the options."""
    add_files(parser, "task files, those among them that others extend; any order")
    add_backbone(parser, "as the task files say")
    add_list(parser, "--images", "PATH", "images, or folders that are searched recursively")
    add(parser, "--top", whole("--top", 1), "K", "how many classes of each task to show", 1)
    add_switch(parser, "--base", "also the backbone's own classes, as task `base`; so without any FILE")
    add(parser, "--batch-size", whole("--batch-size", 1), "N", "images at once", 32)
    add_list(
        parser,
        "--unknown-below",
        "P",
        "call an image unknown to a task whose likeliest class has less than this probability; NAME=P for one task",
        threshold("--unknown-below"),
    )
    add_on_bad_image(parser, "skip")
    add_device(parser)
    add_json(parser)
    add(parser, "--csv", None, "FILE", "also write the table as CSV: image, task, rank, class, probability")


def threshold(flag: str) -> Kind:
    """A probability, or NAME=P, as it is written."""

    def convert(value: str) -> str:
        if not 0 <= float(value.rpartition("=")[2]) <= 1:
            raise ValueError
        return value

    return Kind(flag, "a probability from 0 to 1, or NAME=P for one task", convert)


def run(options: Namespace) -> int:
    """Loads, predicts, prints."""
    require(options, "--images")
    require_backbone(options)
    check_outputs(options.json, options.csv, inputs=[*options.files, options.backbone], pictures=options.images)
    from memtok.cli.sources import open_tasks, read_files
    from memtok.model import MemoryViT
    from memtok.prediction import find_images, predict

    find_images(options.images)  # an error before the model is loaded
    results = [options.json, options.csv]
    model = MemoryViT(*open_tasks(options, read_files(options.files), results, options.precision))
    base = options.base or not model.names
    unknown_below = thresholds(options.unknown_below or [], [*model.names, *(["base"] if base else [])])
    with progress("predict") as report:
        result = predict(
            model,
            options.images,
            top=options.top,
            base=base,
            batch_size=options.batch_size,
            on_bad_image=options.on_bad_image,
            unknown_below=unknown_below,
            progress=report,
        )
    write_result(options.json, result.to_json())
    if options.csv is not None:
        result.write_csv(options.csv)
    note_left_out(result.left_out)
    if not result.rows:
        raise MemtokError("expected an image that can be read, found none; the notes say what is wrong with them")
    rows = [
        [row.path, row.task, f"unknown ({name})" if row.unknown and rank == 0 else name, f"{probability:.4f}"]
        for row in result.rows
        for rank, (name, probability) in enumerate(row.ranking)
    ]
    table(["image", "task", "class", "probability"], rows, right=["probability"])
    return 0


def thresholds(words: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """The least probability of a known image for each task; what is given for one task counts before what is for all.

    UsageError for the name of no task and for two values of one kind.
    """
    given: dict[str | None, float] = {}
    for word in words:
        name, _, probability = word.rpartition("=")
        given[name or None] = float(probability)
    if len(given) < len(words):
        raise UsageError(f"expected one --unknown-below for all tasks and one for each, found {len(words)}; drop some")
    for other in given:
        if other is not None and other not in names:
            raise UsageError(f"expected --unknown-below for one of {', '.join(names)}, found {other!r}; check the name")
    return {name: given.get(name, given.get(None, 0.0)) for name in names if name in given or None in given}
