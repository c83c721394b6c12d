"""The search space of a sweep: which configurations there are, what they are called, and how they are drawn.

An axis is a list of values or a `Range`. A grid is the product of lists; a random search draws from lists and ranges.
Importing this module brings no torch along.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memtok.errors import Argument, MemtokError
from memtok.parts import DEFAULT_CHOICES, OPTIONS, Trunk, more_than_head
from memtok.regimes import ALL, COMPOSABLE, REGIMES

SEARCHES = ("grid", "random", "optuna")
MOST = 100_000  # configurations of a sweep
LARGEST = 3e38  # near the end of single precision


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included; rates and decays are drawn uniformly in their logarithm."""

    low: float
    high: float

    def __post_init__(self) -> None:
        finite = math.isfinite(self.low) and math.isfinite(self.high)
        if not finite or not self.low < self.high:
            raise MemtokError(f"expected a range LOW..HIGH with LOW below HIGH, found {self}; change it")

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"

    @classmethod
    def parse(cls, text: str, number: Callable[[str], float] = float) -> Range | None:
        """The range that `1e-4..1e-1` stands for, None for a text that is none.

        ValueError for ends that `number` does not take, or that are no range.
        """
        match = re.fullmatch(r"(.+?)\.\.(.+)", text.strip())
        if match is None:
            return None
        low, high = number(match[1]), number(match[2])
        if not low < high:
            raise ValueError(text)
        return cls(low, high)


Axis = Sequence[Any] | Range


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One run of a sweep: what is trained, and how. Rates and decays have six digits, so that names tell all.

    options: values of the options of all parts, by name; they are attributes too, such as `configuration.memory`.
    """

    regime: str
    options: tuple[tuple[str, int], ...]
    learning_rate: float
    weight_decay: float
    seed: int

    def __getattr__(self, name: str) -> int:
        """The value of an option."""
        for option, value in self.__dict__.get("options", ()):
            if option == name:
                return int(value)
        raise AttributeError(name)

    @property
    def name(self) -> str:
        """Such as `memory-5-rate-0.01-decay-0-seed-0`; tells it from every other configuration."""
        parts, regime = [self.regime], REGIMES[self.regime]
        for option in OPTIONS:
            value = getattr(self, option.name)
            if option.fits(regime) and (not option.tag or option.name in regime.needs):
                parts += [str(value)]
            elif option.fits(regime) and value != option.default:
                parts += [f"{option.tag}-{value}"]
        parts += [f"rate-{self.learning_rate:g}", f"decay-{self.weight_decay:g}", f"seed-{self.seed}"]
        return "-".join(parts)

    @property
    def is_head(self) -> bool:
        """Whether it is a linear head alone, which others are compared with."""
        return not more_than_head(REGIMES[self.regime], dict(self.options))

    @property
    def shape(self) -> tuple[Any, ...]:
        """Equal for configurations that are computed alike: regime and options."""
        return self.regime, *self.options

    def form(self, classes: int) -> dict[str, Any]:
        """The form of a task of so many classes, as `memtok.parts` knows it."""
        found = {"classes": classes} | dict(self.options) | DEFAULT_CHOICES
        return found if REGIMES[self.regime].class_token else found | {"queries": 0}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {name: getattr(self, name) for name in FIELDS}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Configuration:
        """From values by name, such as `to_dict` gives; rates are rounded to six digits.

        Options that are missing, or do not fit the regime, are as in a task without them.
        """
        regime = REGIMES[values["regime"]]
        given = {option.name for option in OPTIONS if option.fits(regime)} & values.keys()
        chosen = {
            option.name: int(values[option.name] if option.name in given else option.absent(regime))
            for option in OPTIONS
        }
        rounded = {name: float(f"{values[name]:.6g}") for name in ("learning_rate", "weight_decay")}
        return cls(regime=regime.name, options=tuple(chosen.items()), seed=values["seed"], **rounded)


# In the order in which a grid runs through them, the last one fastest.
FIELDS = ("regime", *(option.name for option in OPTIONS), "learning_rate", "weight_decay", "seed")
OPTION_OF = {option.name: option for option in OPTIONS}
WRITTEN_ALWAYS = ("memory", "queries", "adapter_ranks")  # axes in the settings of a sweep; others where they are given


def applies(field: str, regime: str) -> bool:
    """Whether a field of a configuration means something in a regime: a head has no cells."""
    return field not in OPTION_OF or OPTION_OF[field].fits(REGIMES[regime])


class Space:
    """What is searched. Every axis is a list or, but for regimes and seeds, a `Range`; making one checks all values.

    options: axes of the options of all parts, such as `memory=[1, 5]` or `adapter_ranks=Range(0, 8)`; by default each
    has its default alone, that of the regime. trunk: the backbone, from which `ALL` is known; without it the space can
    be checked, and has no configurations if one has `ALL` of something.
    """

    def __init__(
        self,
        *,
        learning_rates: Axis,
        weight_decays: Axis = (0.0,),
        seeds: Axis = (0,),
        regimes: Axis = ("memory",),
        search: str = "grid",
        trials: int | None = None,
        trunk: Trunk | None = None,
        **options: Axis,
    ) -> None:
        self.learning_rates, self.weight_decays, self.seeds, self.regimes = (
            learning_rates,
            weight_decays,
            seeds,
            regimes,
        )
        self.search, self.trials, self.trunk = search, trials, trunk
        self.given = frozenset(options)
        self.options = {option.axis: options.pop(option.axis, (option.default,)) for option in OPTIONS}
        if options:
            known = ", ".join(self.options)
            raise MemtokError(f"expected axes of options among {known}, found {next(iter(options))!r}; choose one")
        self.check()

    def __getitem__(self, axis: str) -> Axis:
        """An axis by name."""
        found: Axis = self.options[axis] if axis in self.options else getattr(self, axis)
        return found

    def check(self) -> None:
        """MemtokError for values that make no space."""
        if self.search not in SEARCHES:
            raise MemtokError(
                f"expected a search among {', '.join(SEARCHES)}, found {self.search!r}; choose one", argument="search"
            )
        for name, check in CHECKS.items():
            check_axis(name, self[name], check)
        self.check_needs()
        if self.search == "grid":
            for name in CHECKS:
                if isinstance(self[name], Range):
                    raise MemtokError(
                        f"expected lists for a grid, found the range {self[name]} of {Argument(name)}; list "
                        "the values, or search random or optuna"
                    )
            if self.trials is not None:
                raise MemtokError(
                    f"expected no {Argument('trials')} for a grid, which tries all, found {self.trials}; search "
                    "random or optuna"
                )
            if self.size > MOST:
                raise MemtokError(f"expected {MOST:,} configurations at most, found {self.size:,}; leave values out")
        else:
            check_trials(self.trials, self.search)
        if self.search == "random" and self.trials and self.size < self.trials:
            raise MemtokError(
                f"expected {self.size:,} trials at most in a space of as many configurations, found {self.trials:,}; "
                "search the grid, or give ranges",
                argument="trials",
            )

    def check_needs(self) -> None:
        """MemtokError for a regime whose tasks need an option, and an axis on which that is none."""
        for option in OPTIONS:
            needing = [name for name in ends(self.regimes) if option.name in REGIMES[name].needs]
            if needing and option.axis in self.given and option.least in ends(self[option.axis]):
                raise MemtokError(
                    f"expected {Argument(option.axis)} of {option.least + 1} or more in regime {needing[0]!r}, found "
                    f"{option.least}; leave it out, or take regime 'head'",
                    argument=option.axis,
                )

    def axes(self) -> dict[str, Axis]:
        """The axes by the field of a configuration, in the order of a grid; None where each regime has its default."""
        optional = {option.axis for option in OPTIONS} - self.given
        return {field: (None,) if AXIS_OF[field] in optional else self[AXIS_OF[field]] for field in FIELDS}

    def made(self, values: Mapping[str, Any]) -> Configuration:
        """The configuration of values by name, which may be None for the default, or `ALL`."""
        regime, found = REGIMES[values["regime"]], dict(values)
        for option in OPTIONS:
            if found[option.name] is None:
                found[option.name] = option.absent(regime)
            if found[option.name] == ALL:
                assert self.trunk is not None
                found[option.name] = option.on(self.trunk, ALL)
        return Configuration.of(found)

    @property
    def size(self) -> float:
        """How many configurations there are; infinite with a range of numbers that are not whole."""
        axes = self.axes()
        fields = [field for field in FIELDS if field != "regime"]
        return math.fsum(
            math.prod(length(axes[field]) for field in fields if applies(field, regime))
            for regime in ends(axes["regime"])
        )

    def listed(self, seed: int) -> list[Configuration] | None:
        """All configurations of a grid or a random search; None where they depend on what is found."""
        if self.search == "optuna":
            return None
        return self.grid() if self.search == "grid" else self.draw(seed)

    def largest(self) -> list[Configuration]:
        """The configuration of each regime that takes the most memory."""
        top = {field: ALL if ALL in ends(axis) else max(ends(axis)) for field, axis in self.axes().items()}
        return [self.made(top | {"regime": regime}) for regime in ends(self.regimes)]

    def grid(self) -> list[Configuration]:
        """All configurations, each once, in order: the seed runs fastest, the regime slowest."""
        axes = self.axes()
        product = itertools.product(*(axes[field] for field in FIELDS))  # type: ignore[arg-type]
        return unique(self.made(dict(zip(FIELDS, values, strict=True))) for values in product)

    def draw(self, seed: int) -> list[Configuration]:
        """`trials` different configurations, drawn with a seed; fewer trials give the first of them."""
        assert self.trials
        generator = random.Random(seed)
        found: dict[Configuration, None] = {}
        for _ in range(1000 * self.trials):
            drawn = {field: draw_value(generator, field, axis) for field, axis in self.axes().items()}
            found[self.made(drawn)] = None
            if len(found) == self.trials:
                return list(found)
        raise MemtokError(
            f"expected {self.trials:,} different configurations in this space, found {len(found):,} in many draws; "
            "ask for fewer trials",
            argument="trials",
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, for the file that says what a sweep is."""
        defaults = {option.axis: (option.default,) for option in OPTIONS if option.axis not in WRITTEN_ALWAYS}
        shown = {name: describe(self[name]) for name in CHECKS if self[name] != defaults.get(name)}
        return {**shown, "search": self.search, "trials": self.trials}


def draw_value(generator: random.Random, field: str, axis: Axis) -> Any:
    """One value of an axis."""
    if not isinstance(axis, Range):
        return generator.choice(axis)
    if field in OPTION_OF:
        return generator.randint(int(axis.low), int(axis.high))
    return float(f"{math.exp(generator.uniform(math.log(axis.low), math.log(axis.high))):.6g}")


def values_of(configurations: Iterable[Configuration], field: str) -> set[Any]:
    """The values of a field, of the configurations in which it means something."""
    return {getattr(each, field) for each in configurations if applies(field, each.regime)}


def unique(configurations: Iterator[Configuration]) -> list[Configuration]:
    """Each once, where it comes first."""
    return list(dict.fromkeys(configurations))


def length(axis: Axis) -> float:
    """How many values an axis has."""
    if not isinstance(axis, Range):
        return len(axis)
    whole = isinstance(axis.low, int) and isinstance(axis.high, int)
    return axis.high - axis.low + 1 if whole else math.inf


def describe(axis: Axis) -> Any:
    """An axis as JSON has it."""
    return str(axis) if isinstance(axis, Range) else list(axis)


def check_axis(name: str, axis: Any, check: Callable[[str, Axis], None]) -> None:
    """MemtokError unless an axis is a Range or a list without repetition, whose values are right."""
    if not isinstance(axis, Range):
        if isinstance(axis, str) or not isinstance(axis, Sequence) or not len(axis):
            raise MemtokError(
                f"expected {Argument(name)} as a list of values, found {axis!r}; write for example [1, 5]"
            )
        shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in axis]
        if len(set(shown)) != len(shown):
            digits = " (in six digits)" if any(isinstance(value, float) for value in axis) else ""
            raise MemtokError(f"expected {Argument(name)}, each once{digits}, found {', '.join(shown)}; leave one out")
    check(name, axis)


def ends(axis: Axis) -> Sequence[Any]:
    """The values of a list, or the ends of a range."""
    return (axis.low, axis.high) if isinstance(axis, Range) else axis


def check_numbers(name: str, axis: Axis) -> None:
    """Rates above 0, decays of 0 or more; a range of either begins above 0, for it is drawn in the logarithm."""
    least_in = isinstance(axis, Range) or name == "learning_rates"
    for value in ends(axis):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and value > LARGEST:
            raise MemtokError(f"expected {Argument(name)} of {LARGEST:g} at most, found {value!r}; change it")
        if not number or not value >= 0 or (value == 0 and least_in):
            bound = "above 0" if least_in else "of 0 or more"
            raise MemtokError(f"expected {Argument(name)} as finite numbers {bound}, found {value!r}; change it")


def check_counts(name: str, axis: Axis) -> None:
    """Whole numbers, options from their least value on or `ALL` where they know it, seeds of 0 or more, listed."""
    least, most = next(((option.least, option.most) for option in OPTIONS if option.axis == name), (0, None))
    if name == "seeds" and isinstance(axis, Range):
        raise MemtokError(f"expected {Argument('seeds')} as a list, found the range {axis}; list them")
    for value in ends(axis):
        if value == ALL and most is not None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise MemtokError(
                f"expected {Argument(name)} as whole numbers of {least} or more, found {value!r}; change it"
            )
        if value >= 2**63:
            raise MemtokError(f"expected {Argument(name)} below 2**63, found {value!r}; change it")


def check_regimes(name: str, axis: Axis) -> None:
    """Regimes that compose."""
    for value in ends(axis):
        if value not in COMPOSABLE:
            raise MemtokError(
                f"expected {Argument(name)} among {', '.join(COMPOSABLE)}, which share a pass, found {value!r}; train "
                "it alone"
            )


def check_trials(trials: int | None, search: str) -> None:
    """MemtokError unless a search other than a grid knows how long to go on."""
    if trials is None:
        raise MemtokError(
            f"expected {Argument('trials')} for the search {search!r}, found none; say how many configurations"
        )
    if isinstance(trials, bool) or not isinstance(trials, int) or not 1 <= trials <= MOST:
        raise MemtokError(
            f"expected {Argument('trials')} as a whole number from 1 to {MOST:,}, found {trials!r}; change it"
        )


CHECKS: dict[str, Callable[[str, Axis], None]] = {
    "regimes": check_regimes,
    **{option.axis: check_counts for option in OPTIONS},
    "learning_rates": check_numbers,
    "weight_decays": check_numbers,
    "seeds": check_counts,
}
AXIS_OF = dict(zip(FIELDS, CHECKS, strict=True))  # field of a configuration -> axis of the space
