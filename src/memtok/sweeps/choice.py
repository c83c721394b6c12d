"""Which configuration of a sweep is chosen: the simplest of those that the validation images cannot tell from the best.

Configurations that differ in their seed only are one setting, whose accuracy is the mean over its seeds. All settings
answered the same validation images, so they are compared image by image (`memtok.intervals.paired`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean, stdev

from memtok.intervals import Difference, paired, unpaired, wilson
from memtok.sweeps.space import Configuration
from memtok.sweeps.trials import Trial, ranked
from memtok.training.plan import Plan

RULE = (
    "of all settings whose validation accuracy cannot be told apart from the highest one (the 95 % interval of the "
    "difference contains 0), the one with the fewest trained parameters; of equal ones the highest accuracy, then the "
    "rate and decay nearest the recipe's"
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Finished trials that differ in their seed only, best first. images: of the validation part."""

    trials: tuple[Trial, ...]
    images: int

    @property
    def configuration(self) -> Configuration:
        """That of its best seed."""
        return self.trials[0].configuration

    @property
    def accuracies(self) -> list[float]:
        """Top-1 in [0, 1] of every seed."""
        return [trial.last.top1 for trial in self.trials if trial.last is not None]

    @property
    def top1(self) -> float:
        """The mean over the seeds."""
        return fmean(self.accuracies)

    @property
    def loss(self) -> float:
        """The mean validation loss."""
        return fmean(trial.last.loss for trial in self.trials if trial.last is not None)

    @property
    def spread(self) -> float | None:
        """The standard deviation over the seeds; None of one seed."""
        return stdev(self.accuracies) if len(self.trials) > 1 else None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval that so many images allow, of the mean over the seeds."""
        return wilson(self.top1, self.images)

    def minus(self, other: Setting) -> Difference:
        """This accuracy minus another, image by image where both know their answers."""
        mine = [trial.answered(self.images) for trial in self.trials]
        others = [trial.answered(self.images) for trial in other.trials]
        known, others_known = ([each for each in rows if each is not None] for rows in (mine, others))
        if len(known) < len(mine) or len(others_known) < len(others):  # records of earlier versions
            return unpaired(self.accuracies, other.accuracies, self.images)
        return paired(known, others_known)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a sweep found on one data set.

    best: the setting with the highest accuracy. tied: all that cannot be told apart from it, itself included. chosen:
    the simplest of these. head: the best head alone, the line to beat; None where no head finished. settings: all, the
    heads that are only compared with included.
    """

    best: Setting
    tied: tuple[Setting, ...]
    chosen: Setting
    head: Setting | None
    settings: tuple[Setting, ...]

    @property
    def winner(self) -> Trial:
        """The best seed of the chosen setting."""
        return self.chosen.trials[0]

    @property
    def over_head(self) -> Difference | None:
        """The accuracy of the chosen setting minus that of the head; None where that is chosen, or there is none."""
        if self.head is None or self.head is self.chosen:
            return None
        return self.chosen.minus(self.head)

    @cached_property
    def by_configuration(self) -> dict[Configuration, Setting]:
        """The settings by their configuration without its seed."""
        return {without_seed(one.configuration): one for one in self.settings}

    def setting_of(self, configuration: Configuration) -> Setting | None:
        """The setting that a configuration belongs to; None where it did not finish."""
        return self.by_configuration.get(without_seed(configuration))


def choose(trials: Iterable[Trial], order: Sequence[Configuration], plan: Plan) -> Choice | None:
    """The choice by `RULE` among the configurations in `order`; None if none of them finished.

    trials: those of `order`, and heads that are only compared with. A setting of which a seed was stopped or diverged
    is left out where others are whole: what is left of it is the better part.
    """
    groups: dict[Configuration, list[Trial]] = {}
    lost: set[Configuration] = set()  # settings of which a seed did not finish
    for trial in ranked(trials):
        if trial.state == "finished":
            groups.setdefault(without_seed(trial.configuration), []).append(trial)
        else:
            lost.add(without_seed(trial.configuration))
    settings = [Setting(trials=tuple(group), images=plan.validation_images) for group in groups.values()]
    places = {without_seed(each): place for place, each in reversed(list(enumerate(order)))}

    def complete(some: list[Setting]) -> list[Setting]:
        return [one for one in some if without_seed(one.configuration) not in lost] or some

    candidates = complete([one for one in settings if without_seed(one.configuration) in places])
    if not candidates:
        return None

    def place(one: Setting) -> int:
        return places.get(without_seed(one.configuration), len(places))

    def quality(one: Setting) -> tuple[float, ...]:
        return -one.top1, one.loss, one.trials[0].trained_parameters, place(one)

    def simplicity(one: Setting) -> tuple[float, ...]:
        near = nearness(one.configuration, plan)
        return one.trials[0].trained_parameters, -one.top1, *near, one.loss, place(one)

    best = min(candidates, key=quality)
    tied = tuple(one for one in sorted(candidates, key=quality) if one is best or best.minus(one).tied)
    heads = complete([one for one in settings if one.configuration.is_head])
    return Choice(
        best=best,
        tied=tied,
        chosen=min(tied, key=simplicity),
        head=min(heads, key=quality, default=None),
        settings=tuple(settings),
    )


def without_seed(configuration: Configuration) -> Configuration:
    """The same for all seeds of a setting."""
    return replace(configuration, seed=0)


def nearness(configuration: Configuration, plan: Plan) -> tuple[float, float]:
    """How far rate (in its logarithm) and decay are from the recipe's."""
    return (
        abs(math.log(configuration.learning_rate / plan.learning_rate)),
        abs(configuration.weight_decay - plan.weight_decay),
    )
