"""`memtok quickstart`: the whole job on what is installed, without a network."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from memtok.cli.options import Parser, add, add_json, whole
from memtok.cli.output import check_outputs, write_result

USAGE = ""
EXAMPLES = """
  memtok quickstart
  memtok quickstart --out first-steps --seed 1
"""


def configure(parser: Parser) -> None:
    """Adds the options."""
    add(parser, "--out", None, "DIR", "where task files and the report go", "quickstart")
    add(parser, "--seed", whole("--seed"), "S", "of all random numbers", 0)
    add_json(parser)


def run(options: Namespace) -> int:
    """Runs the quickstart, which prints its results; 1 if its verification fails."""
    check_outputs(options.json)
    from memtok.quickstart import run as run_quickstart

    result = run_quickstart(Path(options.out), seed=options.seed, progress=True)
    write_result(options.json, result.to_json())
    return 0 if result.ok else 1
