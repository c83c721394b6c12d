"""`memtok reproduce beyond`: its options, what it prints while it works, and its table."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from memtok.cli.errors import UsageError, arguments
from memtok.cli.options import Parser, add, add_list, text, whole
from memtok.cli.output import check_apart, check_outputs, say, table, write_result

if TYPE_CHECKING:
    from memtok_experiments.beyond.table import Cell

OWN = ("rows", "sets", "rates", "more_rates", "lengths", "equal_time")  # options that no other experiment has
NOT_TAKEN = ("preset", "data", "memory", "learning_rates", "full_learning_rates", "validation_images")
RESULTS = ("beyond.json", "beyond.csv", "beyond.md", "trials.csv", "beyond.png")


def configure(parser: Parser) -> None:
    """Adds the options that no other experiment has."""
    rows = "for beyond: DATA, DATA@COUNT or DATA@N-per-class; `full-size` (default), `few` and `all` stand for several"
    add_list(parser, "--rows", "ROW", rows)
    add(parser, "--sets", text("--sets"), "DIR", "for beyond: the folders of python -m memtok_experiments.beyond.sets")
    add(parser, "--rates", whole("--rates", 1), "N", "for beyond: learning rates per column, of three (default: 3)")
    more = "for beyond: further rates, as long as the best is the outermost of those that were tried (default: 2)"
    add(parser, "--more-rates", whole("--more-rates"), "N", more)
    lengths = "for beyond: lengths of full fine-tuning to choose among, as multiples of the steps (default: 1 2)"
    add_list(parser, "--lengths", "N", lengths, whole("--lengths", 1))
    timed = "for beyond: a second table, in which every column has the training time of this one"
    add(parser, "--equal-time", text("--equal-time"), "COLUMN", timed)


def check_options(options: Namespace) -> None:
    """UsageError for options that mean nothing for the experiment."""
    beyond = options.experiment == "beyond"
    for name in NOT_TAKEN if beyond else OWN:
        if options[name] is not None:
            flag = f"--{name.replace('_', '-')}"
            advice = "see its options in docs/reproduce.md" if beyond else "leave it out, or use `reproduce beyond`"
            raise UsageError(f"expected no {flag} for {options.experiment}, found one; {advice}")


def run(options: Namespace) -> int:
    """Checks, runs what is missing, prints and writes the table."""
    from memtok_experiments.beyond.picture import draw
    from memtok_experiments.beyond.rows import find_rows
    from memtok_experiments.beyond.settings import BeyondSettings
    from memtok_experiments.beyond.table import save, to_json
    from memtok_experiments.beyond.work import Work
    from memtok_experiments.progress import BeyondDisplay

    out = Path(options.out)
    check_outputs(options.json, *(str(out / name) for name in RESULTS))
    backbones = options.backbone or ["small"]
    if len(backbones) > 1:
        raise UsageError(f"expected one --backbone for beyond, found {len(backbones)}; give each an --out of its own")
    names = {field.name for field in fields(BeyondSettings)} - {"backbone", "out", "sets", "trace_dir"}
    given: dict[str, Any] = {name: options[name] for name in names if options.get(name) is not None}
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    given |= {name: Path(options[name]) for name in ("sets", "trace_dir") if options[name] is not None}
    with arguments():
        settings = BeyondSettings(backbone=backbones[0], out=out, **given)
    check_apart([row.data for row in find_rows(settings.rows)], out=options.out, trace_dir=options.trace_dir)
    display = BeyondDisplay()
    work = Work(settings, listener=display)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "commands.txt", "a", encoding="utf-8") as file:
        print(shlex.join(["memtok", *sys.argv[1:]]), file=file)
    with closing(display):
        found = work.run()
    cells, paths = save(found, settings.seeds[0], out)
    show(cells)
    if any(not cell.timed for cell in cells):
        draw(cells, out / "beyond.png")
        paths.append(out / "beyond.png")
    for path in paths:
        say(f"wrote {path}")
    write_result(options.json, to_json(cells))
    return 0


def show(cells: Sequence[Cell]) -> None:
    """Prints a table per row."""
    from memtok_experiments.beyond.columns import COLUMNS, REFERENCES
    from memtok_experiments.beyond.table import NONE, interval, shown

    heads = ["column", "top-1, %", *(f"minus {name}, points" for name in REFERENCES), "seconds", "class tokens"]
    for row in dict.fromkeys(cell.row for cell in cells):
        say(f"{row}: {next(cell.test_images for cell in cells if cell.row == row):,} test images")
        lines = []
        for cell in cells:
            if cell.row == row:
                title = COLUMNS[cell.column].title + (", equal time" if cell.timed else "")
                found = [cell.compared.get(name) for name in REFERENCES]
                differences = [NONE if one is None else interval(one) for one in found]
                lines.append([title, shown(cell), *differences, f"{cell.seconds:,.1f}", f"{cell.cost:.3f}"])
        table(heads, lines, heads[1:])
        say()
