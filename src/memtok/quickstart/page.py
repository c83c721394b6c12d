"""The report of the quickstart, from the template `memtok/templates/quickstart.html`."""

from __future__ import annotations

from pathlib import Path

from memtok.display import percent, shown_bytes
from memtok.pages import chart, write_page
from memtok.quickstart.charts import WIDTH, bars, curves, heat_map, layer_shares, mask
from memtok.quickstart.result import QuickstartResult
from memtok.quickstart.views import View
from memtok.quickstart.words import (
    ColumnsRowsRight,
    attention_words,
    comparison_table,
    comparison_words,
    next_commands,
    verification_words,
)

MAPS = 6  # digits whose attention maps are shown


def write_report(path: Path, result: QuickstartResult, view: View) -> None:
    """Writes the report to `path`, atomically."""
    digits = list(view.maps)
    write_page(
        path,
        "quickstart.html",
        result=result,
        view=view,
        verified=verification_words(result.verification),
        compared=comparison_words(result.comparison),
        attention=" ".join(attention_words(name, parts) for name, parts in result.attention.items()),
        next_commands=next_commands(result.out),
        tasks=tasks_table(result),
        checks=checks_table(result),
        comparison=comparison_table(result),
        files=files_table(result),
        charts={
            "tasks": chart(WIDTH, 2.9, curves, result.tasks),
            "comparison": chart(WIDTH, 2.9, curves, result.comparison),
            "mask": chart(WIDTH, 4.4, mask, view.mask, view.rows, view.columns),
            "accuracies": chart(WIDTH, 0.7 + 0.36 * len(result.comparison), bars, result.comparison),
            "attention": chart(WIDTH, 2.9, layer_shares, result.attention),
        },
        digits=[digits[round(each * (len(digits) - 1) / (MAPS - 1))] for each in range(MAPS)],
        heat_map=heat_map,
    )


def tasks_table(result: QuickstartResult) -> ColumnsRowsRight:
    """The two tasks that were trained separately."""
    columns = ["task", "digits", "training images", "test images", "alone", "composed", "trained parameters", "file"]
    rows = [
        [
            run.name,
            f"{run.classes[0]} to {run.classes[-1]}",
            f"{run.train_images:,}",
            f"{run.test_images:,}",
            percent(run.test_top1, 1),
            percent(run.test_top1 if run.composed_top1 is None else run.composed_top1, 1),
            f"{run.trainable_parameters:,}",
            shown_bytes(run.bytes),
        ]
        for run in result.tasks
    ]
    return columns, rows, columns[2:]


def checks_table(result: QuickstartResult) -> ColumnsRowsRight:
    """The checks of the verification."""
    proof = result.verification
    verdict = {True: "ok", False: "FAILED", None: ""}
    bitwise = {True: "bit for bit", False: "different", None: "the backbone has no classifier"}
    base = {"features": proof["base"]["features_bitwise"], "answer": proof["base"]["bitwise"]}
    rows = [[f"{what} of the backbone", bitwise[same], verdict[same]] for what, same in base.items()]
    for name, found in proof["tasks"].items():
        difference = found["difference"]  # text where it is not finite
        shown = f"{difference:.1e}" if isinstance(difference, float) else difference
        rows.append([f"answer of “{name}”, against itself alone", shown, verdict[found["ok"]]])
    same = proof["weights_unchanged"]
    rows.append(["bytes of all weights, before and after", "the same" if same else "changed", verdict[same]])
    return ["what was compared", "found", "check"], rows, []


def files_table(result: QuickstartResult) -> ColumnsRowsRight:
    """The task files."""
    rows = [
        *([run.file, f"task “{run.name}”", shown_bytes(run.bytes)] for run in result.tasks),
        [result.composed["file"], "both tasks", shown_bytes(result.composed["bytes"])],
        *([run.file, f"comparison: {run.label}", shown_bytes(run.bytes)] for run in result.comparison),
    ]
    return ["file", "what it is", "size"], rows, ["size"]
