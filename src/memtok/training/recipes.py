"""Recipes: which optimizer, at which rate, for how long. And the schedule: warm-up in steps, then cosine to zero.

Everything is counted in optimizer steps, never in epochs; `epochs` is translated once, before the first step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import memtok.data
from memtok.errors import MemtokError

GRADIENT = "gradient"  # the solver that a recipe is for
BALANCE = UNBALANCED, WEIGHTS, SAMPLING, LOGITS = "none", "weights", "sampling", "logits"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train when the user says nothing else. Change one value with `dataclasses.replace(RECIPES["paper"], ...)`.

    optimizer: "sgd" (with `momentum`) or "adamw" (with `betas`). learning_rate: the peak, for tasks;
    full_learning_rate: the peak where the whole backbone trains. weight_decay: of matrices; class tokens, memory,
    biases and norms never decay. label_smoothing: the share of every target that is spread over all classes. balance:
    what is done about classes of unequal size, see `train`. augment: what stands in place of an augmentation that a
    data set has by default. by_part: each part of a task has a rate of its own, learning_rate times what `Part.rate`
    says. clip_norm: largest norm of the gradient. warmup_steps, warmup_share: linear warm-up, in steps and as a share
    of the run; the longer one holds. batch_size: images per step.
    steps: length of the run; None means `steps_by_data` where the data set has its own length there, else `epochs`
    over the data, but between least_steps and most_steps.
    """

    optimizer: str
    learning_rate: float
    full_learning_rate: float
    weight_decay: float
    label_smoothing: float = 0.0
    balance: str = UNBALANCED
    augment: Mapping[str, str] = field(default_factory=dict, hash=False)
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    by_part: bool = False
    clip_norm: float = 1.0
    warmup_steps: int = 0
    warmup_share: float = 0.0
    batch_size: int
    steps: int | None = None
    steps_by_data: Mapping[str, int] = field(default_factory=dict, hash=False)
    epochs: int = 10
    least_steps: int = 1
    most_steps: int = 1_000_000_000

    def length(self, images: int, batch_size: int, data: str | None = None) -> int:
        """Steps of a run over `images` training images of the data source `data`, such as `cifar100`."""
        if self.steps is not None:
            return self.steps
        if data is not None and data in self.steps_by_data:
            return self.steps_by_data[data]
        wanted = self.epochs * memtok.data.steps_per_epoch(images, batch_size)
        return min(max(wanted, self.least_steps), self.most_steps)

    def warmup(self, steps: int) -> int:
        """Steps of warm-up in a run of `steps`."""
        return max(self.warmup_steps, round(self.warmup_share * steps))


# A new recipe is one entry here.
RECIPES: dict[str, Recipe] = {
    # Sandler et al., CVPR 2022, section 4: SGD with momentum, gradient clipping, 5 steps of linear warm-up, batch
    # 512, 20,000 steps. It gives neither momentum, clip norm, decay, schedule after the warm-up nor learning rates:
    # 0.9, 1, none and cosine to zero are our choice, and so are the rates. 0.1 is what the public reproduction uses
    # for tasks; 0.03 is the largest of ViT's own fine-tuning rates (Dosovitskiy et al., SGD, batch 512, clip norm 1).
    "paper": Recipe(
        optimizer="sgd",
        momentum=0.9,
        learning_rate=0.1,
        full_learning_rate=0.03,
        weight_decay=0.0,
        clip_norm=1.0,
        warmup_steps=5,
        batch_size=512,
        steps=20_000,
    ),
    # The public reproduction, github.com/necrashter/transformers-learnable-memory. Its vit_train.py has SGD, rate 0.1,
    # momentum 0.9, no decay, clip norm 1, warm-up of 5, cosine, batch 64. From its README: the steps of each data set;
    # by its batch size they are 20, 10 and 10 epochs, and 3 of Places-365. Ten, the middle, is ours for other data, and
    # so is the rate of `full`, which it does not have. Mended: its schedule, which counts the warm-up and the cosine
    # in epochs but moves them on with every batch. There the rate is 0 in the first step and 0.1 from the sixth one to
    # the end of the fifth epoch, and then swings between 0.1 and 0; here both are counted in steps, and it falls once.
    "reproduction": Recipe(
        optimizer="sgd",
        momentum=0.9,
        learning_rate=0.1,
        full_learning_rate=0.03,
        weight_decay=0.0,
        clip_norm=1.0,
        warmup_steps=5,
        batch_size=64,
        steps_by_data={"cifar100": 15_640, "inaturalist2017": 84_400, "sun397": 13_600, "places365": 84_560},
        epochs=10,
    ),
    # For a user's own folder. 1e-2 for tasks was chosen by measuring, see docs/training.md, "How the default was
    # chosen"; 3e-5 for all of a backbone beat 1e-4 in the measurements that memtok was planned with. Ten epochs, but
    # at least 500 steps: a small folder needs steps, not epochs.
    "default": Recipe(
        optimizer="adamw",
        learning_rate=1e-2,
        full_learning_rate=3e-5,
        weight_decay=0.01,
        label_smoothing=0.1,
        balance=LOGITS,
        augment={"inception": "light"},
        by_part=True,
        clip_norm=1.0,
        warmup_steps=5,
        warmup_share=0.05,
        batch_size=64,
        epochs=10,
        least_steps=500,
        most_steps=20_000,
    ),
}


def find_recipe(recipe: str | Recipe) -> tuple[str, Recipe]:
    """A recipe and its name ("custom" for one that is given as an object), checked."""
    if isinstance(recipe, Recipe):
        check_recipe(recipe)
        return "custom", recipe
    if recipe not in RECIPES:
        raise MemtokError(
            f"expected a recipe among {', '.join(RECIPES)}, found {recipe!r}; choose one of these", argument="recipe"
        )
    return recipe, RECIPES[recipe]


def check_recipe(recipe: Recipe) -> None:
    """MemtokError unless the values of a recipe make sense."""
    if recipe.optimizer not in ("sgd", "adamw"):
        raise MemtokError(
            f"expected the optimizer sgd or adamw, found {recipe.optimizer!r}; choose one of these",
            argument="optimizer",
        )
    if recipe.balance not in BALANCE:
        raise MemtokError(
            f"expected a recipe whose balance is one of {', '.join(BALANCE)}, found {recipe.balance!r}; choose one",
            argument="balance",
        )
    positive = {
        "learning_rate": recipe.learning_rate,
        "full_learning_rate": recipe.full_learning_rate,
        "clip_norm": recipe.clip_norm,
        "batch_size": recipe.batch_size,
        "epochs": recipe.epochs,
        "steps": 1 if recipe.steps is None else recipe.steps,
        **{f"steps_by_data[{name!r}]": steps for name, steps in recipe.steps_by_data.items()},
    }
    for name, value in positive.items():
        if not value > 0:
            raise MemtokError(f"expected a recipe with {name} above 0, found {value!r}; change it")
    shares = {"momentum": recipe.momentum, "beta 1": recipe.betas[0], "beta 2": recipe.betas[1]}
    for name, value in (
        *shares.items(),
        ("warmup_share", recipe.warmup_share),
        ("label_smoothing", recipe.label_smoothing),
    ):
        if not 0 <= value < 1:
            raise MemtokError(f"expected a recipe with {name} in [0, 1), found {value!r}; change it")
    if recipe.weight_decay < 0 or recipe.warmup_steps < 0:
        raise MemtokError("expected a recipe without negative weight_decay or warmup_steps, found one; change it")


def images_seen(step: int, images: int, batch_size: int) -> int:
    """Images that the first `step` steps looked at, repetitions counted."""
    epochs, rest = divmod(step, memtok.data.steps_per_epoch(images, batch_size))
    return epochs * images + min(rest * batch_size, images)


def learning_rate_at(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """The rate of step `step`, counted from 0, in a run of `steps`.

    Linear warm-up: `peak` / warmup in the first step, `peak` in the last step of the warm-up. Then half a cosine that
    starts at `peak` and reaches zero where step number `steps` would be, so that the last step still moves.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
