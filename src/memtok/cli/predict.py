"""`memtok predict`: class names and probabilities for images."""

from __future__ import annotations

from jsonargparse import Namespace

from memtok.cli.options import (
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
from memtok.cli.output import check_outputs, note, progress, table, write_result

USAGE = "FILE... [--backbone SRC] --images PATH..."
EXAMPLES = """
  memtok predict pets.safetensors --backbone facebook/dinov2-small --images cat.jpg
  memtok predict all.safetensors --backbone small --images photos --top 3 --csv predictions.csv
"""


def configure(parser: Parser) -> None:
    """Adds the options."""
    add_files(parser, "task files, those among them that others extend; any order")
    add_backbone(parser, "as the task files say")
    add_list(parser, "--images", "PATH", "images, or folders in and below which to look for them")
    add(parser, "--top", whole("--top", 1), "K", "how many classes of each task to show", 1)
    add_switch(parser, "--base", "also the backbone's own classes, as task `base`; so without any FILE")
    add(parser, "--batch-size", whole("--batch-size", 1), "N", "images at once", 32)
    add_on_bad_image(parser)
    add_device(parser)
    add_json(parser)
    add(parser, "--csv", None, "FILE", "also write the table as CSV: image, task, rank, class, probability")


def run(options: Namespace) -> int:
    """Loads, answers, prints."""
    require(options, "--images")
    require_backbone(options)
    check_outputs(options.json, options.csv, inputs=[*options.files, options.backbone], pictures=options.images)
    from memtok.cli.sources import choose_device, load_files, open_backbone, read_headers
    from memtok.model import MemoryViT
    from memtok.prediction import find_images, predict

    paths = find_images(options.images)
    device = choose_device(options.device)
    headers = read_headers(options.files)
    backbone = open_backbone(
        options.backbone,
        headers,
        files=options.files,
        results=[options.json, options.csv],
        device=device,
        precision=options.precision,
    )
    model = MemoryViT(backbone, load_files(options.files, backbone))
    with progress("predict") as report:
        result = predict(
            model,
            paths,
            top=options.top,
            base=options.base or not model.names,
            batch_size=options.batch_size,
            on_bad_image=options.on_bad_image,
            progress=report,
        )
    write_result(options.json, result.to_json())
    if options.csv is not None:
        result.write_csv(options.csv)
    for path in result.skipped:
        note(f"not readable, left out: {path}")
    rows = [
        [row.path, row.task, name, f"{probability:.4f}"] for row in result.rows for name, probability in row.ranking
    ]
    table(["image", "task", "class", "probability"], rows, right=["probability"])
    return 0
