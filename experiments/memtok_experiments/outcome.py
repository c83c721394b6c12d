"""The result of a composition experiment: accuracies before and after, as JSON, CSV, Markdown and PNG."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from memtok.display import markdown_table, percent
from memtok.files import csv_text, write_csv, write_json, write_text


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Top-1 accuracies in [0, 1] of one task with one seed, over `images` test images.

    alone, together: with the mask, in a model of its own (with what it extends) and in the model of all tasks.
    alone_unmasked, together_unmasked: the same, trained and composed without the mask. extends: data sets whose
    tasks it extends; without_extending: of a task on the same data that extends nothing.
    """

    task: str
    seed: int
    images: int
    alone: float
    together: float
    alone_unmasked: float | None = None
    together_unmasked: float | None = None
    extends: tuple[str, ...] = ()
    without_extending: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All rows of an experiment with the settings of its runs. steps, splits: by data set."""

    experiment: str
    backbone: str
    fingerprint: str
    image_size: tuple[int, int]
    column: str
    recipe: str
    steps: dict[str, int]
    batch_size: int
    splits: dict[str, str]
    rows: tuple[Standing, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in order."""
        return tuple(dict.fromkeys(row.task for row in self.rows))

    @property
    def unchanged(self) -> bool:
        """Whether, with the mask, every task has exactly the accuracy that it has alone."""
        return all(row.alone == row.together for row in self.rows)

    def mean(self, task: str, field: str) -> float | None:
        """The mean of a field over the seeds, None where it was not measured."""
        values = [getattr(row, field) for row in self.rows if row.task == task]
        return fmean(values) if values and None not in values else None

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headings and a row per task, means over the seeds in percent."""
        fields = {
            "alone": "alone",
            "together": "together",
            "without_extending": "not extending",
            "alone_unmasked": "alone, no mask",
            "together_unmasked": "together, no mask",
        }
        used = {
            key: label for key, label in fields.items() if any(self.mean(task, key) is not None for task in self.tasks)
        }
        extends = {row.task: ", ".join(row.extends) for row in self.rows}
        chained = any(extends.values())
        headings = ["task", *(["extends"] if chained else []), *used.values()]
        rows = []
        for task in self.tasks:
            means = [self.mean(task, key) for key in used]
            shown = ["" if mean is None else percent(mean, 1, unit="") for mean in means]
            rows.append([task, *([extends[task]] if chained else []), *shown])
        return headings, rows

    def to_json(self) -> dict[str, Any]:
        """JSON-able; accuracies in [0, 1]."""
        return {
            "format_version": 1,
            **asdict(self),
            "image_size": list(self.image_size),
            "rows": [asdict(row) | {"extends": list(row.extends)} for row in self.rows],
            "unchanged": self.unchanged,
        }

    def to_csv(self) -> str:
        """One line per task and seed."""
        names = list(Standing.__dataclass_fields__)
        lines: list[list[object]] = [[*names]]
        for row in self.rows:
            values = asdict(row) | {"extends": " ".join(row.extends)}
            lines.append(["" if values[name] is None else values[name] for name in names])
        return csv_text(lines)

    def to_markdown(self) -> str:
        """A heading line, the table and a sentence on what changed."""
        headings, rows = self.table()
        return "\n".join([self.caption(), "", *markdown_table(headings, rows), "", self.sentence(), ""])

    def caption(self) -> str:
        """The settings, in one line."""
        seeds = len({row.seed for row in self.rows})
        steps = " to ".join(f"{count:,}" for count in sorted({min(self.steps.values()), max(self.steps.values())}))
        return (
            f"Top-1 accuracy in %, {self.backbone}, {self.image_size[0]} px, {self.column}, recipe {self.recipe}, "
            f"{steps} steps of {self.batch_size}, {seeds} seed{'s' if seeds > 1 else ''}"
        )

    def sentence(self) -> str:
        """The effect of the mask."""
        if self.unchanged:
            return "With the mask every task classifies exactly as many test images correctly as alone."
        changed = next(row for row in self.rows if row.alone != row.together)
        return (
            f"With the mask {changed.task} (seed {changed.seed}) changed from {100 * changed.alone:.3f} % to "
            f"{100 * changed.together:.3f} %: this must not happen, please report it."
        )

    def save(self, folder: Path) -> list[Path]:
        """Writes EXPERIMENT.json, .csv, .md and .png into `folder`; returns their paths."""
        from memtok_experiments.pictures import BeforeAfter, draw_before_after

        paths = [folder / f"{self.experiment}.{ending}" for ending in ("json", "csv", "md", "png")]
        write_json(paths[0], self.to_json())
        write_csv(paths[1], self.to_csv())
        write_text(paths[2], self.to_markdown())
        fields = {
            "before": "alone",
            "after_masked": "together",
            "before_unmasked": "alone_unmasked",
            "after_unmasked": "together_unmasked",
            "without_extending": "without_extending",
        }
        means: Any = {task: {key: self.mean(task, name) for key, name in fields.items()} for task in self.tasks}
        draw_before_after([BeforeAfter(task=task, **found) for task, found in means.items()], paths[3])
        return paths
