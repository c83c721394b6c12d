"""What a sweep is asked for, checked before any work starts, and the part of it that may not change later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memtok.errors import Argument, MemtokError
from memtok.folders import check_outside
from memtok.parts import Trunk
from memtok.preprocessing import Preprocessing
from memtok.regimes import REGIMES
from memtok.sweeps.halving import check_halving
from memtok.sweeps.space import Axis, Configuration, Range, Space, ends
from memtok.training.settings import FIXED, GRADIENT, VIEWS, ZERO, Settings, check_whole

RATE_FACTORS = (0.3, 1.0, 3.0)  # rates of a grid unless told otherwise, as multiples of the recipe's
RATE_SPAN = 10.0  # a search draws from the recipe's rate over this to the rate times this
PER_CONFIGURATION = ("learning_rate", "weight_decay")
PER_TASK = ("out", "resume", "overwrite", "save_every", "validate_every", "select")
OF_OPENING = ("data_dir", "split", "on_bad_image")
# Settings that all runs share and that their results depend on. Each has a seed of its own; `fixed` knows the views.
OF_RUN = tuple(name for name in FIXED if name not in (*PER_CONFIGURATION, *PER_TASK, "seed", "log_every", "views"))
OF_RUN += ("epochs",)


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """The arguments of `sweep`, see there; `shared` are those of `train` that all configurations have."""

    space: Space
    out: Path
    halving: int | None = None
    memory_limit: float | None = None
    together: int | None = None
    keep_all: bool = False
    compare_head: bool = True
    name: str | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from memtok.checks import check_name
        from memtok.sweeps.memory import find_limit

        for name in (*PER_CONFIGURATION, *PER_TASK):
            if name in self.shared:
                advice = f"give {name}s" if name in PER_CONFIGURATION else "leave it out"
                raise MemtokError(f"expected no {Argument(name)} for a sweep, found one; {advice}")
        Settings(**self.shared)
        if self.shared.get("start", ZERO) != ZERO and not reads(self.space):
            raise MemtokError(
                f"expected {Argument('readouts')} for {Argument('start', self.shared['start'])}, found none; give "
                f"some, or leave {Argument('start')} out",
                argument="start",
            )
        self.check_solver()
        check_halving(self.halving)
        check_whole("together", self.together, least=1)
        if self.memory_limit is not None:
            import torch

            find_limit(torch.device("cpu"), self.memory_limit)
        if self.name is not None:
            check_name(self.name)
        if self.space.search == "optuna":
            from memtok.sweeps.proposals import import_optuna

            import_optuna()
        check_outside(self.shared.get("trace_dir"), self.out / "runs")
        if self.out.exists() and not self.out.is_dir():
            raise MemtokError(
                f"expected a folder for the sweep, found the file {self.out}; choose another {Argument('out')}"
            )

    def check_solver(self) -> None:
        """MemtokError for a solver that cannot solve for all configurations, or has nothing to stop early."""
        solver = self.shared.get("solver", GRADIENT)
        if solver == GRADIENT:
            return
        for name in ends(self.space.regimes):
            needs = REGIMES[name].needs
            if REGIMES[name].class_token or ("readout" not in needs and 0 in ends(self.space["readouts"])):
                raise MemtokError(
                    f"expected regime readout, or head with {Argument('readouts')} above 0, for "
                    f"{Argument('solver', solver)}, found {name}; take these",
                    argument="solver",
                )
        if self.halving is not None:
            raise MemtokError(
                f"expected no {Argument('halving')} with {Argument('solver', solver)}, which takes no steps, found "
                f"{self.halving}; leave it out"
            )

    def heads(self) -> list[Configuration]:
        """The heads alone that the configurations are compared with: one for each rate, decay and seed.

        Where rates or decays are drawn from a range, those that a grid has by default. None where no steps are taken,
        which a head alone is trained by.
        """
        space = self.space
        if self.shared.get("solver", GRADIENT) != GRADIENT:
            return []
        if not self.compare_head or set(ends(space.regimes)) == {"head"}:
            return []
        usual = make_space(recipe=self.shared.get("recipe", "default"), search="grid", trials=None)
        rates, decays = (
            (usual if isinstance(space[axis], Range) else space)[axis] for axis in ("learning_rates", "weight_decays")
        )
        return Space(learning_rates=rates, weight_decays=decays, seeds=space.seeds, regimes=("head",)).grid()

    def opening(self) -> dict[str, Any]:
        """The arguments of `open_data`."""
        return {name: self.shared[name] for name in OF_OPENING if name in self.shared}

    def training(self) -> dict[str, Any]:
        """The arguments of `train_together` that all passes share, for data that are open."""
        return {name: value for name, value in self.shared.items() if name not in OF_OPENING}

    def fixed(self, fingerprint: str, preprocessing: Preprocessing) -> dict[str, Any]:
        """What must be the same whenever the sweep goes on, as JSON-able values.

        A grid may grow, and a search may get more trials; but not with early stopping, which compares with all.
        """

        settings = asdict(Settings(**self.shared))
        found: dict[str, Any] = {name: settings[name] for name in (*OF_RUN, "seed", "split")}
        if settings["keep_traces"] is not None:  # where they are kept may change, not what is trained on
            found["views"] = settings["views"] or (1 if settings["augment"] == "none" else VIEWS)
        elif settings["views"] is not None:
            found["views"] = settings["views"]
        found |= {"backbone": fingerprint, "image_size": list(preprocessing.image_size), "halving": self.halving}
        found["preprocessing"] = preprocessing.to_dict()  # no fingerprint tells it
        space = self.space.to_dict()
        found["search"] = space.pop("search")
        if self.halving is None:
            del space["trials"]
        elif not self.compare_head:  # then heads are stopped early like others
            found["heads_compared"] = False
        if self.halving is not None or self.space.search != "grid":
            found |= {f"space.{name}": value for name, value in space.items()}
        return dict(json.loads(json.dumps(found)))


def check_space(
    *, search: str, learning_rates: Axis | None = None, weight_decays: Axis | None = None, **rest: Any
) -> None:
    """MemtokError for arguments of `make_space` that make no space, whatever the recipe. Brings no torch along."""
    as_many: Axis = RATE_FACTORS if search == "grid" else Range(1.0, 2.0)
    decays = (0.0,) if weight_decays is None else weight_decays
    Space(learning_rates=learning_rates or as_many, weight_decays=decays, search=search, **rest)


def make_space(
    *,
    recipe: Any,
    search: str,
    trials: int | None,
    learning_rates: Axis | None = None,
    weight_decays: Axis | None = None,
    trunk: Trunk | None = None,
    solver: str = GRADIENT,
    **axes: Axis,
) -> Space:
    """The space with what the recipe says where rates or decays are left out. trunk: as in `Space`.

    MemtokError for rates or decays where the solver takes no steps.
    """
    from memtok.training.recipes import find_recipe

    _, found = find_recipe(recipe)
    middle = found.learning_rate
    if solver != GRADIENT:
        if (learning_rates, weight_decays) != (None, None):
            raise MemtokError(
                f"expected no learning_rates and weight_decays with {Argument('solver', solver)}, which takes no steps "
                "along the gradient, found some; leave them out",
                argument="solver",
            )
        learning_rates = (middle,)
    if learning_rates is None and search == "grid":
        learning_rates = usual_rates(middle)
    elif learning_rates is None:
        learning_rates = Range(middle / RATE_SPAN, min(middle * RATE_SPAN, 1e38))
    decays = (found.weight_decay,) if weight_decays is None else weight_decays
    return Space(learning_rates=learning_rates, weight_decays=decays, search=search, trials=trials, trunk=trunk, **axes)


def reads(space: Space) -> bool:
    """Whether some of its configurations have a readout."""
    given = any(value != 0 for value in ends(space["readouts"]))
    return any("readout" in REGIMES[name].needs for name in ends(space.regimes)) or given


def usual_rates(middle: float) -> tuple[float, ...]:
    """Three rates around that of a recipe."""
    return tuple(float(f"{middle * factor:.6g}") for factor in RATE_FACTORS)
