"""What `memtok reproduce beyond` is asked for, checked before any work starts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from memtok.errors import Argument, MemtokError
from memtok.folders import check_outside
from memtok.preprocessing import Preprocessing
from memtok.sweeps.settings import OF_RUN
from memtok_experiments.beyond.columns import Column, find_columns
from memtok_experiments.beyond.rows import find_rows

DISK = "disk"


@dataclass(frozen=True, kw_only=True)
class BeyondSettings:
    """One backbone, some rows, some columns, some seeds.

    rows, columns: as in rows.py and columns.py. seeds: of initial values, order, augmentation, and of the images that a
    smaller row draws; everything is chosen with the first one. sets: holds the folders of sets.py.
    rates: how many learning rates of each column are tried, from the middle one on. more_rates: how many further ones,
    one after the other, as long as the best is the largest or the smallest of those that were tried. lengths: of full
    fine-tuning, as multiples of the steps, among which it is chosen too. augment: "none" tries images as they are only;
    else they are also tried varied, as the data set has it unless this says how.
    equal_time: the column whose training time all others get in a second table; None for no such table. test_images:
    None for all. keep_traces: where the trunk's features are cached for columns that compose. The others are arguments
    of `memtok.train`.
    """

    backbone: str
    out: Path
    rows: tuple[str, ...] = ("full-size",)
    columns: tuple[str, ...] = ("all",)
    seeds: tuple[int, ...] = (0, 1, 2)
    sets: Path | None = None
    rates: int = 3
    more_rates: int = 2
    lengths: tuple[int, ...] = (1, 2)
    equal_time: str | None = None
    test_images: int | None = None
    image_size: int | None = None
    recipe: str = "default"
    steps: int | None = None
    epochs: float | None = None
    batch_size: int | None = None
    accumulate: int = 1
    augment: str | None = None
    flip: bool | None = None
    device: str = "auto"
    precision: str = "float32"
    workers: int | None = None
    data_dir: str | None = None
    split: str | None = None
    on_bad_image: str = "fail"
    together: int = 24
    keep_models: bool = False
    keep_traces: str = DISK
    trace_dir: Path | None = None
    trace_limit: float | None = None
    views: int | None = None

    def __post_init__(self) -> None:
        from memtok.training.settings import Settings, check_whole

        find_rows(self.rows)
        names = [column.name for column in find_columns(self.columns)]
        for what in ("rows", "columns", "seeds", "lengths"):
            values = getattr(self, what)
            if not values or len(set(values)) != len(values):
                found = ", ".join(map(str, values)) or "none"
                raise MemtokError(f"expected {Argument(what)}, each once, found {found}; name some, each once")
        for name in ("test_images", "together", "rates", *(["steps"] if self.steps is not None else [])):
            check_whole(name, getattr(self, name), least=1)
        check_whole("more_rates", self.more_rates, least=0)
        for length in self.lengths:
            check_whole("lengths", length, least=1)
        for seed in self.seeds:
            Settings(**self.training(seed), **self.traces("", varied=self.augment != "none"))
        if self.views is not None and self.augment == "none":
            raise MemtokError(
                f"expected {Argument('views')} where images are varied, found {Argument('augment', 'none')}; leave one "
                "of them out"
            )
        if self.equal_time is not None and self.equal_time not in names:
            raise MemtokError(
                f"expected one of the columns for {Argument('equal_time')} ({', '.join(names)}), found "
                f"{self.equal_time!r}; choose one of them"
            )
        check_outside(self.trace_dir, self.out / "runs")

    def training(self, seed: int) -> dict[str, Any]:
        """The arguments of `memtok.train` that all trials of a seed have in common."""
        names = (*OF_BEYOND, "device", "workers", "on_bad_image", "data_dir", "flip", "epochs")
        return {name: getattr(self, name) for name in names} | {"seed": seed}

    def traces(self, folder: str, *, varied: bool) -> dict[str, Any]:
        """The arguments that say where features are cached; folder: below the place of all."""
        found: dict[str, Any] = {"keep_traces": self.keep_traces, "trace_limit": self.trace_limit}
        if self.keep_traces == DISK:
            found["trace_dir"] = (self.trace_dir or self.out / "traces") / folder
        return found | {"views": self.views if varied else None}

    def fixed(self, fingerprint: str, preprocessing: Preprocessing) -> dict[str, Any]:
        """What must be the same whenever the work in `out` goes on, as JSON-able values."""
        return {
            "backbone": fingerprint,
            "preprocessing": preprocessing.to_dict(),
            "first_seed": self.seeds[0],
            **{name: getattr(self, name) for name in (*OF_BEYOND, "split", "flip", "test_images", "equal_time")},
            "views": self.views,
        }

    def tried(self, column: Column) -> tuple[float, ...]:
        """The learning rates of a column that are tried, ascending."""
        middle = (len(column.rates) - 1) / 2
        nearest = sorted(range(len(column.rates)), key=lambda place: (abs(place - middle), place))[: self.rates]
        return tuple(column.rates[place] for place in sorted(nearest))


# Those of the settings that all runs share; the others are as `memtok.train` has them by default.
OF_BEYOND = tuple(each.name for each in fields(BeyondSettings) if each.name in OF_RUN)
