"""`memtok verify`: checks that tasks change neither the backbone nor each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import Namespace

from memtok.cli.errors import check_spec
from memtok.cli.options import (
    Parser,
    add,
    add_backbone,
    add_data_options,
    add_files,
    add_json,
    require_backbone,
    whole,
)
from memtok.cli.output import check_outputs, progress, say, table, write_result

if TYPE_CHECKING:
    from memtok.verification import VerifyReport

USAGE = "FILE... [--backbone SRC] [--data SPEC]"
EXAMPLES = """
  memtok verify pets.safetensors digits.safetensors --backbone facebook/dinov2-small
  memtok verify all.safetensors --backbone small --data digits --json proof.json
"""


def configure(parser: Parser) -> None:
    """Adds the options."""
    add_files(parser, "task files, those among them that others extend; any order")
    add_backbone(parser, "as the task files say")
    add(parser, "--data", None, "SPEC", "use images of its test or validation part; without it random ones")
    add(parser, "--images", whole("--images", 1), "N", "how many images to use", 32)
    add(parser, "--seed", whole("--seed"), "S", "of the choice of images", 0)
    add_data_options(parser, workers=False)
    add(parser, "--device", None, "NAME", "cpu, cuda, cuda:0 ...; auto takes a GPU if there is one", "cpu")
    add_json(parser)


def run(options: Namespace) -> int:
    """Loads, checks, prints; 1 if a check fails."""
    require_backbone(options)
    check_outputs(options.json, inputs=[*options.files, options.backbone], pictures=[options.data])
    if options.data is not None:
        check_spec(options.data)
    from memtok.cli.sources import open_tasks, read_files
    from memtok.verification import verify

    backbone, tasks = open_tasks(options, read_files(options.files), [options.json])
    with progress("verify") as report:
        result = verify(
            backbone,
            tasks,
            options.data,
            images=options.images,
            seed=options.seed,
            data_dir=options.data_dir,
            on_bad_image=options.on_bad_image,
            progress=report,
        )
    write_result(options.json, result.to_json())
    show(result, options.data)
    return 0 if result.ok else 1


def show(result: VerifyReport, data: str | None) -> None:
    """Prints every check and the verdict."""

    def verdict(passed: bool) -> str:
        return "ok" if passed else "FAILED"

    rows = [["features of the backbone", "bitwise", verdict(result.features_bitwise)]]
    if result.base_bitwise is not None:
        rows.append(["base output", "bitwise", verdict(result.base_bitwise)])
    rows.append(["bytes of the weights", "unchanged", verdict(result.unchanged)])
    table(["what", "expected", "check"], rows)
    say(f"{result.images} {'random images' if data is None else f'images of {data}'}")
    if result.differences:
        say("difference from the dense reference in float64, over the task's largest logit:")
        columns = ["task", "composed", "alone", "reference", "allowed", "in float64", "allowed", "check"]
        rows = []
        for name, found in result.differences.items():
            float32 = (found.composed, found.alone, found.reference, found.tolerance)
            numbers = [f"{value:.2e}" for value in (*float32, found.double, found.tolerance_double)]
            rows.append([name, *numbers, verdict(found.ok)])
        table(columns, rows, right=columns[1:-1])
        say(f"largest difference of a composed task: {result.largest_difference:.2e}")
    for failure in result.failures:
        say(f"failed: {failure}")
    say("verified" if result.ok else "NOT verified")
