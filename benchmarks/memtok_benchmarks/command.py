"""`memtok bench`: memtok and other packages, timed on this machine and compared to the floor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from memtok.cli.errors import UsageError, arguments
from memtok.cli.options import Parser, add, add_json, add_list, add_switch, one_of, whole
from memtok.cli.output import check_outputs, note, say, table, write_result
from memtok_benchmarks.sizes import POINTS, ROWS, Sizes, quick_sizes
from memtok_benchmarks.timing import LEAST_ROUNDS

FILES = ("results.json", "results.md", "growth.png")
USAGE = ""
EXAMPLES = """
  memtok bench --quick
  memtok bench --out benchmarks/results
  memtok bench --rows training inference --batch-size 16
  memtok bench --profile training
"""


def configure(parser: Parser) -> None:
    """Adds the options."""
    add_list(parser, "--rows", "ROW", f"what to measure, of {', '.join(ROWS)} (default: all)", one_of("--rows", ROWS))
    add_switch(parser, "--quick", "a tiny model and small numbers: shows that everything runs, its times say nothing")
    add(parser, "--model", None, "NAME", "a timm Vision Transformer, with random weights (default: that of ViT-B/32)")
    add(parser, "--image-size", whole("--image-size", 1), "PX", "height and width (default: the model's own)")
    add(parser, "--batch-size", whole("--batch-size", 1), "N", "images per pass (default: 32)")
    add(parser, "--threads", whole("--threads", 1), "N", "of torch (default: one per core)")
    add(parser, "--rounds", whole("--rounds", LEAST_ROUNDS), "N", "timed runs of each contender", LEAST_ROUNDS)
    models = "how many adapters or separate models are measured where a peer needs one per task (default: 10)"
    add(parser, "--models", whole("--models", 1), "N", models)
    add(parser, "--points", one_of("--points", POINTS), "P", "of the row growth: few or many", "few")
    devices = one_of("--device", ("auto", "cpu", "cuda"))
    add(parser, "--device", devices, "NAME", "cpu or cuda; auto takes a GPU if there is one", "auto")
    add(parser, "--precision", one_of("--precision", ("float32", "bf16")), "P", "float32 or bf16", "float32")
    add(parser, "--profile", one_of("--profile", ROWS), "ROW", "instead, show where memtok's step of a row spends time")
    add(parser, "--out", None, "DIR", "write results.json, results.md and growth.png into a folder, after every row")
    add_json(parser)


def run(options: Namespace) -> int:
    """Measures row by row and prints each as it is done."""
    if options.profile and (options.rows or options.out or options.json):
        raise UsageError("expected --profile alone, found --rows, --out or --json beside it; leave one of them out")
    names = list(options.rows or ROWS)
    outputs = [] if options.out is None else [str(Path(options.out) / file) for file in FILES]
    check_outputs(options.json, *outputs)
    with arguments():
        sizes = sizes_of(options)
    from memtok_benchmarks import runner
    from memtok_benchmarks.report import Report, console_tables

    with arguments():
        runner.check_rows(names)
    if options.profile:
        print(runner.profile(options.profile, sizes).rstrip())
        return 0

    def finished(report: Report, name: str) -> None:
        for title, columns, rows, right in console_tables(report.rows[name]):
            if title:
                say(title)
            table(columns, rows, right)
            say()
        for line in report.rows[name].notes:
            say(line)
        say()
        if options.out is not None:
            report.save(options.out)

    report = runner.run(
        names, sizes, command=command(), started=lambda name: note(f"measuring the row {name}"), finished=finished
    )
    write_result(options.json, report.to_json())
    return 0


def sizes_of(options: Namespace) -> Sizes:
    """The sizes of the run; the defaults are those of `--quick` or of an ordinary run."""
    device = options.device
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    given: dict[str, Any] = {
        "model": options.model,
        "image_size": options.image_size,
        "batch": options.batch_size,
        "threads": options.threads,
        "rounds": options.rounds,
        "models": options.models,
        "points": options.points,
        "device": device,
        "precision": options.precision,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return quick_sizes(**given) if options.quick else Sizes(**given)


def command() -> str:
    """The command line without names of folders."""
    words = sys.argv[1:] if Path(sys.argv[0]).name in ("memtok", "__main__.py") else ["bench"]
    kept, skip = [], False
    for word in words:
        if skip or word.split("=")[0] in ("--out", "--json", "--config"):
            skip = not skip and "=" not in word
            continue
        kept.append(word)
    return " ".join(["memtok", *kept])
