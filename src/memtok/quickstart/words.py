"""The results of the quickstart in words: sentences and a table for the page and the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from memtok.display import percent, shown_bytes
from memtok.intervals import Difference, paired, unpaired
from memtok.quickstart.result import QuickstartResult, TrainedRun

EXAMPLE_BACKBONE = "facebook/dinov2-small"
ColumnsRowsRight = tuple[Sequence[str], Sequence[Sequence[str]], Sequence[str]]
"""A table: headings, rows, and the headings of the columns that hold numbers."""


def minus(one: TrainedRun, other: TrainedRun) -> Difference:
    """The test accuracy of one run minus that of another, image by image if both kept their predictions."""
    if one.right is None or other.right is None:
        return unpaired([one.test_top1], [other.test_top1], one.test_images)
    return paired(*([np.array(list(run.right or "")) == "1"] for run in (one, other)))


def comparison_words(runs: Sequence[TrainedRun]) -> str:
    """The best run and which differ from it significantly: one statement for all regimes, from paired differences."""
    best = max(runs, key=lambda run: run.test_top1)
    said = [f"Highest here: {best.label} with {percent(best.test_top1, 1)} of {best.test_images} test images."]
    behind = [run for run in runs if run is not best and not minus(best, run).tied]
    alike = [run for run in runs if run is not best and run not in behind]
    if alike:
        said.append(f"No significant difference from {listed(alike)}.")
    if behind:
        said.append(f"Significantly lower: {listed(behind)}.")
    said += memory_words(runs)
    said.append("One run each: another seed may order them differently.")
    return " ".join(said)


def memory_words(runs: Sequence[TrainedRun]) -> list[str]:
    """The gain by memory: the best task with cells against a linear head, and more cells against fewer."""
    heads, cells = [run for run in runs if run.regime == "head"], [run for run in runs if run.cells]
    if not cells:
        return []
    said, best = [], max(cells, key=lambda run: run.test_top1)
    if heads:
        gain = minus(best, heads[0])
        worth = "which is not significant" if gain.tied else "which is significant"
        said.append(f"“{best.label}” minus “{heads[0].label}”: {gain}, {worth}.")
    ordered = sorted(cells, key=lambda run: run.cells)
    differing = [
        f"{more.cells} cells minus {fewer.cells} cell{'s' if fewer.cells > 1 else ''}: {minus(more, fewer)}"
        for fewer, more in combinations(ordered, 2)
        if not minus(more, fewer).tied
    ]
    if differing:
        said.append(f"Significant differences between numbers of cells: {'; '.join(differing)}.")
    elif len(ordered) > 1:
        counts = " and ".join([", ".join(str(run.cells) for run in ordered[:-1]), str(ordered[-1].cells)])
        said.append(f"No significant difference between {counts} cells.")
    return said


def attention_words(name: str, parts: Mapping[str, Sequence[float]]) -> str:
    """The share of the attention weights of a task's class token that its memory gets."""
    memory = parts["own memory"]
    most = max(range(len(memory)), key=memory.__getitem__)
    mean = sum(memory) / len(memory)
    return (
        f"The class token of “{name}” gives {percent(mean, 1)} of its attention to its memory on average over the "
        f"layers, and most in layer {most + 1} ({percent(memory[most], 1)})."
    )


def comparison_table(result: QuickstartResult) -> ColumnsRowsRight:
    """The regimes on the same digits."""
    columns = ["regime", "test top-1", "trained", "file", "base answer"]
    rows = [
        [
            run.label,
            percent(run.test_top1, 1),
            f"{run.trainable_parameters:,}",
            shown_bytes(run.bytes),
            base_words(run),
        ]
        for run in result.comparison
    ]
    return columns, rows, columns[1:4]


def listed(runs: Sequence[TrainedRun]) -> str:
    """Labels with their accuracies, separated by semicolons: the labels contain commas."""
    return "; ".join(f"{run.label} ({percent(run.test_top1, 1)})" for run in runs)


def verification_words(proof: Mapping[str, Any]) -> str:
    """The result of the verification, in a line. proof: `VerifyReport.to_json`."""
    if not proof["ok"]:
        return f"NOT verified: {'; '.join(proof['failures'])}"
    return (
        f"verified on {proof['images']} images: the backbone answers bit for bit as without tasks, each task as alone "
        f"(largest difference {proof['largest_difference']:.1e}, limit {proof['tolerance']:.0e})"
    )


def base_words(run: TrainedRun) -> str:
    """Whether the backbone's own output is available unchanged."""
    if run.base_bitwise is None:
        return "needs a pass of its own"
    return "bitwise the same" if run.base_bitwise else "FAILED: changed"


def next_commands(out: Path) -> list[tuple[str, list[str]]]:
    """Commands for the next steps: on the files of the quickstart, and on your own folder."""
    both, images = shlex.quote(str(out / "both.safetensors")), shlex.quote(str(out / "images"))
    backbone = f"--backbone {EXAMPLE_BACKBONE}"
    return [
        (
            "The same files by hand:",
            [
                f"memtok inspect {both}",
                f"memtok verify {both} --backbone small --data digits",
                f"memtok predict {both} --backbone small --images {images}",
            ],
        ),
        (
            "Your own pictures, one folder per class (photos/cat, photos/dog), 20 % of them held out as a test set; "
            "the backbone is downloaded once:",
            [
                f"memtok train {backbone} --data folder:photos --split 80-20 --out photos.safetensors",
                f"memtok evaluate photos.safetensors {backbone} --data folder:photos",
                f"memtok predict photos.safetensors {backbone} --images photos",
            ],
        ),
        (
            "And a second task on the same backbone:",
            [
                f"memtok train {backbone} --data folder:more --split 80-20 --out more.safetensors",
                "memtok concat photos.safetensors more.safetensors --out all.safetensors",
                f"memtok verify all.safetensors {backbone} --data folder:photos",
            ],
        ),
    ]
