"""Which form a task gets where nobody says: the cheapest one as good as the best within one standard error.

That rule is of Breiman et al., Classification and Regression Trees, 1984, section 3.4.3. A 95 % interval is twice as
wide: with 1,000 images a cheap form could win that is 2 points behind. Of few images one standard error is several
points, and the cheapest form is that much worse (docs/training.md): there the usual one wins where it is as good.

All forms train together on all but one fold of the training images and answer that fold, fold after fold, so that every
image is answered once by each form, and forms are compared image by image (`memtok.intervals.paired`). The trunk runs
once per image, for what it leaves is kept in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import product
from operator import or_
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtok.backbone import Backbone
from memtok.checks import check_choice, check_count
from memtok.data import DataSource, ImageSet
from memtok.data.splits import Indices, stratified_order
from memtok.errors import Argument, MemtokError
from memtok.intervals import Difference, Right, paired
from memtok.meter import Meter
from memtok.parts import cost
from memtok.task import Task
from memtok.traces import OpenStores
from memtok.training.balance import class_weights
from memtok.training.feed import needs_of
from memtok.training.progress import Progress, RichProgress, RunInfo
from memtok.training.recipes import GRADIENT
from memtok.training.settings import BALANCED, OF_STEPS, RIDGE, TOP1
from memtok.training.together import train_together


@dataclass(frozen=True)
class Form:
    """What a task is made of, the keywords of `Task.create`, and how it is trained, the `solver` of `train`."""

    options: Mapping[str, Any]
    solver: str = GRADIENT


FORMS: Mapping[str, Form] = {
    "ridge-low-rank": Form({"regime": "readout", "statistics": "class+mean", "readout_rank": 32}, RIDGE),
    "ridge-class-mean": Form({"regime": "readout", "statistics": "class+mean"}, RIDGE),
    "ridge": Form({"regime": "readout"}, RIDGE),
    "readout": Form({"regime": "readout"}),
    "side": Form({"regime": "side"}),
    "readout+side": Form({"regime": "readout", "side": 16}),
    "memory": Form({"regime": "memory"}),
}
"""Those to choose from; of equal cost in a forward pass the one that is trained faster comes first.

A rank above half the number of classes saves little, and is not tried.
"""

FEW, MANY = 500, 64  # images below which, and classes from which on, another rule holds: docs/training.md
# What a task has where so few images tell nothing else, the first that may be chosen; and that of many classes.
USUAL, USUAL_OF_MANY = ("ridge", "readout"), ("ridge-class-mean", "readout")
TRIED = tuple(name for name in FORMS if name != "memory")  # whose steps run through all layers

FOLDS = 3
IMAGES = 3000  # training images that are looked at, at most; 3,000 answers tell 2 points apart
STEPS = 300
METRICS = {BALANCED: "balanced accuracy", TOP1: "top-1"}
NOT_SOLVED = (*OF_STEPS, "learning_rates")  # arguments that say nothing to a ridge regression


@dataclass(frozen=True, kw_only=True)
class FormScore:
    """What one form came to. accuracy: in [0, 1], on the images that were held out. behind: the best form minus it."""

    name: str
    accuracy: float
    behind: Difference
    cost: int

    def to_json(self) -> dict[str, Any]:
        """JSON-able; cost: multiply-adds per image beside the trunk."""
        return {"name": self.name, "accuracy": self.accuracy, "behind": self.behind.to_json(), "cost": self.cost}


@dataclass(frozen=True, kw_only=True)
class FormChoice:
    """The form that was chosen, and the scores of all, best first.

    options: the keywords of `Task.create`. solver: that of `train`. usual: whether it was taken in place of a cheaper
    one, since there were few images. metric: what they were compared by, "balanced" or "top1". images, folds, steps: of
    the cross-validation; without images, and scores, no class had two that could be told apart.
    """

    name: str
    options: dict[str, Any]
    solver: str
    scores: tuple[FormScore, ...]
    usual: bool
    metric: str
    images: int
    folds: int
    steps: int

    @property
    def tied(self) -> tuple[str, ...]:
        """The forms within one standard error of the best one, itself among them, best first."""
        return tuple(score.name for score in self.scores if score is self.scores[0] or score.behind.near)

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "name": self.name,
            "scores": [score.to_json() for score in self.scores],
            "usual": self.usual,
            "metric": self.metric,
            "images": self.images,
            "folds": self.folds,
            "steps": self.steps,
        }

    def __str__(self) -> str:
        """In one line."""
        rule = "usual one" if self.usual else "cheapest"
        if not self.scores:
            return f"form {self.name}, the {rule}: no class has two training images to cross-validate with"
        found = ", ".join(f"{score.name} {100 * score.accuracy:.1f} %" for score in self.scores)
        count = len(self.tied)
        why = "the best" if count == 1 else f"the {rule} of {count} within one standard error of the best"
        return (
            f"form {self.name}, {why}; {METRICS[self.metric]} of {self.images:,} training images in {self.folds}-fold "
            f"cross-validation of {self.steps} steps: {found}"
        )


class Folds(RichProgress):
    """A bar for each run of the cross-validation; what they have to say, the run that follows says again."""

    def __init__(self, runs: int) -> None:
        super().__init__()
        self.runs, self.begun = runs, 0

    def message(self, text: str) -> None:
        if not self.begun:
            super().message(text)

    def start(self, info: RunInfo) -> None:
        self.close()
        self.begun += 1
        if info.solver == GRADIENT:
            what = f"choosing a form, run {self.begun} of {self.runs}"
            self.meter = Meter(self.console, what, info.steps, info.start_step)

    def validation(self, row: Mapping[str, Any], best: bool) -> None:
        """Shown at the end, of all folds together."""


def choose_form(
    backbone: Backbone,
    data: DataSource,
    *,
    steps: int = STEPS,
    images: int = IMAGES,
    folds: int = FOLDS,
    seed: int = 0,
    forms: Sequence[str] = TRIED,
    metric: str = BALANCED,
    learning_rate: float | None = None,
    progress: bool | Progress = False,
    **shared: Any,
) -> FormChoice:
    """Chooses among `FORMS` by cross-validation on the training images of `data`, without augmentation.

    steps: of each form on each fold. images: training images that are looked at, at most, classes in proportion. folds:
    2 or more. forms: names of those to choose from, by default all but `memory`; one whose rank is above half the
    classes is left out. metric: what they are compared by, "balanced", in which all classes count alike, or "top1".
    learning_rate, and shared: arguments of `train` that hold for all, such as batch_size, recipe, balance, device,
    precision, workers and trace_limit. The cheapest of those within one standard error of the best is chosen; of fewer
    than 500 images the usual one, if it is among them. Deterministic for a seed. Raises MemtokError for bad arguments
    and for fewer images than folds; a form that diverged is not chosen, and where all did the error says so.
    """
    check_count("folds", folds, 2)
    check_count("images", images, folds)
    check_choice("metric", metric, tuple(METRICS))
    forms = fitting(forms, len(data.classes))
    chosen = data.train.take(images, seed)
    if len(chosen) < folds:
        raise MemtokError(
            f"expected {folds} training images or more to choose a form by cross-validation, found {len(chosen)}; add "
            f"images, or name a {Argument('regime')}"
        )
    fold_of = np.empty(len(chosen), dtype=np.int64)
    fold_of[stratified_order(chosen.labels, seed)] = np.arange(len(chosen)) % folds
    fresh = partial(Task.create, backbone, classes=data.classes, seed=seed)
    make = {name: partial(fresh, name=name, **FORMS[name].options) for name in forms}
    known = known_classes(chosen.labels, fold_of)
    right = dict.fromkeys(forms, known)
    if known.any():
        given: dict[str, Any] = {"steps": steps, "seed": seed, "progress": progress} | shared
        right = cross_validated(make, data, chosen, fold_of, given, learning_rate)
    labels = chosen.labels[known]
    return chosen_form(
        {name: found[known] for name, found in right.items()},
        {name: cost(backbone, create().form) for name, create in make.items()},
        folds,
        steps,
        usual=USUAL if len(data.classes) < MANY else USUAL_OF_MANY,
        weights=None if metric == TOP1 else class_weights(labels, len(data.classes)).double().numpy()[labels],
    )


def cross_validated(
    make: Mapping[str, Callable[[], Task]],
    data: DataSource,
    images: ImageSet,
    fold_of: Indices,
    given: Mapping[str, Any],
    learning_rate: float | None,
) -> dict[str, Right]:
    """Which of the images each form answers right when it is trained on the other folds; without those that diverge.

    make: a new task of each form. data: what the images are of. given: arguments of `train_together` for all of them.
    """
    right: dict[str, Right] = {name: np.zeros(len(images), dtype=np.bool_) for name in make}
    folds, solvers = range(int(fold_of.max()) + 1), list(dict.fromkeys(FORMS[name].solver for name in make))
    shown = Folds(len(folds) * len(solvers)) if given["progress"] is True else given["progress"]
    with OpenStores(reduce(or_, (needs_of(create()) for create in make.values()))) as stores:
        for fold, solver in product(folds, solvers):
            held_out = np.flatnonzero(fold_of == fold)
            rest = images.fold(np.flatnonzero(fold_of != fold))
            tasks = [create() for name, create in make.items() if FORMS[name].solver == solver]
            rates = {} if learning_rate is None else {"learning_rates": [learning_rate] * len(tasks)}
            settings = {**given, **rates, "progress": shown}
            results = train_together(
                tasks,
                replace(data, train=rest, validation=images.fold(held_out), left_out=()),
                solver=solver,
                augment="none",
                validation_images=len(held_out),
                keep_traces="ram",
                stores=stores,
                **{name: value for name, value in settings.items() if solver == GRADIENT or name not in NOT_SOLVED},
            )
            for task, result in zip(tasks, results, strict=True):
                if result.diverged_at is not None or result.validation_right is None:
                    right.pop(task.name, None)
                elif task.name in right:
                    right[task.name][held_out] = result.validation_right
    return right


def known_classes(labels: Indices, fold_of: Indices) -> NDArray[np.bool_]:
    """(images,) bool: whether another fold has an image of its class, without which no form can know it."""
    images = np.bincount(labels)
    in_fold = np.zeros((len(images), int(fold_of.max()) + 1), dtype=np.int64)
    np.add.at(in_fold, (labels, fold_of), 1)
    return images[labels] > in_fold[labels, fold_of]


def fitting(forms: Sequence[str], classes: int) -> list[str]:
    """Those of the forms that are worth a try with so many classes; MemtokError for unknown ones, and if none is."""
    for name in forms:
        check_choice("forms", name, tuple(FORMS))
    found = [name for name in dict.fromkeys(forms) if 2 * FORMS[name].options.get("readout_rank", 0) <= classes]
    if not found:
        raise MemtokError(
            f"expected {Argument('forms')} for {classes} classes, found {', '.join(forms) or 'none'}; name others",
            argument="forms",
        )
    return found


def chosen_form(
    right: Mapping[str, Right],
    costs: Mapping[str, int],
    folds: int,
    steps: int,
    *,
    usual: Sequence[str] = USUAL,
    weights: NDArray[np.float64] | None = None,
) -> FormChoice:
    """The choice, from what each form answered right. weights: of the images, None where all count alike."""
    if not right:
        raise MemtokError(
            f"expected a form whose loss stays finite, found none of {', '.join(FORMS)}; lower the learning rate"
        )
    images = len(next(iter(right.values())))
    scores = compared(right, costs, weights) if images else ()
    tied = [score.name for score in scores if score is scores[0] or score.behind.near] or list(right)
    preferred = [name for name in usual if name in tied] if images < FEW else []
    name = preferred[0] if preferred else min(tied, key=lambda each: (costs[each], list(FORMS).index(each)))
    return FormChoice(
        name=name,
        options=dict(FORMS[name].options),
        solver=FORMS[name].solver,
        scores=scores,
        usual=bool(preferred),
        metric=TOP1 if weights is None else BALANCED,
        images=images,
        folds=folds,
        steps=steps,
    )


def compared(
    right: Mapping[str, Right], costs: Mapping[str, int], weights: NDArray[np.float64] | None
) -> tuple[FormScore, ...]:
    """The scores of all forms, best first, of equal ones the cheapest."""
    accuracies = {name: float(np.average(found, weights=weights)) for name, found in right.items()}
    order = sorted(right, key=lambda name: (-accuracies[name], costs[name]))
    return tuple(
        FormScore(
            name=name,
            accuracy=accuracies[name],
            behind=paired([right[order[0]]], [right[name]], weights=weights),
            cost=costs[name],
        )
        for name in order
    )


def form_of_run(config: Mapping[str, Any], backbone: Backbone, classes: Sequence[str]) -> str | None:
    """The name of the form that a run began with, by its `config.json`; None for another task or an empty config."""
    for name, form in FORMS.items():
        task = Task.create(backbone, name=name, classes=classes, seed=0, **form.options)
        shapes = {key: list(parameter.shape) for key, parameter in task.named_parameters()}
        wanted = {"regime": task.regime, "shapes": shapes, "solver": form.solver, **task.choices}
        if all(config.get(key) == value for key, value in wanted.items()):
            return name
    return None
