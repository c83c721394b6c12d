"""What a sweep came to: a table of all configurations, best first, as JSON, CSV, Markdown and for the console."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memtok.files import csv_text, write_csv, write_json, write_text
from memtok.sweeps.space import FIELDS, Configuration, Space
from memtok.sweeps.trials import RULE, Trial, winner_of
from memtok.training.settings import Plan

FORMAT_VERSION = 1
NONE = "–"
HEADINGS = {
    "regime": "regime",
    "memory": "cells",
    "queries": "queries",
    "adapter_rank": "rank of adapters",
    "learning_rate": "rate",
    "weight_decay": "decay",
    "seed": "seed",
}


@dataclass(frozen=True, kw_only=True)
class Test:
    """Accuracies in [0, 1] of the winner on the `images` of the test part."""

    __test__ = False  # the name is not meant for pytest

    top1: float
    top5: float
    images: int


@dataclass(frozen=True, kw_only=True)
class DataResult:
    """The sweep of one data set.

    data: as it was named. trials: all configurations, best first. order: the same in the order of the space. test: of
    the winner; None where all diverged, or where the data have no test part of their own. best: the winner's task file.
    skipped_images: paths that could not be read and were left out.
    """

    data: str
    trials: tuple[Trial, ...]
    order: tuple[Configuration, ...]
    test: Test | None
    best: Path | None
    plan: Plan
    space: Space
    halving: int | None
    skipped_images: tuple[str, ...] = ()

    @property
    def winner(self) -> Trial | None:
        """The best one, None if all diverged."""
        return winner_of([trial for trial in self.trials if trial.state == "finished"])

    def to_json(self) -> dict[str, Any]:
        """JSON-able; accuracies are shares in [0, 1]."""
        winner = self.winner
        return {
            "data": self.data,
            "winner": None if winner is None else winner.configuration.name,
            "best": None if self.best is None else str(self.best),
            "test": None if self.test is None else asdict(self.test),
            "validation_images": self.plan.validation_images,
            "steps": self.plan.steps,
            "halving": self.halving,
            "search": self.space.search,
            "skipped_images": len(self.skipped_images),
            "configurations": [
                {"rank": rank, "name": trial.configuration.name, **facts(trial)}
                for rank, trial in enumerate(self.trials, start=1)
            ],
        }


@dataclass(frozen=True)
class SweepResult:
    """All data sets of a sweep, in order, and the folder that it wrote."""

    data: tuple[DataResult, ...]
    out: Path

    @property
    def winner(self) -> Trial | None:
        """The best configuration on the only, or the first, data set."""
        return self.data[0].winner

    @property
    def picture(self) -> Path:
        """The plot."""
        return self.out / "sweep.png"

    def varying(self) -> list[str]:
        """The fields in which configurations differ, and always the learning rate."""
        everyone = [trial.configuration for one in self.data for trial in one.trials]
        several = [field for field in FIELDS if len({getattr(each, field) for each in everyone}) > 1]
        return [field for field in FIELDS if field in several or field == "learning_rate"]

    def table(self, most: int | None = None) -> tuple[list[str], list[list[str]], list[str]]:
        """Headings, lines and the headings whose column is right-aligned; at most so many lines per data set."""
        fields = self.varying()
        several = len(self.data) > 1
        heads = ["data"] * several + ["place", *(HEADINGS[field] for field in fields)]
        heads += ["validation %", "loss", "trained", "steps", "state"]
        lines = [
            [one.data] * several + [str(rank), *(show(getattr(trial.configuration, field)) for field in fields)] + tail
            for one in self.data
            for rank, trial in enumerate(one.trials[:most], start=1)
            for tail in [outcome(trial)]
        ]
        return heads, lines, [head for head in heads if head not in ("data", "regime", "state")]

    def sentences(self) -> list[str]:
        """The winner of each data set in words, and the rule."""
        found = [f"winner: {RULE}"]
        for one in self.data:
            if skipped := len(one.skipped_images):
                were = "was" if skipped == 1 else "were"
                found.append(f"{one.data}: {counted(skipped, 'image')} could not be read and {were} left out")
            winner = one.winner
            if winner is None or winner.last is None:
                found.append(f"{one.data}: no winner, for all configurations diverged; try smaller learning rates")
                continue
            text = f"{one.data}: {winner.configuration.name}, {percent(winner.last.top1)} % of "
            text += f"{one.plan.validation_images:,} validation images"
            if one.test is not None:
                text += f"; on the test part, looked at once: {percent(one.test.top1)} % of {one.test.images:,} images"
            else:
                text += "; the data have no test part of their own (--split 80-20 sets one aside)"
            found.append(text)
        return found

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {"format_version": FORMAT_VERSION, "rule": RULE, "data": [one.to_json() for one in self.data]}

    def to_csv(self) -> str:
        """One line per configuration under a heading; accuracies are shares in [0, 1]."""
        names = ["data", "rank", "name", *FIELDS, *(name for name in COLUMNS if name not in FIELDS)]
        rows: list[list[object]] = [[*names]]
        for one in self.data:
            for rank, trial in enumerate(one.trials, start=1):
                row = {"data": one.data, "rank": rank, "name": trial.configuration.name, **facts(trial)}
                rows.append([row.get(name) for name in names])
        return csv_text(rows)

    def to_markdown(self) -> str:
        """The table with the rule and the winners, and the picture."""
        heads, lines, right = self.table()
        marks = ["---:" if head in right else "---" for head in heads]
        rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (heads, marks, *lines)]
        said = "\n".join(f"- {sentence}" for sentence in self.sentences())
        return f"# Sweep\n\n{said}\n\n![validation accuracy]({self.picture.name})\n\n" + "\n".join(rows) + "\n"

    def save(self) -> list[Path]:
        """Writes sweep.json's result as result.json, .csv, .md, and the plot; returns the paths."""
        from memtok.sweeps.picture import draw

        paths = [self.out / name for name in ("result.json", "result.csv", "result.md")]
        write_json(paths[0], self.to_json())
        write_csv(paths[1], self.to_csv())
        write_text(paths[2], self.to_markdown())
        draw(self, self.picture)
        return [*paths, self.picture]


COLUMNS = ("state", "step", "top1", "top5", "loss", "trained_parameters", "seconds", "diverged_at")


def facts(trial: Trial) -> dict[str, Any]:
    """A configuration and what came of it: the figures of its latest look, none for one that diverged."""
    look = trial.last if trial.state != "diverged" else None
    return {
        **trial.configuration.to_dict(),
        "state": trial.state,
        "step": None if trial.last is None else trial.last.step,
        "top1": None if look is None else look.top1,
        "top5": None if look is None else look.top5,
        "loss": None if look is None else look.loss,
        "trained_parameters": trial.trained_parameters,
        "seconds": trial.seconds,
        "diverged_at": trial.diverged_at,
        "looks": [asdict(one) for one in trial.looks] if look is not None else [],
    }


def outcome(trial: Trial) -> list[str]:
    """The last columns of a line."""
    look = trial.last
    trained = f"{trial.trained_parameters:,}"
    if look is None or trial.state == "diverged":
        return [NONE, NONE, trained, NONE, f"diverged at step {trial.diverged_at:,}" if trial.diverged_at else NONE]
    return [percent(look.top1), f"{look.loss:.4f}", trained, f"{look.step:,}", trial.state]


def show(value: Any) -> str:
    """A value of a configuration in a table."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def counted(number: int, noun: str) -> str:
    """1 image, 1,234 images."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def percent(share: float) -> str:
    """0.8765 as 87.65."""
    return f"{100 * share:.2f}"
