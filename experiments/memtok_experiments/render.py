"""A table of `memtok_experiments.table` as JSON, as CSV and for the console."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from memtok import display
from memtok.files import csv_text
from memtok_experiments.orderings import Ordering, orderings
from memtok_experiments.published import BACKBONE, SOURCES
from memtok_experiments.table import Cell, Row, Table, column_label

FORMAT_VERSION = 1
NONE = "–"
Block = tuple[str, list[str], list[list[str]], list[str]]
"""Title, headings, lines, and the headings whose column is right-aligned."""


def to_json(table: Table) -> dict[str, Any]:
    """JSON-able; all accuracies, differences and errors are shares in [0, 1], published ones too."""
    statements = orderings(table)
    return {
        "format_version": FORMAT_VERSION,
        "close": share(table.close),
        "columns": list(table.columns),
        "rows": [
            {
                **{key: value for key, value in asdict(row).items() if key != "cells"},
                "image_size": list(row.image_size),
                "cells": {column: cell_json(cell) for column, cell in row.cells.items()},
                "orderings": [ordering_json(statement) for statement in statements if statement.row is row],
            }
            for row in table.rows
        ],
        "sources": {name: f"{SOURCES[name]}; {BACKBONE}" for name in ("paper", "reproduction")},
        "versions": dict(table.versions),
    }


def cell_json(cell: Cell) -> dict[str, Any]:
    """A cell as JSON has it."""
    values = {key: value for key, value in asdict(cell).items() if key != "column"}
    shares = {name: share(percent) for name, percent in cell.published.items()}
    derived = {"mean": cell.mean, "std": cell.std, "top5": cell.top5, "images": cell.images, "published": shares}
    return {"label": column_label(cell.column), **values, **derived}


def ordering_json(ordering: Ordering) -> dict[str, Any]:
    """A statement as JSON has it."""
    values = {key: value for key, value in vars(ordering).items() if key != "row"}
    points = {name: getattr(ordering, name) / 100 for name in ("difference", "error")}
    return {"statement": ordering.statement, **values, **points, "margin": share(ordering.margin)}


def to_csv(table: Table) -> str:
    """One line per cell under a heading; accuracies are shares in [0, 1], nothing where one is not known."""
    lines = [{**row_facts(row), **cell_facts(cell)} for row in table.rows for cell in row.cells.values()]
    return csv_text([list(lines[0]), *(list(line.values()) for line in lines)])


def row_facts(row: Row) -> dict[str, object]:
    """The columns of the CSV that all cells of a row share."""
    height, width = row.image_size
    return {
        "backbone": row.backbone,
        "fingerprint": row.fingerprint,
        "data": row.data,
        "height": height,
        "width": width,
        "split_digest": row.split_digest,
        "recipe": row.recipe,
        "steps": row.steps,
        "batch_size": row.batch_size,
    }


def cell_facts(cell: Cell) -> dict[str, object]:
    """The other columns of the CSV."""
    return {
        "column": cell.column,
        "regime": cell.regime,
        "memory": cell.memory,
        "validation_by_rate": ";".join(f"{rate.learning_rate:g}:{rate.validation:.6g}" for rate in cell.rates),
        "chosen_rates": ";".join(f"{rate:g}" for rate in cell.chosen_rates),
        "seeds": len(cell.tests),
        "test_by_seed": ";".join(f"{test.seed}:{test.top1:.6g}" for test in cell.tests),
        "top1": cell.mean,
        "top1_std": cell.std,
        "top5": cell.top5,
        "test_images": cell.images,
        "trained_parameters": cell.trained_parameters,
        "total_parameters": cell.total_parameters,
        "seconds": round(cell.seconds, 1),
        "paper": share(cell.published.get("paper")),
        "reproduction": share(cell.published.get("reproduction")),
    }


def to_console(table: Table) -> list[Block]:
    """A table per row, a line per regime, and one of the orderings, for `memtok.cli.output.table`. In percent."""
    blocks: list[Block] = []
    for row in table.rows:
        cells = row.cells.values()
        sources = [name for name in ("paper", "reproduction") if any(name in cell.published for cell in cells)]
        heads = ["regime", "rate", "validation %", "test %", "+-", "seeds", *(f"{name} %" for name in sources)]
        lines = [
            [
                column_label(cell.column),
                ", ".join(f"{rate:g}" for rate in cell.chosen_rates) or NONE,
                percent(cell.validation),
                percent(cell.mean),
                percent(cell.std),
                str(len(cell.tests)),
                *(percent(share(cell.published.get(name))) for name in sources),
            ]
            for cell in cells
        ]
        images = ", ".join(f"{count:,} test images" for count in sorted({cell.images for cell in cells if cell.images}))
        title = ", ".join(part for part in (f"{row.data} with {row.backbone}: {row.setting}", images) if part)
        blocks.append((title, heads, lines, heads[1:]))
    statements = orderings(table)
    if statements:
        heads = ["data", "statement", "difference", "+-", "verdict", "in the paper"]
        several = len({statement.row.backbone for statement in statements}) > 1
        lines = [
            [
                f"{statement.row.data}, {statement.row.backbone}" if several else statement.row.data,
                statement.statement,
                f"{statement.difference:+.1f}",
                f"{statement.error:.1f}",
                statement.verdict,
                said(statement.paper),
            ]
            for statement in statements
        ]
        blocks.append(("Orderings (points; +- one standard error)", heads, lines, ["difference", "+-"]))
    return blocks


def share(percent: float | None) -> float | None:
    """76.9 as 0.769."""
    return None if percent is None else round(percent / 100, 6)


def percent(value: float | None) -> str:
    """0.7694 as 76.9; a dash for None."""
    return NONE if value is None else display.percent(value, 1, unit="")


def said(value: bool | None) -> str:
    """True as yes; a dash for None."""
    return NONE if value is None else "yes" if value else "no"
