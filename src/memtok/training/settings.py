"""What the user asks for, checked whole before any work starts, and what follows from it for one run."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from memtok.checks import check_length, check_trace_options
from memtok.data import AUGMENTATIONS, DataSource, check_split, steps_per_epoch
from memtok.data.loader import check_workers
from memtok.data.splits import check_seed
from memtok.errors import Argument, MemtokError
from memtok.regimes import REGIMES
from memtok.training.compiler import check_compile
from memtok.training.recipes import Recipe, find_recipe
from memtok.training.state import BALANCED, SELECT

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bf16")
TRACE_PLACES = ("ram", "disk", "gpu")
VIEWS = 4  # of every image that is varied, where its traces are kept
VALIDATIONS = 10  # of a run, unless told otherwise
# The validations of a run look at most at this share of the images that it trains on, so they take at most about a
# third of its time; but each looks at LEAST_VALIDATED images if there are so many.
VALIDATION_SHARE = 0.5
LEAST_VALIDATED = 1000
MOST = 1_000_000_000  # of anything that is counted
LARGEST = 3.0e38  # near the end of single precision
SAVE_SECONDS = 60.0  # between saved states, unless told otherwise
SAVE_SHARE = 0.05  # saving takes at most this share of the time


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments of `train`, see there. Making one checks them all; None means: as the recipe has it."""

    recipe: str | Recipe = "default"
    steps: int | None = None
    epochs: float | None = None
    batch_size: int | None = None
    accumulate: int = 1
    learning_rate: float | None = None
    weight_decay: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "float32"
    workers: int | None = None
    augment: str | None = None
    flip: bool | None = None
    validate_every: int | None = None
    validation_images: int | None = None
    log_every: int | None = None
    save_every: int | None = None
    select: str | None = None
    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    on_bad_image: str = "fail"
    data_dir: str | Path | None = None
    split: str | None = None
    keep_traces: str | None = None
    trace_dir: str | Path | None = None
    trace_limit: float | None = None
    views: int | None = None
    compile: bool | str = False
    compare_head: bool | None = None

    def __post_init__(self) -> None:
        find_recipe(self.recipe)
        for name in (
            "steps",
            "batch_size",
            "accumulate",
            "validate_every",
            "validation_images",
            "log_every",
            "save_every",
            "views",
        ):
            check_whole(name, getattr(self, name), least=1)
        check_whole("workers", self.workers, least=0)
        if self.workers is not None:
            check_workers(self.workers)
        check_seed(self.seed)
        check_number("epochs", self.epochs, above_zero=True)
        check_number("learning_rate", self.learning_rate, above_zero=True)
        check_number("weight_decay", self.weight_decay, above_zero=False)
        check_length(self.steps, self.epochs)
        check_choice("device", self.device, DEVICES)
        check_choice("precision", self.precision, PRECISIONS)
        if self.select is not None:
            check_choice("select", self.select, SELECT)
        check_choice("on_bad_image", self.on_bad_image, ("fail", "skip"))
        if self.augment is not None:
            check_choice("augment", self.augment, AUGMENTATIONS)
        if self.flip is not None and not isinstance(self.flip, bool):
            raise MemtokError(f"expected {Argument('flip')} as True, False or None, found {self.flip!r}; change it")
        if self.flip and self.augment == "none":
            raise MemtokError(
                f"expected {Argument('augment')} inception or crop where {Argument('flip')} is on, found none; leave "
                "one of them out"
            )
        if self.compare_head is not None and not isinstance(self.compare_head, bool):
            raise MemtokError(
                f"expected {Argument('compare_head')} as True, False or None, found {self.compare_head!r}; change it"
            )
        check_split(self.split)
        check_compile(self.compile)
        self.check_traces()
        if self.device == "cuda" and not torch.cuda.is_available():
            raise MemtokError(
                f"expected a CUDA device, found none on this machine; use {Argument('device', 'auto')} or 'cpu'"
            )
        if self.resume and self.out is None:
            raise MemtokError(
                f"expected {Argument('out')} to resume a run, found none; name the task file that the run writes"
            )
        if self.resume and self.overwrite:
            raise MemtokError(
                f"expected {Argument('resume')} or {Argument('overwrite')}, found both; {Argument('resume')} goes on, "
                f"{Argument('overwrite')} starts anew"
            )
        if self.out is not None:
            check_out(self.out)

    def check_traces(self) -> None:
        """MemtokError for options of kept traces that make no sense together."""
        check_number("trace_limit", self.trace_limit, above_zero=True)
        if self.keep_traces is not None:
            check_choice("keep_traces", self.keep_traces, TRACE_PLACES)
        check_trace_options(self.keep_traces, self.trace_dir, self.trace_limit, self.views)
        if self.keep_traces == "gpu" and (self.device == "cpu" or not torch.cuda.is_available()):
            raise MemtokError(
                "expected a GPU to keep traces on, found the CPU; keep them in ram or on disk", argument="keep_traces"
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every number that the result of a run depends on. All of it goes into the record and must agree on resuming."""

    recipe: str
    optimizer: str
    learning_rate: float
    weight_decay: float
    momentum: float
    betas: tuple[float, float]
    clip_norm: float
    warmup: int
    steps: int
    batch_size: int
    accumulate: int
    seed: int
    precision: str
    augment: str
    flip: bool
    train_images: int
    steps_per_epoch: int
    validate_every: int
    validation_images: int
    log_every: int
    select: str | None = None  # what the best state is chosen by, one of SELECT; None where the last state is kept
    views: int | None = None  # fixed views of an image whose traces are kept, rounded to half precision

    @property
    def part(self) -> int:
        """Images of a step that are computed at once: the larger ones of its `accumulate` parts."""
        return math.ceil(min(self.batch_size, self.train_images) / self.accumulate)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; without `views` where no traces are kept, and `select` where no state is chosen."""
        values = {**asdict(self), "betas": list(self.betas)}
        return {key: value for key, value in values.items() if value is not None or key not in ("views", "select")}


def make_plan(settings: Settings, regime: str, data: DataSource) -> Plan:
    """The numbers of a run, from what the user said, the recipe and the size of the data."""
    name, recipe = find_recipe(settings.recipe)
    images = len(data.train)
    batch_size = recipe.batch_size if settings.batch_size is None else settings.batch_size
    if settings.accumulate > batch_size:
        raise MemtokError(
            f"expected {Argument('accumulate')} of at most the batch size, found {settings.accumulate} parts of "
            f"{batch_size} images; lower it"
        )
    per_epoch = steps_per_epoch(images, batch_size)
    if settings.steps is not None:
        steps = settings.steps
    elif settings.epochs is not None:
        steps = max(1, math.ceil(settings.epochs * per_epoch))
    else:
        steps = recipe.length(images, batch_size, data.spec)
    if steps > MOST:
        raise MemtokError(f"expected a run of {MOST:,} steps at most, found more; lower {Argument('epochs')}")
    validate_every = settings.validate_every or math.ceil(steps / VALIDATIONS)
    peak = recipe.full_learning_rate if REGIMES[regime].whole else recipe.learning_rate
    augment = settings.augment or data.augment
    views = kept_views(settings, augment)
    flip = augment != "none" and (data.flip if settings.flip is None else settings.flip)
    return Plan(
        recipe=name,
        optimizer=recipe.optimizer,
        learning_rate=peak if settings.learning_rate is None else float(settings.learning_rate),
        weight_decay=recipe.weight_decay if settings.weight_decay is None else float(settings.weight_decay),
        momentum=recipe.momentum,
        betas=recipe.betas,
        clip_norm=recipe.clip_norm,
        warmup=recipe.warmup(steps),
        steps=steps,
        batch_size=batch_size,
        accumulate=settings.accumulate,
        seed=int(settings.seed),
        precision=settings.precision,
        augment=augment,
        flip=flip,
        train_images=images,
        steps_per_epoch=per_epoch,
        validate_every=validate_every,
        validation_images=validated_images(settings, data, steps * batch_size, math.ceil(steps / validate_every)),
        log_every=settings.log_every or min(max(steps // 100, 1), 50),
        select=settings.select or BALANCED,
        views=views,
    )


def kept_views(settings: Settings, augment: str) -> int | None:
    """Fixed views of every image of a run that keeps traces: one where images are not varied. None: nothing is kept."""
    if settings.keep_traces is None:
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


def default_workers(device: torch.device) -> int:
    """Processes that load images: none where the CPU trains, for they would take its cores; else up to 8."""
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores - 1)


def check_whole(name: str, value: int | None, *, least: int) -> None:
    """MemtokError unless `value` is None or a whole number from `least` to `MOST`."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise MemtokError(f"expected {Argument(name)} as a whole number of {least} or more, found {value!r}; change it")
    if value > MOST:
        raise MemtokError(f"expected {Argument(name)} of {MOST:,} at most, found more; change it")


def check_number(name: str, value: float | None, *, above_zero: bool) -> None:
    """MemtokError unless `value` is None or a number above zero (or from zero on), finite in single precision."""
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if number and value > LARGEST:
        raise MemtokError(f"expected {Argument(name)} of {LARGEST:g} at most, found {value!r}; change it")
    if not number or value < 0 or (above_zero and value == 0):
        bound = "above 0" if above_zero else "of 0 or more"
        raise MemtokError(f"expected {Argument(name)} as a finite number {bound}, found {value!r}; change it")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """MemtokError unless `value` is one of `choices`."""
    if value not in choices:
        raise MemtokError(f"expected {Argument(name)} among {', '.join(choices)}, found {value!r}; choose one of these")


def check_out(out: Path) -> None:
    """MemtokError unless the task file and the run folder beside it can be written. Leaves nothing behind."""
    if out.is_dir():
        raise MemtokError(f"expected a file name for the task, found the folder {out}; name a file in it")
    if out.exists() and not out.is_file():
        raise MemtokError(f"expected a regular file for the task, found another thing at {out}; choose another place")
    if out.suffix != ".safetensors":
        raise MemtokError(f"expected a file name that ends in .safetensors, found {out}; write {out}.safetensors")
    run = out.with_suffix(".run")
    if run.exists() and not run.is_dir():
        raise MemtokError(
            f"expected {run} free for the state of the run, found a file there; choose another {Argument('out')}"
        )
    folder = Path(os.path.realpath(out)).parent  # a link is written through
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent  # the first that is there; the others are made when the run starts
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".memtok.", suffix=".part"):
            pass
    except OSError as error:
        raise MemtokError(
            f"expected a folder that can be written for {out}, found: {error.strerror}; choose another place"
        ) from error
