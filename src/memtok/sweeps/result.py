"""What a sweep came to: a table of all configurations, best first, as JSON, CSV, Markdown and for the console.

The sentences above the table say what the validation images can tell apart, and what was chosen.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from memtok.display import counted, markdown_table, percent
from memtok.files import csv_text, write_csv, write_json, write_text
from memtok.intervals import wilson
from memtok.parts import OPTIONS
from memtok.sweeps.choice import RULE, Choice, Setting, choose
from memtok.sweeps.space import FIELDS, Configuration, Space, applies, values_of
from memtok.sweeps.trials import Trial
from memtok.training.plan import Plan

FORMAT_VERSION = 1
NONE = "–"
HEADINGS = {
    "regime": "regime",
    **{option.name: option.heading for option in OPTIONS},
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

    data: as it was named. trials: all configurations and the heads that they are compared with, best first. order: the
    configurations in the order of the space. test: of the winner; None where all diverged, or where the data have no
    test part of their own. best: the winner's task file. skipped_images: paths that could not be read, left out.
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

    @cached_property
    def choice(self) -> Choice | None:
        """What the validation images tell apart, and what is chosen; None if all diverged."""
        return choose(self.trials, self.order, self.plan)

    @property
    def winner(self) -> Trial | None:
        """The chosen one, None if all diverged."""
        return None if self.choice is None else self.choice.winner

    def to_json(self) -> dict[str, Any]:
        """JSON-able; accuracies are shares in [0, 1], differences in [-1, 1]."""
        winner, choice = self.winner, self.choice
        over_head = None if choice is None else choice.over_head
        return {
            "data": self.data,
            "winner": None if winner is None else winner.configuration.name,
            "highest": None if choice is None else choice.best.configuration.name,
            "tied": 0 if choice is None else len(choice.tied) - 1,
            "head": None if choice is None or choice.head is None else choice.head.configuration.name,
            "winner_minus_head": None if over_head is None else over_head.to_json(),
            "best": None if self.best is None else str(self.best),
            "test": None if self.test is None else asdict(self.test),
            "validation_images": self.plan.validation_images,
            "steps": self.plan.steps,
            "halving": self.halving,
            "search": self.space.search,
            "skipped_images": len(self.skipped_images),
            "configurations": [
                {"rank": rank, "name": trial.configuration.name, **facts(trial), **self.comparison(trial)}
                for rank, trial in enumerate(self.trials, start=1)
            ],
        }

    def comparison(self, trial: Trial) -> dict[str, Any]:
        """How a trial that finished stands: its own 95 % interval, and how far its setting is from the best one."""
        setting = None if self.choice is None else self.choice.setting_of(trial.configuration)
        if trial.state != "finished" or trial.last is None or setting is None or self.choice is None:
            return dict.fromkeys(COMPARED)
        low, high = wilson(trial.last.top1, self.plan.validation_images)
        behind = setting.minus(self.choice.best)
        return {
            "top1_low": low,
            "top1_high": high,
            "mean_top1": setting.top1,
            "spread": setting.spread,
            "from_best": behind.value,
            "from_best_low": behind.low,
            "from_best_high": behind.high,
            "tied": behind.tied,
        }

    def standing(self, trial: Trial) -> str:
        """`finished`, and whether it is the chosen one, the highest, or the line to beat."""
        choice = self.choice
        if choice is None or trial.state != "finished":
            return trial.state
        roles = (("chosen", choice.chosen), ("highest", choice.best), ("line to beat", choice.head))
        names = [role for role, one in roles if one is not None and one.trials[0].configuration == trial.configuration]
        return ", ".join(names) or trial.state


@dataclass(frozen=True)
class SweepResult:
    """All data sets of a sweep, in order, and the folder that it wrote."""

    data: tuple[DataResult, ...]
    out: Path

    @property
    def winner(self) -> Trial | None:
        """The chosen configuration on the only, or the first, data set."""
        return self.data[0].winner

    @property
    def picture(self) -> Path:
        """The plot."""
        return self.out / "sweep.png"

    def varying(self) -> list[str]:
        """The fields in which configurations differ, and always the learning rate."""
        everyone = [trial.configuration for one in self.data for trial in one.trials]
        return [field for field in FIELDS if len(values_of(everyone, field)) > 1 or field == "learning_rate"]

    def table(self, most: int | None = None) -> tuple[list[str], list[list[str]], list[str]]:
        """Headings, lines and the headings whose column is right-aligned; at most so many lines per data set."""
        fields = self.varying()
        several = len(self.data) > 1
        heads = ["data"] * several + ["place", *(HEADINGS[field] for field in fields)]
        seeds = ["mean of seeds"] * ("seed" in fields)
        heads += ["validation %", "95 % interval", *seeds, "from the highest", "loss", "trained", "steps", "state"]
        lines = [
            [one.data] * several + [str(rank), *(cell(trial, field) for field in fields)] + outcome(one, trial, seeds)
            for one in self.data
            for rank, trial in enumerate(one.trials[:most], start=1)
        ]
        return heads, lines, [head for head in heads if head not in ("data", "regime", "state")]

    def sentences(self) -> list[str]:
        """What can be told apart on each data set, what was chosen, and the rule."""
        found = [f"rule: {RULE}"]
        for one in self.data:
            if skipped := len(one.skipped_images):
                were = "was" if skipped == 1 else "were"
                found.append(f"{one.data}: {counted(skipped, 'image')} could not be read and {were} left out")
            if one.choice is None:
                found.append(f"{one.data}: no winner, for all configurations diverged; try smaller learning rates")
                continue
            found += [f"{one.data}: {said}" for said in (*choice_words(one.choice), words_of_test(one.test))]
        return found

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {"format_version": FORMAT_VERSION, "rule": RULE, "data": [one.to_json() for one in self.data]}

    def to_csv(self) -> str:
        """One line per configuration under a heading; accuracies are shares in [0, 1]."""
        names = ["data", "rank", "name", *FIELDS, *COLUMNS, *COMPARED]
        rows: list[list[object]] = [[*names]]
        for one in self.data:
            for rank, trial in enumerate(one.trials, start=1):
                row = {"data": one.data, "rank": rank, "name": trial.configuration.name}
                row |= facts(trial) | one.comparison(trial)
                rows.append([row.get(name) for name in names])
        return csv_text(rows)

    def to_markdown(self) -> str:
        """The table with the rule and the winners, and the picture."""
        rows = "\n".join(markdown_table(*self.table()))
        said = "\n".join(f"- {sentence}" for sentence in self.sentences())
        return f"# Sweep\n\n{said}\n\n![validation accuracy]({self.picture.name})\n\n{rows}\n"

    def save(self) -> list[Path]:
        """Writes result.json, result.csv and result.md; returns their paths."""
        paths = [self.out / name for name in ("result.json", "result.csv", "result.md")]
        write_json(paths[0], self.to_json())
        write_csv(paths[1], self.to_csv())
        write_text(paths[2], self.to_markdown())
        return paths


COMPARED = ("top1_low", "top1_high", "mean_top1", "spread", "from_best", "from_best_low", "from_best_high", "tied")
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
        "balanced": None if look is None else look.balanced,
        "loss": None if look is None else look.loss,
        "trained_parameters": trial.trained_parameters,
        "seconds": trial.seconds,
        "diverged_at": trial.diverged_at,
        "looks": [asdict(one) for one in trial.looks] if look is not None else [],
    }


def outcome(one: DataResult, trial: Trial, seeds: list[str]) -> list[str]:
    """The last columns of a line. seeds: the heading of the column of their mean, where there is one."""
    look, unknown = trial.last, [NONE for _ in seeds]
    trained = f"{trial.trained_parameters:,}"
    if look is None or trial.state == "diverged":
        end = f"diverged at step {trial.diverged_at:,}" if trial.diverged_at else NONE
        return [NONE, NONE, *unknown, NONE, NONE, trained, NONE, end]
    tail = [f"{look.loss:.4f}", trained, f"{look.step:,}", one.standing(trial)]
    setting = None if one.choice is None else one.choice.setting_of(trial.configuration)
    if trial.state != "finished" or setting is None or one.choice is None:
        return [percent(look.top1, unit=""), NONE, *unknown, NONE, *tail]
    low, high = wilson(look.top1, one.plan.validation_images)
    spread = "" if setting.spread is None else f" ± {percent(setting.spread, unit='')}"
    means = [f"{percent(setting.top1, unit='')}{spread}" for _ in seeds]
    behind = setting.minus(one.choice.best)
    distance = NONE if setting is one.choice.best else f"{100 * behind.value:+.2f}{' (tied)' if behind.tied else ''}"
    return [percent(look.top1, unit=""), f"{100 * low:.1f} to {100 * high:.1f}", *means, distance, *tail]


def choice_words(choice: Choice) -> list[str]:
    """What the validation images tell apart, what is chosen, and how it stands to a head alone."""
    best, chosen, others = choice.best, choice.chosen, len(choice.tied) - 1
    low, high = best.interval
    beside = any(setting.top1 > best.top1 for setting in choice.settings)  # a head that is only compared with
    said = [
        f"highest accuracy{' of what was asked for' if beside else ''}: {title(best)}, {percent(best.top1)} of "
        f"{best.images:,} validation images (95 % interval "
        f"{100 * low:.1f} to {100 * high:.1f}); {counted(others, 'other setting')} cannot be told apart from it",
    ]
    if chosen is best:
        said.append(f"chosen: the same{', the simplest of these' if others else ''}")
    else:
        said.append(f"chosen, as the simplest of these: {title(chosen)}, {percent(chosen.top1)}")
    head, over = choice.head, choice.over_head
    if head is chosen:
        said.append("that is a head alone: these images do not show that anything beats it")
    elif head is not None and over is not None:
        beats = "it beats a head by more than chance" if over.value > 0 else "a head beats it by more than chance"
        verdict = "these images do not show that it beats a head" if over.tied else beats
        said.append(f"a head alone has {percent(head.top1)}; chosen minus head: {over}: {verdict}")
    return said


def title(setting: Setting) -> str:
    """A setting by name; of several seeds without the seed."""
    name = setting.configuration.name
    return name if setting.spread is None else f"{name.rpartition('-seed-')[0]} (mean of {len(setting.trials)} seeds)"


def words_of_test(test: Test | None) -> str:
    """How the chosen one does on the test part."""
    if test is None:
        return "the data have no test part of their own (--split 80-20 sets one aside)"
    return f"on the test part, looked at once: {percent(test.top1)} of {test.images:,} images"


def cell(trial: Trial, field: str) -> str:
    """A value of a configuration; a head has no cells, tokens or adapters."""
    used = applies(field, trial.configuration.regime)
    return show(getattr(trial.configuration, field)) if used else NONE


def show(value: Any) -> str:
    """A value of a configuration in a table."""
    return f"{value:g}" if isinstance(value, float) else str(value)
