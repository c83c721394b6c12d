"""The plan of one run: its settings with nothing left open, from what the user said, the recipe and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import memtok.data
from memtok.errors import Argument, MemtokError
from memtok.regimes import REGIMES
from memtok.training.recipes import GRADIENT, SAMPLING, Recipe, find_recipe, images_seen
from memtok.training.settings import BALANCED, FIXED, RIDGE, SETTINGS, VIEWS, Settings
from memtok.values import MOST

if TYPE_CHECKING:
    from memtok.data import DataSource

VALIDATIONS = 10  # of a run, unless told otherwise
# The validations of a run look at most at this share of the images that it trains on, so they take at most about a
# third of its time; but each looks at LEAST_VALIDATED images if there are so many.
VALIDATION_SHARE = 0.5
LEAST_VALIDATED = 1000
# Not in the record of a run without gradient steps.
OF_OPTIMIZER = (
    "learning_rate",
    "weight_decay",
    "label_smoothing",
    "optimizer",
    "momentum",
    "betas",
    "by_part",
    "clip_norm",
    "warmup",
)


@dataclass(frozen=True, kw_only=True)
class Plan(Settings):
    """The settings of one run with nothing left open, and the numbers that follow from the recipe and the data.

    Those that are fixed, and these numbers, go into the record and must agree on resuming. select is None where the
    last state is kept; views: those of an image whose traces are kept, rounded to half precision, or that is solved
    for, else None. A run with the solver ridge has one step, that of all its images.
    """

    recipe: str
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    balance: str
    augment: str
    flip: bool
    validate_every: int
    validation_images: int
    log_every: int

    optimizer: str
    momentum: float
    betas: tuple[float, float]
    by_part: bool
    clip_norm: float
    warmup: int
    train_images: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        """Settings were checked before a plan is made of them."""

    @property
    def part(self) -> int:
        """Images of a step that are computed at once: the larger ones of its `accumulate` parts."""
        return math.ceil(min(self.batch_size, self.train_images) / self.accumulate)

    @property
    def views_seen(self) -> int:
        """How many views of an image the run comes to: one shorter than its views does not come to the last of them.

        Where classes are shown equally often, an epoch repeats images in other views; then all of them count.
        """
        views = self.views or 1
        return (
            views
            if self.solver != GRADIENT or self.balance == SAMPLING
            else min(views, math.ceil(self.steps / self.steps_per_epoch))
        )

    def images_seen(self, step: int) -> int:
        """Images that the first `step` steps look at, repetitions counted."""
        if self.solver != GRADIENT:
            return step * self.views_seen * self.train_images
        return images_seen(step, self.train_images, self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """What goes into the record, as JSON has it; without those that are None."""
        names = (*FIXED, *(each.name for each in fields(self) if each.name not in SETTINGS))
        left_out = () if self.solver == GRADIENT else OF_OPTIMIZER
        values = {name: getattr(self, name) for name in names if name not in left_out}
        if "betas" in values:
            values["betas"] = list(self.betas)
        return {name: value for name, value in values.items() if value is not None}


def make_plan(settings: Settings, regime: str, data: DataSource) -> Plan:
    """The plan of a run, from what the user said, the recipe and the size of the data."""
    name, recipe = find_recipe(settings.recipe)
    images = len(data.train)
    batch_size = recipe.batch_size if settings.batch_size is None else settings.batch_size
    if settings.accumulate > batch_size:
        raise MemtokError(
            f"expected {Argument('accumulate')} of at most the batch size, found {settings.accumulate} parts of "
            f"{batch_size} images; lower it"
        )
    steps = run_length(settings, recipe, data, batch_size)
    trained = steps * batch_size if settings.solver == GRADIENT else images
    validate_every = settings.validate_every or math.ceil(steps / VALIDATIONS)
    peak = recipe.full_learning_rate if REGIMES[regime].whole else recipe.learning_rate
    # Smoothed labels pull answers that were solved for sharp ones back, and the features with them: docs/training.md.
    usual = 0.0 if settings.start == RIDGE else recipe.label_smoothing
    smoothing = usual if settings.label_smoothing is None else float(settings.label_smoothing)
    augment = augmentation(settings, recipe, data)
    found = {
        "recipe": name,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": peak if settings.learning_rate is None else float(settings.learning_rate),
        "weight_decay": recipe.weight_decay if settings.weight_decay is None else float(settings.weight_decay),
        "label_smoothing": smoothing,
        "balance": settings.balance or recipe.balance,
        "seed": int(settings.seed),
        "augment": augment,
        "flip": data.variation is None
        and augment != "none"
        and (data.flip if settings.flip is None else settings.flip),
        "validate_every": validate_every,
        "validation_images": validated_images(settings, data, trained, math.ceil(steps / validate_every)),
        "log_every": settings.log_every or min(max(steps // 100, 1), 50),
        "select": settings.select or BALANCED,
        "views": kept_views(settings, augment),
    }
    return Plan(
        **{**vars(settings), **found},
        optimizer=recipe.optimizer,
        momentum=recipe.momentum,
        betas=recipe.betas,
        by_part=recipe.by_part,
        clip_norm=recipe.clip_norm,
        warmup=recipe.warmup(steps),
        train_images=images,
        steps_per_epoch=memtok.data.steps_per_epoch(images, batch_size),
    )


def run_length(settings: Settings, recipe: Recipe, data: DataSource, batch_size: int) -> int:
    """Steps of the run."""
    images = len(data.train)
    if settings.solver != GRADIENT:
        return 1
    if settings.steps is not None:
        return settings.steps
    if settings.epochs is None:
        return recipe.length(images, batch_size, data.spec)
    steps = max(1, math.ceil(settings.epochs * memtok.data.steps_per_epoch(images, batch_size)))
    if steps > MOST:
        raise MemtokError(f"expected a run of {MOST:,} steps at most, found more; lower {Argument('epochs')}")
    return steps


def check_own(settings: Settings) -> None:
    """MemtokError for settings of memtok's augmentation where the data have one of the user."""
    for name in ("augment", "flip"):
        if getattr(settings, name) is not None:
            raise MemtokError(
                f"expected no {Argument(name)} for data with a transform of their own, found one; leave it out"
            )


def augmentation(settings: Settings, recipe: Recipe, data: DataSource) -> str:
    """How training images are varied: as the data have it, or what the recipe has in its place, unless told otherwise.

    What is solved for and not kept is looked at once, as it is, unless something is said of how it is varied.
    """
    if data.variation is not None:
        check_own(settings)
        return f"transform {data.variation.name}"
    told = (settings.flip, settings.views, settings.keep_traces) != (None, None, None)
    if settings.solver != GRADIENT and settings.augment is None and not told:
        return "none"
    return settings.augment or recipe.augment.get(data.augment, data.augment)


def kept_views(settings: Settings, augment: str) -> int | None:
    """Fixed views of every image of a run that keeps traces or solves: one where images are not varied. Else None."""
    if settings.keep_traces is None and settings.solver == GRADIENT:
        return None
    if augment != "none":
        return VIEWS if settings.views is None else settings.views
    if settings.views not in (None, 1):
        raise MemtokError(
            f"expected one view where images are not varied (augment none), found {settings.views}; leave "
            f"{Argument('views')} out"
        )
    return 1


def validated_images(settings: Settings, data: DataSource, trained: int, validations: int) -> int:
    """How many images each validation looks at."""
    images = len(data.validation)
    if settings.validation_images is not None:
        return min(settings.validation_images, images)
    return min(images, max(LEAST_VALIDATED, int(VALIDATION_SHARE * trained / validations)))
