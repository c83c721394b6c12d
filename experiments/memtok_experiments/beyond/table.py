"""The table of `memtok reproduce beyond`: for each row and column the chosen trials of all seeds, compared in pairs.

Intervals are of a paired bootstrap over the test images (Efron and Tibshirani 1993): the score of an image is the share
of seeds that answer it right, images are drawn with replacement DRAWS times, and the interval holds the middle 95 % of
the differences. It says what other test images would give, not what other seeds would; the spread over seeds stands
beside it. Accuracies are shares in [0, 1]; what is printed is in percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtok.display import markdown_table, shown_bytes
from memtok.files import csv_text, write_csv, write_json, write_text
from memtok.intervals import Difference, Right
from memtok_experiments.beyond.columns import COLUMNS, REFERENCES
from memtok_experiments.beyond.records import Found, best_of

DRAWS = 2000
CHUNK = 100  # draws at a time
NONE = "–"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A column on a row.

    timed: in the time of another column, in place of as many steps. rate, varied, steps, strength, forms: what was
    chosen, forms with each seed anew.
    mean, std: top-1 of the test images over `seeds`; std None for one seed. balanced: mean recall. compared: with the
    columns `REFERENCES`, this minus that, where both were tested. seconds: of training from images to the result,
    mean over the seeds; tried: of choices.
    """

    row: str
    column: str
    timed: bool
    seeds: tuple[int, ...]
    test_images: int
    mean: float
    std: float | None
    balanced: float
    validation: float
    compared: dict[str, Difference]
    rate: float | None
    strength: float | None
    forms: tuple[str, ...]
    varied: bool
    steps: int
    tried: int
    parameters: int
    bytes: int
    seconds: float
    cost: float


def make_cells(found: Iterable[Found], first_seed: int) -> list[Cell]:
    """All cells that have a test, in the order of rows and columns."""
    by_cell: dict[tuple[str, str, bool], list[Found]] = {}
    for one in found:
        if one.record.column in COLUMNS:
            by_cell.setdefault((one.record.row, one.record.column, one.record.timed), []).append(one)
    for row, column, timed in list(by_cell):
        if timed:  # those of a choice that further rates have replaced do not count
            by_cell[row, column, True] = of_choice(by_cell[row, column, True], by_cell[row, column, False], first_seed)
    chosen = {key: tested for key, some in by_cell.items() if (tested := tested_choice(some, first_seed))}
    order = {name: place for place, name in enumerate(COLUMNS)}
    rows = list(dict.fromkeys(row for row, _, _ in chosen))
    keys = sorted(chosen, key=lambda key: (rows.index(key[0]), key[2], order[key[1]]))
    return [make_cell(key, chosen, len(by_cell[key])) for key in keys]


def tested_choice(found: Sequence[Found], first_seed: int) -> list[Found]:
    """The tested trials of the choice that was made with the first seed, by seed."""
    candidates = [one.record for one in found if one.record.seed == first_seed]
    if not candidates:
        return []
    best = best_of(candidates)
    same = [one for one in found if one.test is not None and choice(one) == (best.rate, best.varied, best.steps)]
    return sorted(same, key=lambda one: one.record.seed)


def of_choice(timed: Sequence[Found], untimed: Sequence[Found], first_seed: int) -> list[Found]:
    """The timed trials at the rate and augmentation that were chosen at equal steps."""
    best = best_of(one.record for one in untimed if one.record.seed == first_seed)
    return [one for one in timed if choice(one)[:2] == (best.rate, best.varied)]


def choice(found: Found) -> tuple[float | None, bool, int]:
    """What was chosen among."""
    return found.record.rate, found.record.varied, found.record.steps


def make_cell(key: tuple[str, str, bool], chosen: Mapping[tuple[str, str, bool], Sequence[Found]], tried: int) -> Cell:
    """One cell; `chosen` has all."""
    row, column, timed = key
    own = chosen[key]
    first, tops = own[0].record, [one.test.top1 for one in own if one.test]
    references = {
        name: chosen[row, name, False]
        for name in REFERENCES
        if (name != column or timed) and (row, name, False) in chosen
    }
    return Cell(
        row=row,
        column=column,
        timed=timed,
        seeds=tuple(one.record.seed for one in own),
        test_images=own[0].test.images if own[0].test else 0,
        mean=fmean(tops),
        std=stdev(tops) if len(tops) > 1 else None,
        balanced=fmean(one.test.balanced for one in own if one.test),
        validation=fmean(one.record.validation for one in own),
        compared={name: compare(own, others) for name, others in references.items()},
        rate=first.rate,
        strength=first.strength,
        forms=tuple(one.record.form for one in own if one.record.form is not None),
        varied=first.varied,
        steps=first.steps,
        tried=tried,
        parameters=first.parameters,
        bytes=first.bytes,
        seconds=fmean(one.record.total_seconds for one in own),
        cost=first.cost,
    )


def compare(ones: Sequence[Found], others: Sequence[Found]) -> Difference:
    """The first minus the second, over the seeds that both have (over all of each, if none)."""
    seeds = {one.record.seed for one in ones} & {one.record.seed for one in others}
    rows = [[one.test.bits for one in some if one.test and one.record.seed in seeds] for some in (ones, others)]
    if not seeds:
        rows = [[one.test.bits for one in some if one.test] for some in (ones, others)]
    return bootstrap(*rows)


def bootstrap(ones: Sequence[Right], others: Sequence[Right], *, draws: int = DRAWS, seed: int = 0) -> Difference:
    """The accuracy of one method minus that of another on the same images, (images,) bool for each seed of each.

    With the interval of a paired bootstrap over the images.
    """
    one, other = (np.stack(list(rows)).astype(np.float64) for rows in (ones, others))  # (seeds, images)
    difference: NDArray[np.float64] = np.asarray(one.mean(axis=0) - other.mean(axis=0))  # (images,) in [-1, 1]
    images, generator = len(difference), np.random.default_rng(seed)
    drawn = [
        difference[generator.integers(0, images, (min(CHUNK, draws - start), images))].mean(axis=1)
        for start in range(0, draws, CHUNK)
    ]
    low, high = np.quantile(np.concatenate(drawn), (0.025, 0.975))
    return Difference(float(difference.mean()), float(low), float(high))


# What is written

HEADS = (
    *("row", "column", "budget", "seeds", "test_images", "top1", "std", "balanced", "validation"),
    *(f"minus_{name}{end}" for name in REFERENCES for end in ("", "_low", "_high")),
    *(
        "rate",
        "strength",
        "forms",
        "augmented",
        "steps",
        "tried",
        "parameters",
        "bytes",
        "seconds",
        "cost_class_tokens",
    ),
)


def to_csv(cells: Sequence[Cell]) -> str:
    """A line per cell; accuracies and differences in [-1, 1], what is not known is empty."""
    return csv_text([HEADS, *(csv_line(cell) for cell in cells)])


def csv_line(cell: Cell) -> list[object]:
    """One line under HEADS."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    compared: list[object] = []
    for name in REFERENCES:
        found = cell.compared.get(name)
        compared += ["", "", ""] if found is None else [share(found.value), share(found.low), share(found.high)]
    return [
        *(cell.row, cell.column, "time" if cell.timed else "steps", " ".join(map(str, cell.seeds)), cell.test_images),
        *(share(cell.mean), share(cell.std), share(cell.balanced), share(cell.validation)),
        *compared,
        "" if cell.rate is None else f"{cell.rate:g}",
        "" if cell.strength is None else f"{cell.strength:g}",
        " ".join(cell.forms),
        *(int(cell.varied), cell.steps, cell.tried, cell.parameters, cell.bytes),
        *(f"{cell.seconds:.2f}", f"{cell.cost:.4f}"),
    ]


def trials_csv(found: Sequence[Found]) -> str:
    """A line per trial: its record but for digests and versions, and the accuracy on the test images if tested."""
    left_out = {"fingerprint", "split", "content", "versions"}
    lines: list[list[object]] = []
    for one in found:
        record = {name: value for name, value in asdict(one.record).items() if name not in left_out}
        record["backbone"] = Path(one.record.backbone).name  # a path is of this machine
        record["test"] = "" if one.test is None else f"{one.test.top1:.4f}"
        lines.append(["" if value is None else value for value in record.values()])
        heads = list(record)
    return csv_text([heads, *lines]) if lines else ""


def to_markdown(cells: Sequence[Cell]) -> str:
    """Top-1 of every row and column, once for equal steps and once for equal time; then what each column costs."""
    lines: list[str] = []
    for timed, title in ((False, "Equal steps"), (True, "Equal training time")):
        own = [cell for cell in cells if cell.timed == timed]
        if own:
            lines += [f"### {title}: top-1 of the test images, %", "", *accuracies(own), ""]
    lines += ["### Against full fine-tuning and a head, in points", "", *differences(cells), ""]
    lines += ["### Cost", "", *costs(cells), ""]
    return "\n".join(lines)


def accuracies(cells: Sequence[Cell]) -> Iterable[str]:
    """A line per column, as there are more of them than rows."""
    rows = list(dict.fromkeys(cell.row for cell in cells))
    by_place = {(cell.column, cell.row): cell for cell in cells}
    columns = dict.fromkeys(sorted((cell.column for cell in cells), key=list(COLUMNS).index))
    lines = [[COLUMNS[column].title, *(shown(by_place.get((column, row))) for row in rows)] for column in columns]
    return markdown_table(["", *rows], lines, rows)


def shown(cell: Cell | None) -> str:
    """81.4 ± 0.3 (3)."""
    if cell is None:
        return NONE
    spread = "" if cell.std is None else f" ± {100 * cell.std:.1f}"
    return f"{100 * cell.mean:.1f}{spread} ({len(cell.seeds)})"


def differences(cells: Sequence[Cell]) -> Iterable[str]:
    """A line per cell with its intervals."""
    heads = ["row", "column", *(f"minus {COLUMNS[name].title}" for name in REFERENCES)]
    lines = []
    for cell in cells:
        if cell.compared:
            title = COLUMNS[cell.column].title + (", equal time" if cell.timed else "")
            found = [cell.compared.get(name) for name in REFERENCES]
            lines.append([cell.row, title, *(NONE if one is None else interval(one) for one in found)])
    return markdown_table(heads, lines, heads[2:])


def interval(found: Difference) -> str:
    """+1.2 (+0.3 to +2.1)."""
    value, low, high = (f"{100 * part:+.1f}" for part in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"


def costs(cells: Sequence[Cell]) -> Iterable[str]:
    """A line per cell at equal steps."""
    heads = ["row", "column", "chosen", "parameters", "file", "seconds", "class tokens"]
    lines = [
        [
            cell.row,
            COLUMNS[cell.column].title,
            chosen_words(cell),
            f"{cell.parameters:,}",
            shown_bytes(cell.bytes),
            f"{cell.seconds:,.1f}",
            f"{cell.cost:.3f}",
        ]
        for cell in cells
        if not cell.timed
    ]
    return markdown_table(heads, lines, heads[3:])


def chosen_words(cell: Cell) -> str:
    """rate 0.01, augmented, 500 steps."""
    if cell.forms:
        return ", ".join(dict.fromkeys(cell.forms))
    if cell.rate is None:
        return f"strength {cell.strength:g}"
    return f"rate {cell.rate:g}, {'augmented' if cell.varied else 'plain'}, {cell.steps:,} steps"


def to_json(cells: Sequence[Cell]) -> dict[str, Any]:
    """JSON-able."""
    return {
        "cells": [
            asdict(cell) | {"compared": {name: one.to_json() for name, one in cell.compared.items()}} for cell in cells
        ]
    }


def save(found: Sequence[Found], first_seed: int, folder: Path) -> tuple[list[Cell], list[Path]]:
    """Writes beyond.json, .csv and .md, and trials.csv, into `folder`; returns the cells and the paths."""
    cells = make_cells(found, first_seed)
    paths = [folder / name for name in ("beyond.json", "beyond.csv", "beyond.md", "trials.csv")]
    write_json(paths[0], to_json(cells))
    write_csv(paths[1], to_csv(cells))
    write_text(paths[2], to_markdown(cells))
    write_csv(paths[3], trials_csv(found))
    return cells, paths
