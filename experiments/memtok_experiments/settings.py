"""What a grid of runs is asked for, checked before any work starts, and the part of it that may not change later."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from memtok.errors import Argument, MemtokError
from memtok.folders import check_outside
from memtok.preprocessing import Preprocessing
from memtok.sweeps.settings import OF_RUN, usual_rates
from memtok_experiments.columns import PAPER_COLUMNS, Column, find_columns


@dataclass(frozen=True, kw_only=True)
class GridSettings:
    """One backbone, some data sets, some columns, some seeds.

    data: specs as on the command line. columns: as in memtok_experiments.columns. seeds: of initial values, order and
    augmentation; the learning rate is chosen with the first one. out: the folder that everything is written to.
    learning_rates, full_learning_rates: those to choose among, by default three around the recipe's; the second of
    regime `full`. validation_images, test_images: how many are looked at, stratified; None means all. together: how
    many configurations train over one pass of the trunk at most. keep_models: keep trained models of regime `full` as
    well. keep_traces, trace_limit, views: as in `memtok.train`, for the columns that compose. trace_dir: holds a
    folder for each data set, and for each seed where images are varied. The others are arguments of `memtok.train`.
    """

    backbone: str
    data: tuple[str, ...]
    out: Path
    columns: tuple[str, ...] = PAPER_COLUMNS
    seeds: tuple[int, ...] = (0,)
    recipe: str = "paper"
    steps: int | None = None
    epochs: float | None = None
    batch_size: int | None = None
    accumulate: int = 1
    image_size: int | None = None
    learning_rates: tuple[float, ...] | None = None
    full_learning_rates: tuple[float, ...] | None = None
    split: str | None = None
    augment: str | None = None
    flip: bool | None = None
    validation_images: int | None = None
    test_images: int | None = None
    device: str = "auto"
    precision: str = "float32"
    workers: int | None = None
    data_dir: str | None = None
    on_bad_image: str = "fail"
    together: int = 24
    keep_models: bool = False
    keep_traces: str | None = None
    trace_dir: Path | None = None
    trace_limit: float | None = None
    views: int | None = None

    def __post_init__(self) -> None:
        from memtok.data.datasets import check_spec
        from memtok.training.settings import Settings, check_whole

        find_columns(self.columns)
        for what, values in (("data", self.data), ("columns", self.columns), ("seeds", self.seeds)):
            if not values or len(set(values)) != len(values):
                found, advice = (", ".join(map(str, values)), "leave one out") if values else ("none", "name some")
                raise MemtokError(f"expected {Argument(what)}, each once, found {found}; {advice}")
        for spec in self.data:
            check_spec(spec)
        for name in ("validation_images", "test_images", "together"):
            check_whole(name, getattr(self, name), least=1)
        for seed in self.seeds:
            Settings(**self.training(), **self.traces(), seed=seed)
        self.check_traces()
        for rates in (self.learning_rates, self.full_learning_rates):
            if rates is not None and (not rates or len({f"{rate:g}" for rate in rates}) != len(rates)):
                raise MemtokError(
                    f"expected learning rates, each once, found {rates}; name some that differ in six digits"
                )
            for rate in rates or ():
                Settings(learning_rate=rate)

    def check_traces(self) -> None:
        """MemtokError for traces that no column reads, or that would lie among the records."""
        if self.keep_traces is not None and not any(column.composable for column in find_columns(self.columns)):
            raise MemtokError(
                f"expected a column that composes to keep traces for, found {', '.join(self.columns)}; leave "
                f"{Argument('keep_traces')} out, or add head or memory-N"
            )
        check_outside(self.trace_dir, self.out / "runs")

    def traces(self) -> dict[str, Any]:
        """The arguments of `train_together` that say where traces are kept."""
        return {name: getattr(self, name) for name in ("keep_traces", "trace_dir", "trace_limit", "views")}

    def training(self) -> dict[str, Any]:
        """The arguments of `train` that all runs share."""
        names = (*OF_GRID, "device", "workers", "on_bad_image", "data_dir")
        return {name: getattr(self, name) for name in names}

    def fixed(self, fingerprint: str, preprocessing: Preprocessing) -> dict[str, Any]:
        """What must be the same whenever the grid in `out` goes on, as JSON-able values."""
        # Where traces are kept may change, not whether: what is trained on is rounded.
        kept = {} if self.keep_traces is None else {"kept_traces": {"views": self.views}}
        return {
            "backbone": fingerprint,
            "image_size": list(preprocessing.image_size),
            "preprocessing": preprocessing.to_dict(),  # no fingerprint tells it
            "first_seed": self.seeds[0],
            **{name: getattr(self, name) for name in (*OF_GRID, "split", "test_images")},
            **kept,
        }

    def rates(self, column: Column) -> tuple[float, ...]:
        """Learning rates to choose among, ascending."""
        from memtok.training.recipes import find_recipe

        _, recipe = find_recipe(self.recipe)
        full = column.regime == "full"
        given = self.full_learning_rates if full else self.learning_rates
        middle = recipe.full_learning_rate if full else recipe.learning_rate
        return tuple(sorted(given or usual_rates(middle)))


# Those of the settings that all runs share which a grid has; the others are as `memtok.train` has them by default.
OF_GRID = tuple(each.name for each in fields(GridSettings) if each.name in OF_RUN)
