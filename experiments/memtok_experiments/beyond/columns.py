"""The columns of `memtok reproduce beyond`: one row in `COLUMNS` each.

A column says what is made (`Column.create`), whether it composes, and among which learning rates it is chosen. A new
part of a task is one row here: `task("NAME", "what it is", regime, PART=size)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from memtok.errors import MemtokError
from memtok.regimes import ALL, FULL, REGIMES
from memtok.sweeps.settings import usual_rates
from memtok.training.recipes import RECIPES

if TYPE_CHECKING:
    from memtok.backbone import Backbone
    from memtok.training.regimes import Trainable

Make = Callable[["Backbone", str, Sequence[str], int], "Trainable"]
"""From backbone, name, classes and seed to what is trained."""

CELLS = 5  # of memory in every layer
PROMPTS = 10  # of VPT, in every layer
RANK = 8  # of LoRA
SIDE = 16  # width of a side stream
DEFAULT = "default"  # the column of `memtok train` without options
TASK_RATE, FULL_RATE = RECIPES["default"].learning_rate, RECIPES["default"].full_learning_rate


@dataclass(frozen=True, kw_only=True)
class Column:
    """One method.

    title: for tables. create: makes what is trained; None for what is solved on features of the frozen trunk, see
    `fitted.FITS`, and for `DEFAULT`. composes: whether it is a task that shares the trunk's pass with others. rates:
    the peak learning rates to choose among. lengths: of the run, as multiples of the steps of the table.
    """

    name: str
    title: str
    create: Make | None = None
    composes: bool = False
    rates: tuple[float, ...] = ()
    lengths: tuple[int, ...] = (1,)

    @property
    def fitted(self) -> bool:
        """Whether there is nothing to choose: no rate, length or augmentation."""
        return self.create is None


def make_task(
    backbone: Backbone, name: str, classes: Sequence[str], seed: int, *, regime: str, sizes: Mapping[str, Any]
) -> Trainable:
    """A task, or with regime `full` a copy of the backbone."""
    from memtok.training import create

    options: Any = sizes
    return create(backbone, regime=regime, name=name, classes=classes, seed=seed, **options)


def make_plain(
    backbone: Backbone, name: str, classes: Sequence[str], seed: int, *, method: str, size: int
) -> Trainable:
    """A method that changes the trunk, from `plain.METHODS`."""
    from memtok_experiments.beyond.plain import METHODS

    return METHODS[method](backbone, name=name, classes=classes, seed=seed, size=size)


def task(name: str, title: str, regime: str, **sizes: Any) -> Column:
    """A column that trains a task of this regime, with parts of these sizes."""
    return Column(
        name=name,
        title=title,
        create=partial(make_task, regime=regime, sizes=sizes),
        composes=REGIMES[regime].composable,
        rates=usual_rates(TASK_RATE),
    )


def plain(name: str, title: str, method: str, size: int, rate: float) -> Column:
    """A column of plain.py; rate: the middle of three."""
    return Column(name=name, title=title, create=partial(make_plain, method=method, size=size), rates=usual_rates(rate))


COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        task("head", "head", "head"),
        task("class", "head + class", "head+class"),
        task(f"memory-{CELLS}", f"memory, {CELLS} cells", "memory", memory=CELLS),
        task(f"memory-{CELLS}-unmasked", f"memory, {CELLS} cells, no mask", "memory-shared", memory=CELLS),
        Column(name="logistic", title="logistic regression, last level", composes=True),
        Column(name="logistic-levels", title="logistic regression, all levels", composes=True),
        Column(name="ridge", title="ridge, all levels", composes=True),
        Column(name=DEFAULT, title="memtok train, no options", composes=True),
        task("readout", "readout", "readout"),
        task("readout-memory", "readout + memory", "memory", readout=ALL, memory=CELLS),
        task("side", "side stream", "side", side=SIDE),
        task("both", "readout + side stream", "readout", side=SIDE),
        task("both-memory", "readout + side stream + memory", "memory", readout=ALL, side=SIDE, memory=CELLS),
        Column(
            name="full",
            title="full fine-tuning",
            create=partial(make_task, regime=FULL, sizes={}),
            rates=usual_rates(FULL_RATE),
            lengths=(1, 2),
        ),
        plain("lora-qv", f"LoRA {RANK}, query and value", "lora-qv", RANK, 1e-3),
        plain("lora-all", f"LoRA {RANK}, all projections", "lora-all", RANK, 1e-3),
        plain("vpt-deep", f"VPT-deep, {PROMPTS} prompts", "vpt-deep", PROMPTS, 1e-2),
    )
}

REFERENCES = ("full", "head")  # what every column is compared with


def find_columns(names: Sequence[str]) -> tuple[Column, ...]:
    """The columns of these names, in the order of `COLUMNS`; `all` stands for all. MemtokError for another name."""
    for name in names:
        if name not in (*COLUMNS, "all"):
            raise MemtokError(
                f"expected columns among {', '.join(COLUMNS)}, all, found {name!r}; choose some", argument="columns"
            )
    return tuple(column for name, column in COLUMNS.items() if name in names or "all" in names)
