"""`python -m memtok_benchmarks.load`: the load test of `memtok serve`."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memtok.cli.options import kind_of, one_of, positive, whole
from memtok.cli.output import check_outputs, note
from memtok.errors import MemtokError
from memtok.values import Number
from memtok_benchmarks.load.settings import PARTS, QUESTIONS, SERVERS, Settings

EXAMPLES = """
  python -m memtok_benchmarks.load --backbone small --tasks 2 --seconds 2 --parts rates
  python -m memtok_benchmarks.load --backbone facebook/dinov2-small --out benchmarks/results/load
  python -m memtok_benchmarks.load --backbone facebook/dinov2-small --parts soak --soak-seconds 600
"""


def parser() -> argparse.ArgumentParser:
    """The options: every setting of `Settings`."""
    made = argparse.ArgumentParser(
        prog="python -m memtok_benchmarks.load",
        description="Measure a server of many tasks under load, over loopback: open loop, Poisson arrivals.",
        epilog=f"examples:{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    usual = Settings(backbone="")

    def add(flag: str, kind: object, help: str, *, many: bool = False) -> None:
        default = getattr(usual, flag.removeprefix("--").replace("-", "_"))
        shown = " ".join(map(str, default)) if many else default
        nargs = "+" if many else None
        made.add_argument(flag, type=kind, nargs=nargs, default=default, help=f"{help} (default: {shown})")  # type: ignore[arg-type]

    made.add_argument("--backbone", required=True, metavar="SRC", help="a source of pre-trained models, or `small`")
    made.add_argument("--image-size", type=whole("--image-size", 1), help="pixels (default: the model's own)")
    add("--tasks", whole("--tasks", 1), "numbers of tasks, a server each", many=True)
    add("--classes", whole("--classes", 2), "of each task")
    add("--cells", whole("--cells"), "memory cells of each task")
    add("--questions", one_of("--questions", QUESTIONS), "ask all tasks of an image, or one", many=True)
    add("--servers", one_of("--servers", SERVERS), "what is loaded", many=True)
    add("--max-batch", whole("--max-batch", 1), "images in one pass")
    add("--rates", positive("--rates"), "loads, as shares of the model's own batched pass", many=True)
    add("--seconds", positive("--seconds"), "of each load")
    add("--parts", one_of("--parts", PARTS), "what is measured", many=True)
    add("--steady-tasks", whole("--steady-tasks", 1), "tasks in the parts changes and soak")
    add("--changes-seconds", positive("--changes-seconds"), "of the part changes")
    add("--changes-share", positive("--changes-share"), "its load, as --rates")
    add("--pause", kind_of("--pause", Number()), "seconds between two changes of a task")
    add("--soak-seconds", positive("--soak-seconds"), "of the part soak")
    add("--soak-share", positive("--soak-share"), "its load, as --rates")
    add("--images", whole("--images", 1), "different JPEG files")
    add("--side", whole("--side", 8), "their shorter side in pixels")
    add("--passes", whole("--passes", 1), "timed passes of the model before and after each server's loads")
    add("--seed", whole("--seed"), "of tasks, images and arrivals")
    made.add_argument(
        "--out", metavar="DIR", help="write load.json, load.csv, load.md and load.png, after every server"
    )
    return made


def main(arguments: Sequence[str]) -> int:
    """Measures, and prints what it finds; the exit code."""
    words = list(arguments)
    given = vars(parser().parse_args(words))
    out = given.pop("out")
    try:
        files = [] if out is None else [str(Path(out) / f"load.{ending}") for ending in ("json", "csv", "md", "png")]
        check_outputs(None, *files)
        chosen: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
        }
        run(Settings(**chosen), out, command(words))
    except MemtokError as error:
        print(f"python -m memtok_benchmarks.load: error: {error}", file=sys.stderr)
        return 1
    return 0


def run(settings: Settings, out: str | None, command: str) -> None:
    """Measures part after part; the files are written after each server."""
    import torch

    from memtok_benchmarks import machine
    from memtok_benchmarks.load import material, rates, steady
    from memtok_benchmarks.load.report import Report
    from memtok_benchmarks.sizes import Sizes

    with tempfile.TemporaryDirectory() as folder:
        note("making tasks and images")
        made = material.make(settings, Path(folder))
        described = machine.describe(Sizes(threads=torch.get_num_threads()))
        report = Report(settings, described, command, material.mean_bytes(made.images))

        def save() -> None:
            if out is not None:
                report.save(out)

        if "rates" in settings.parts:
            for found in rates.measure(made, note):
                report.runs.append(found)
                save()
        for part in settings.parts:
            if part != "rates":
                report.steady.append(steady.measure(made, part, note))
                save()
    print(report.to_markdown(), end="")


def command(words: Sequence[str]) -> str:
    """The command line without folders."""
    kept, skip = [], False
    for word in words:
        if not skip and word.split("=")[0] != "--out":
            kept.append(Path(word).name if "/" in word and Path(word).exists() else word)
        skip = word == "--out"
    return shlex.join(["python", "-m", "memtok_benchmarks.load", *kept])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
