"""The settings of a training: each is declared once, here.

The fields of `Settings` are the keyword arguments of `memtok.train`. The options of the command line and the keys of
its YAML files are made from them, and so is the configuration that is saved with a run. Importing this module brings
no torch along.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field, fields
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memtok.data.choices import AUGMENTATIONS, ON_BAD_IMAGE, SPLITS
from memtok.errors import Argument, MemtokError
from memtok.training.recipes import BALANCE, GRADIENT, RECIPES, Recipe, find_recipe
from memtok.values import Number, OneOf, Place, Switch, Values, Whole, YesNo

if TYPE_CHECKING:
    import torch

    from memtok.training.progress import Progress

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bf16")
TRACE_PLACES = ("ram", "disk", "gpu")
STARTS = ZERO, RIDGE = "zero", "ridge"
SOLVERS = GRADIENT, RIDGE
# What a run without gradient steps has no use for. It validates once, so there is nothing to select either.
OF_STEPS: tuple[str, ...] = (
    "recipe",
    "steps",
    "epochs",
    "learning_rate",
    "weight_decay",
    "label_smoothing",
    "patience",
    "start",
    "validate_every",
    "log_every",
)
OF_STEPS += ("save_every", "select", "compare_head")
SELECT = TOP1, BALANCED, LOSS = "top1", "balanced", "loss"
VIEWS = 4  # of every image that is varied, where its traces are kept
MOST_VIEWS = 1000  # an epoch shows one


@dataclass(frozen=True)
class Setting:
    """What is declared of a setting beside its name, type and default.

    values: what it may be; where the default is None it may be None too. help: for the command line. commands: which
    have it as an option. unset: what holds by default, in words, where the default does not tell.
    fixed: the result depends on it, so it is in the record, and a run goes on with the same value only. alone: for
    `train` only, not for tasks that train together.
    """

    values: Values
    help: str
    commands: tuple[str, ...] = ()
    unset: str = ""
    fixed: bool = False
    alone: bool = False


def setting(default: Any, values: Values, help: str, *more: Any, **flags: Any) -> Any:
    """A field of `Settings` with its default and its `Setting`."""
    return field(default=default, metadata={"setting": Setting(values, help, *more, **flags)})


ONE, SWEEP = ("train",), ("train", "sweep")  # commands that have a setting as an option
GRID, ALL = ("sweep", "reproduce"), ("train", "sweep", "reproduce")
BY_RECIPE, BY_DATA = "as the recipe says", "fits the data"
POSITIVE = Number(above_zero=True)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The keyword arguments of `memtok.train`, which says what they mean. Making one checks them all.

    None stands for what the recipe, the data or the device has.
    """

    recipe: str | Recipe = setting(
        "default",
        OneOf(tuple(sorted(RECIPES)), also=Recipe),
        "optimizer, rates, length of the run",
        ALL,
        fixed=True,
    )
    steps: int | None = setting(None, Whole(1), "steps to train", ALL, BY_RECIPE, fixed=True)
    epochs: float | None = setting(None, POSITIVE, "the same as times over the data", ALL)
    batch_size: int | None = setting(None, Whole(1), "images per step", ALL, BY_RECIPE, fixed=True)
    accumulate: int = setting(1, Whole(1), "micro-batches that a batch is split into", ALL, fixed=True)
    learning_rate: float | None = setting(None, POSITIVE, "peak rate", ONE, BY_RECIPE, fixed=True)
    weight_decay: float | None = setting(None, Number(), "weight decay of matrices", unset=BY_RECIPE, fixed=True)
    label_smoothing: float | None = setting(
        None, Number(below_one=True), "share of every target spread over all classes", SWEEP, BY_RECIPE, fixed=True
    )
    seed: int = setting(
        0, Whole(0, 2**63 - 1, "S", also=Integral), "of initial values, order and augmentation", SWEEP, fixed=True
    )
    device: str = setting("auto", OneOf(DEVICES), "where to train; auto takes a GPU if there is one", ALL)
    precision: str = setting("float32", OneOf(PRECISIONS), "of the arithmetic", ALL, fixed=True)
    workers: int | None = setting(None, Whole(0), "processes that read images", ALL, "fits the device")
    augment: str | None = setting(
        None, OneOf(AUGMENTATIONS), "how training images are varied", ALL, BY_DATA, fixed=True
    )
    flip: bool | None = setting(None, YesNo(), "mirror one training image in two, or none", ALL, BY_DATA, fixed=True)
    balance: str | None = setting(
        None,
        OneOf(BALANCE),
        "classes of unequal size: weight them in the loss, show each equally often, or add the logarithms of their "
        "shares to the logits in training",
        SWEEP,
        BY_RECIPE,
        fixed=True,
    )
    start: str = setting(
        ZERO,
        OneOf(STARTS),
        "where a readout starts: at zero, or at the ridge regression of the labels on all that it reads",
        SWEEP,
        fixed=True,
    )
    solver: str = setting(
        GRADIENT,
        OneOf(SOLVERS),
        "how it is trained: by steps along the gradient, or at once by the ridge regression of the labels on a readout",
        SWEEP,
        fixed=True,
    )
    validate_every: int | None = setting(
        None, Whole(1), "steps between validations", unset="a tenth of the run", fixed=True, alone=True
    )
    validation_images: int | None = setting(
        None, Whole(1), "use so many images of the validation part only, stratified by class", GRID, "all", fixed=True
    )
    log_every: int | None = setting(
        None, Whole(1), "steps between lines of metrics", unset="a hundredth of the run", fixed=True
    )
    save_every: int | None = setting(None, Whole(1), "steps between saved states", unset="a minute", alone=True)
    select: str | None = setting(
        None,
        OneOf(SELECT),
        "what the best state is chosen by on the validation images; balanced is the mean recall of the classes",
        ONE,
        BALANCED,
        fixed=True,
        alone=True,
    )
    patience: int | None = setting(
        None,
        Whole(1),
        "end the run after so many validations in a row without a better one",
        ONE,
        "the run has its whole length",
        fixed=True,
        alone=True,
    )
    out: str | Path | None = setting(
        None,
        Place(),
        "the task file, FILE.safetensors; state and metrics go into FILE.run beside it",
        ONE,
        alone=True,
    )
    resume: bool = setting(False, Switch(), "go on with the run in FILE.run, if there is one", ONE, alone=True)
    overwrite: bool = setting(False, Switch(), "start anew where FILE.run has a run already", ONE, alone=True)
    on_bad_image: str = setting(
        "fail", OneOf(ON_BAD_IMAGE), "an image that cannot be read: skip it and say so, or fail", ALL
    )
    data_dir: str | Path | None = setting(
        None, Place("DIR"), "where named data sets lie", ALL, "$MEMTOK_DATA, ~/.cache/memtok/data"
    )
    split: str | None = setting(
        None,
        OneOf(SPLITS),
        "official parts, or 80-20: test on 20 % of all images",
        ALL,
        "official where there is one, else 80-20; a folder as it is",
    )
    keep_traces: str | None = setting(
        None,
        OneOf(TRACE_PLACES),
        "run the trunk once per image, not once per epoch, and keep its features there",
        ALL,
    )
    trace_dir: str | Path | None = setting(
        None, Place("DIR"), "where they are stored on disk", ALL, "a folder per data set in ~/.cache/memtok/traces"
    )
    trace_limit: float | None = setting(
        None, Number(above_zero=True, unit="GB"), "maximum size of the cache", ALL, "half of what is free"
    )
    views: int | None = setting(
        None, Whole(1), "augmented views cached per image, or solved for", ALL, str(VIEWS), fixed=True
    )
    compile: bool | str = setting(
        False, Switch(also=object), "run the model through torch.compile; needs a C++ compiler", SWEEP
    )
    compare_head: bool | None = setting(
        None,
        YesNo(),
        "train a head alone on the same images too, to see what memory is worth",
        ONE,
        "where it costs little",
        alone=True,
    )
    progress: bool | Progress = setting(False, Switch(also=object), "a bar, or an object with the hooks of Progress")

    def __post_init__(self) -> None:
        for name, declared in SETTINGS.items():
            value = getattr(self, name)
            if value is not None or DEFAULTS[name] is not None:
                declared.values.check(name, value)
        find_recipe(self.recipe)
        check_pairs(self)
        check_solver(self)
        check_traces(self)
        check_machine(self)
        if self.task_file is not None:
            check_out(self.task_file)

    @property
    def task_file(self) -> Path | None:
        """`out` as a path."""
        return None if self.out is None else Path(self.out)


SETTINGS: dict[str, Setting] = {each.name: each.metadata["setting"] for each in fields(Settings)}
DEFAULTS: dict[str, Any] = {each.name: each.default for each in fields(Settings)}
FIXED: tuple[str, ...] = tuple(name for name, declared in SETTINGS.items() if declared.fixed)
ALONE: tuple[str, ...] = tuple(name for name, declared in SETTINGS.items() if declared.alone)


def settings_of(command: str) -> tuple[str, ...]:
    """The settings that a command has as options."""
    return tuple(name for name, declared in SETTINGS.items() if command in declared.commands)


def check_pairs(settings: Settings) -> None:
    """MemtokError for settings that exclude or need each other."""
    steps, epochs = settings.steps, settings.epochs
    if steps is not None and epochs is not None:
        raise MemtokError(
            f"expected {Argument('steps')} or {Argument('epochs')}, found both ({steps} and {epochs}); leave one out"
        )
    if settings.flip and settings.augment == "none":
        raise MemtokError(
            f"expected {Argument('augment')} inception, light or crop where {Argument('flip')} is on, found none; "
            "leave one of them out"
        )
    if settings.resume and settings.out is None:
        raise MemtokError(
            f"expected {Argument('out')} to resume a run, found none; name the task file that the run writes"
        )
    if settings.resume and settings.overwrite:
        raise MemtokError(
            f"expected {Argument('resume')} or {Argument('overwrite')}, found both; {Argument('resume')} goes on, "
            f"{Argument('overwrite')} starts anew"
        )


def check_solver(settings: Settings) -> None:
    """MemtokError for settings of gradient steps where there are none."""
    if settings.solver == GRADIENT:
        return
    for name in OF_STEPS:
        value = getattr(settings, name)
        if value != DEFAULTS[name] and not (name == "compare_head" and value is False):
            raise MemtokError(
                f"expected no {Argument(name)} with {Argument('solver', settings.solver)}, which takes no steps along "
                "the gradient, found one; leave one of them out",
                argument=name,
            )


def check_traces(settings: Settings) -> None:
    """MemtokError for settings of kept traces that make no sense together, or for views without end."""
    needing = ("trace_limit", "views") if settings.solver == GRADIENT else ("trace_limit",)
    for name in needing:
        if getattr(settings, name) is not None and settings.keep_traces is None:
            raise MemtokError(
                f"expected {Argument(name)} where traces are kept, found no {Argument('keep_traces')}; give both or "
                "neither"
            )
    if settings.trace_dir is not None and settings.keep_traces != "disk":
        raise MemtokError(
            f"expected {Argument('trace_dir')} where traces are kept on disk, found "
            f"{Argument('keep_traces', settings.keep_traces)}; use {Argument('keep_traces', 'disk')}, or leave "
            f"{Argument('trace_dir')} out"
        )
    if settings.views is not None and settings.views > MOST_VIEWS:
        raise MemtokError(
            f"expected {Argument('views')} of {MOST_VIEWS:,} at most, found {settings.views:,}; a run shows one of "
            "them per epoch, so give no more than its epochs"
        )


def check_machine(settings: Settings) -> None:
    """MemtokError for what other modules check, or this machine lacks. Torch is loaded only where it is asked."""
    from memtok.data.splits import check_seed

    check_seed(settings.seed)
    if settings.workers is not None:
        from memtok.data.loader import check_workers

        check_workers(settings.workers)
    if not isinstance(settings.compile, bool):  # the name of a backend
        from memtok.training.compiler import check_compile

        check_compile(settings.compile)
    if settings.device == "cuda" and not has_gpu():
        raise MemtokError(
            f"expected a CUDA device, found none on this machine; use {Argument('device', 'auto')} or 'cpu'"
        )
    if settings.keep_traces == "gpu" and (settings.device == "cpu" or not has_gpu()):
        raise MemtokError(
            "expected a GPU to keep traces on, found the CPU; keep them in ram or on disk", argument="keep_traces"
        )


def has_gpu() -> bool:
    """Whether torch finds a CUDA device."""
    import torch

    return torch.cuda.is_available()


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


def check_whole(name: str, value: int | None, *, least: int) -> None:
    """MemtokError unless `value` is None or a whole number from `least` to `MOST`."""
    if value is not None:
        Whole(least).check(name, value)


def default_workers(device: torch.device) -> int:
    """Processes that load images: none where the CPU trains, for they would take its cores; else up to 8."""
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores - 1)
