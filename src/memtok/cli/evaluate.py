"""`memtok evaluate`: the accuracy of tasks, each alone and all composed in one model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from memtok.cli.options import (
    Parser,
    add,
    add_backbone,
    add_data_options,
    add_device,
    add_files,
    add_json,
    add_list,
    add_split,
    add_switch,
    one_of,
    require,
    require_backbone,
    whole,
)
from memtok.cli.output import (
    check_apart,
    check_outputs,
    note,
    note_left_out,
    progress,
    recall_words,
    say,
    table,
    write_result,
)
from memtok.display import percent

if TYPE_CHECKING:
    from memtok.evaluation import EvaluationTable

USAGE = "FILE... [--backbone SRC] --data NAME=SPEC..."
EXAMPLES = """
  memtok evaluate pets.safetensors --backbone facebook/dinov2-small --data folder:photos
  memtok evaluate pets.safetensors digits.safetensors --backbone small \\
      --data pets=folder:photos digits=digits --json accuracy.json --csv classes.csv
"""


def configure(parser: Parser) -> None:
    """Adds the options."""
    add_files(parser, "task files, those among them that others extend; any order")
    add_backbone(parser, "as the task files say")
    add_list(
        parser,
        "--data",
        "NAME=SPEC",
        "data for each task by its name; `base=SPEC` measures the backbone's own classifier; "
        "for a single task the name may be left out",
    )
    parts = "test, validation or train (default: test, or validation where the data have no test part)"
    add(parser, "--part", one_of("--part", ("test", "validation", "train")), "PART", parts)
    add_split(parser, "that of the training, where the data are the same")
    add_switch(parser, "--composed-only", "leave out the second measurement, of each task without the others")
    add(parser, "--batch-size", whole("--batch-size", 1), "N", "images at once", 64)
    add_data_options(parser)
    add_device(parser)
    add_json(parser)
    add(parser, "--csv", None, "FILE", "also write a table with one row per class")
    add(parser, "--confusion", None, "DIR", "also write confusion matrices: TASK.png, TASK.csv, TASK.json")


def run(options: Namespace) -> int:
    """Loads, measures, prints."""
    require(options, "--data")
    require_backbone(options)
    check_outputs(options.json, options.csv, inputs=[*options.files, options.backbone], pictures=options.data)
    from memtok.cli.sources import BASE, named_specs, open_tasks, read_files
    from memtok.evaluation import evaluate
    from memtok.model import MemoryViT

    stored = read_files(options.files)
    names = [one.name for one in stored] or [BASE]
    specs = named_specs(options.data, names)
    check_confusion(options, specs)
    model = MemoryViT(*open_tasks(options, stored, [options.json, options.csv], options.precision))
    for name in model.names:
        if name not in specs:
            note(f"task {name!r} is in the model but has no --data, so it is not measured")
    base = specs.pop(BASE, None)
    with progress("evaluate") as report:
        result = evaluate(
            model,
            specs,
            base=base,
            alone=not options.composed_only,
            part=options.part,
            batch_size=options.batch_size,
            workers=options.workers,
            data_dir=options.data_dir,
            split=options.split,
            on_bad_image=options.on_bad_image,
            progress=report,
        )
    write_result(options.json, result.to_json())
    if options.csv is not None:
        result.write_csv(options.csv)
    written = [] if options.confusion is None else result.write_confusions(options.confusion)
    show(result)
    for path in written:
        say(f"wrote {path}")
    if options.part is None:
        note_validation(result)
    return 0


def check_confusion(options: Namespace, specs: Mapping[str, str]) -> None:
    """UsageError or MemtokError if the files of --confusion would replace others, or cannot be written."""
    if options.confusion is None:
        return
    from memtok.confusion import ENDINGS
    from memtok.folders import slug

    check_apart(specs.values(), confusion=options.confusion)
    files = [str(Path(options.confusion) / f"{slug(name)}{ending}") for name in specs for ending in ENDINGS]
    check_outputs(options.json, options.csv, *files, inputs=[*options.files, options.backbone], pictures=options.data)


def show(result: EvaluationTable) -> None:
    """Prints one row per task, the recall of classes, and warnings."""
    rows = []
    for name, score in result.rows():
        alone = result.alone.get(name)
        shown = "" if alone is None else percent(alone.top1)
        shares = [percent(share) for share in (score.top1, score.balanced, score.top5)]
        rows.append([name, result.part(name), f"{score.images:,}", *shares, shown])
    columns = ["task", "part", "images", "top-1", "balanced", "top-5", "top-1 alone"]
    table(columns, rows, right=columns[2:])
    for name, score in result.rows():
        say(f"{name}: {recall_words(score)}")
    for name, split in result.splits.items():
        say(f"{name}: {split['part']} part of {split['spec']}, split {split['kind']}, {split['digest'][:19]}")
    for name, score in result.rows():
        for warning in score.warnings():
            note(f"{name}: {warning}")
    note_left_out(result.left_out)
    if result.left_out:
        say(f"{len(result.left_out)} unreadable images left out")


def note_validation(result: EvaluationTable) -> None:
    """Notes the data without test part, whose validation images were used."""
    for spec in dict.fromkeys(split["spec"] for split in result.splits.values() if split["part"] == "validation"):
        note(
            f"{spec} has no test part: these are the validation images, by which training chooses its best state, so "
            "new images may give less; train with --split 80-20, or add a folder test/, to have a test part"
        )
