"""The confusion matrix of a score as a chart, CSV and JSON.

Row i, column j: images of class i that were predicted as class j; correct predictions are on the diagonal. Colour is
the share of the row. Letter for shapes: C classes.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memtok.display import percent
from memtok.files import csv_text, write_csv, write_json
from memtok.metrics import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

ENDINGS = (".png", ".csv", ".json")
COUNTED = 25  # most classes with a number in every cell
NAMED = 130  # most classes that are all named; beyond that every k-th is
LONGEST = 28  # letters of a name in the chart


def write_confusion(folder: Path, name: str, score: Score, title: str) -> list[Path]:
    """Writes NAME.png, NAME.csv and NAME.json into `folder`, which is created if needed; returns their paths."""
    picture, table, values = (folder / f"{name}{ending}" for ending in ENDINGS)
    draw_confusion(score, title, picture)
    write_csv(table, confusion_csv(score))
    write_json(values, confusion_json(score))
    return [picture, table, values]


def confusion_json(score: Score) -> dict[str, Any]:
    """As `Score.to_json`, with "classes" in order and "confusion" (C, C) for every C: rows true, columns predicted."""
    names = [row.name for row in score.per_class]
    return {**score.to_json(), "classes": names, "confusion": score.confusion().tolist()}


def confusion_csv(score: Score) -> str:
    """One line per class: its name, images, recall (empty without images), and the number predicted as each class."""
    rows: list[list[object]] = [["class", "images", "recall", *(row.name for row in score.per_class)]]
    for row, counts in zip(score.per_class, score.confusion().tolist(), strict=True):
        rows.append([row.name, row.images, "" if row.top1 is None else f"{row.top1:.6f}", *counts])
    return csv_text(rows)


def draw_confusion(score: Score, title: str, path: Path) -> None:
    """Writes the chart as PNG, atomically: the shares of each row as colour, and its recall at the right."""
    from memtok.plots import LINE, MUTED, new_figure, write_png

    counts = score.confusion()
    classes = len(counts)
    shares = counts / np.maximum([[row.images] for row in score.per_class], 1)
    side = min(max(0.62 * classes, 2.4), 7.5) if classes <= COUNTED else min(max(0.13 * classes, 7.5), 15)
    with new_figure(side + 3.2, side + 2.4) as figure:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        label_edges(axes, score, side)
        if classes <= COUNTED:
            write_counts(axes, counts.tolist(), shares.tolist(), size=min(9, 72 * side / classes / 3.6))
        axes.set(xlabel="answer", ylabel="class")
        lines = [*textwrap.wrap(plain(title, 200), int(13 * (side + 1.5))), figures(score)]
        axes.set_title("\n".join(lines), fontsize=9.5).set_parse_math(False)
        axes.spines[:].set_visible(True)
        bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=25, pad=0.02)
        bar.set_label("share of the class", color=MUTED)
        bar.outline.set_edgecolor(LINE)
        write_png(figure, path, dpi=140)


def figures(score: Score) -> str:
    """The line under the title."""
    return f"{score.images:,} images, top-1 {percent(score.top1, 1)}, balanced {percent(score.balanced, 1)}"


def label_edges(axes: Axes, score: Score, side: float) -> None:
    """Names the classes left and below, and gives the recall of each at the right; every k-th where they are many."""
    classes = len(score.per_class)
    step = 1 if classes <= NAMED else math.ceil(classes / 60)
    places = list(range(0, classes, step))
    size = min(9.0, 72 * side / len(places) * 0.75)  # points; a line takes about 1.2 of them
    names = [plain(score.per_class[place].name, LONGEST) for place in places]
    recalls = [score.per_class[place].top1 for place in places]
    right = axes.secondary_yaxis("right")
    right.set_yticks(places, ["" if recall is None else percent(recall, 0) for recall in recalls], fontsize=size)
    right.set_ylabel("recall")
    turned = classes > 12 or max(map(len, names)) * size * 0.6 > 72 * side / classes
    axes.set_xticks(places, names, fontsize=size, rotation=90 if turned else 0)
    axes.set_yticks(places, names, fontsize=size)
    texts: list[Text] = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    for text in texts:
        text.set_parse_math(False)  # a `$` in a name is no formula
    for one in (axes, right):
        one.tick_params(length=0)


def write_counts(axes: Axes, counts: list[list[int]], shares: list[list[float]], size: float) -> None:
    """A number in every cell that is not empty, readable on its colour."""
    for row, (numbers, portions) in enumerate(zip(counts, shares, strict=True)):
        for column, (number, portion) in enumerate(zip(numbers, portions, strict=True)):
            if number:
                colour = "white" if portion > 0.5 else "black"
                axes.text(column, row, f"{number:,}", ha="center", va="center", color=colour, fontsize=size)


def plain(text: str, longest: int) -> str:
    """`text` in the letters of the font, shortened to `longest`; other letters become an empty box."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    text = "".join(letter if ord(letter) in known else "\N{WHITE SQUARE}" for letter in text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
