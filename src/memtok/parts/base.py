"""A part is one capacity of a task: its tensors, its options, how it starts, what decays, its cost, its mathematics.

What is declared here is all that others need: `Task.create` draws the tensors, task files are checked against them, the
command line has the options, a sweep searches over them. Nothing here or in the parts imports torch at import: headers
are read and help is answered without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from memtok.checks import check_choice
from memtok.errors import Argument, MemtokError
from memtok.levels import NO_READS, Reads, Statistics
from memtok.regimes import ALL, REGIMES, Regime
from memtok.values import Values, Whole, WholeOr

if TYPE_CHECKING:
    from torch import Tensor

    from memtok.layers import Layer

Moments = Mapping[str, tuple["Tensor", "Tensor"]]
"""By statistic, its mean and its standard deviation over images, (n, k, D) each, of the last n levels."""

Form = Mapping[str, Any]
"""The number of classes under "classes", and the options and choices of all parts by name."""


class Trunk(Protocol):
    """What a part may know of the backbone; see `memtok.Backbone`."""

    @property
    def depth(self) -> int: ...

    @property
    def dim(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    @property
    def layers(self) -> tuple[Layer, ...]: ...

    @property
    def start_token(self) -> Tensor: ...

    @property
    def grid(self) -> tuple[int, int]: ...

    def vectors(self, statistic: str) -> int: ...


def always(regime: Regime) -> bool:
    """Fits every regime."""
    return True


@dataclass(frozen=True, kw_only=True)
class Option:
    """A whole number that sizes a part: a keyword of `Task.create`, an option of `train`, an axis of `sweep`.

    least: the smallest value, which a task has where the option does not fit its regime. default: where it does. help:
    for the command line. axis: its name as an axis of a sweep, the plural if there is one. heading: in tables and plots
    of a sweep. tag: what stands before the value in the name of a sweep's configuration; with an empty one the value
    always stands there, else only where it is not the default. fits: which regimes it is for. most: where `ALL` stands
    for the largest value that a backbone allows, that value.
    """

    name: str
    least: int = 0
    default: int = 0
    help: str
    axis: str
    heading: str
    tag: str
    fits: Callable[[Regime], bool] = always
    most: Callable[[Trunk], int] | None = None

    @property
    def values(self) -> Values:
        """Which values it may have, whatever the regime and the backbone."""
        return Whole(self.least) if self.most is None else WholeOr(self.least, word=ALL)

    @property
    def defaults(self) -> str:
        """The default in words, and that of each regime that has another one."""
        others = [
            f"; {regime.needs[self.name]} in {regime.name}" for regime in REGIMES.values() if self.name in regime.needs
        ]
        return f"{self.default}{''.join(others)}"

    def absent(self, regime: Regime) -> int | str:
        """The value where none is given."""
        return regime.needs.get(self.name, self.default) if self.fits(regime) else self.least

    def check(self, regime: Regime, value: Any) -> None:
        """MemtokError for what is no value of it, or none in this regime."""
        self.values.check(self.name, value)
        if value != self.least and not self.fits(regime):
            raise MemtokError(
                f"expected {Argument(self.name, self.least)} in regime {regime.name!r}, found "
                f"{Argument(self.name, value)}; leave it out, or use {Argument('regime', 'memory')}",
                argument=self.name,
            )
        if value == self.least and self.name in regime.needs:
            raise MemtokError(
                f"expected {Argument(self.name)} of {self.least + 1} or more in regime {regime.name!r}, found {value}; "
                f"leave it out, or use {Argument('regime', 'head')}",
                argument=self.name,
            )

    def on(self, trunk: Trunk, value: int | str) -> int:
        """The number that a value stands for on a backbone."""
        return self.most(trunk) if self.most is not None and value == ALL else int(value)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several words that says how a part works: a keyword of `Task.create`, and a field in a task file's header.

    default: the only one where it does not fit the regime. several: some of the words, joined by a plus sign. of: the
    option without which it means nothing, and is not recorded; None: it is recorded of every task.
    """

    name: str
    values: tuple[str, ...]
    default: str
    help: str
    several: bool = False
    of: str | None = None
    fits: Callable[[Regime], bool] = always

    def check(self, word: Any) -> str:
        """`word`, several of them in the order of `values`; MemtokError if it is none of them."""
        if not self.several:
            return check_choice(self.name, word, self.values)
        words = word.split("+") if isinstance(word, str) else []
        if not words or len(set(words)) < len(words) or not set(words) <= set(self.values):
            raise MemtokError(
                f"expected {Argument(self.name)} as some of {', '.join(self.values)}, each once, joined by +, found "
                f"{word!r}; write for example {self.default}"
            )
        return "+".join(value for value in self.values if value in words)

    def means(self, sizes: Mapping[str, int | str]) -> bool:
        """Whether it means something in a task with these options."""
        return self.of is None or sizes[self.of] != 0


@dataclass(frozen=True)
class Spec:
    """One tensor: its shape, the standard deviation that it is drawn with (0: it starts at zero), whether it decays.

    Values are drawn in the order in which parts and their tensors are declared, so that a seed means the same for ever.
    """

    shape: tuple[int, ...]
    std: float = 0.0
    decays: bool = True


class Part(ABC):
    """One capacity. A part without state: the tensors lie in the task.

    options: what it is sized by. choices: what else is recorded of it. in_layers: whether its tensors act inside the
    layers, on the task's own tokens, and not after them. names: all tensors that it may have, as a task file calls
    them. No name is the end of another one behind a dot, so that in a file of several tasks `tasks.NAME.TENSOR` is read
    in one way only.
    """

    options: tuple[Option, ...] = ()
    choices: tuple[Choice, ...] = ()
    names: tuple[str, ...] = ()
    in_layers: bool = False

    @abstractmethod
    def specs(self, trunk: Trunk, regime: Regime, form: Form) -> dict[str, Spec]:
        """The tensors that a task of this regime and these sizes has, by name."""

    @abstractmethod
    def sizes(self, tensors: Mapping[str, Any]) -> dict[str, int]:
        """The options that these tensors, by name, were made with; 0 for one whose tensor is missing or misshapen."""

    def check(self, trunk: Trunk, form: Form) -> None:  # noqa: B027 - most fit every backbone
        """MemtokError for sizes that this backbone cannot have."""

    def begin(self, trunk: Trunk, regime: Regime, drawn: dict[str, Tensor]) -> None:  # noqa: B027 - most change nothing
        """Changes freshly drawn tensors, float32 on the CPU, in place, where they start from something known."""

    def reads(self, form: Form) -> Reads:
        """Which statistics of the trunk's levels `logits` reads."""
        return NO_READS

    def measured(self, trunk: Trunk, form: Form) -> dict[str, Spec]:
        """What a task has of it only while it trains, and does not train: set by `measure`, folded in by `folded`.

        Neither task files nor `Task.parameters()` have these tensors.
        """
        return {}

    def measure(self, form: Form, moments: Moments) -> dict[str, Tensor]:
        """The tensors that are `measured`, from statistics of training images, before the first step."""
        return {}

    def folded(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """All tensors of a task without those that are `measured`, so that the answers are the same to rounding."""
        return tensors

    def logits(
        self, tensors: Mapping[str, Tensor], choices: Mapping[str, str], features: Tensor, statistics: Statistics
    ) -> Tensor | None:
        """(B, classes) what the part adds to a task's logits, None for nothing.

        features: (B, max(queries, 1) * D) the class tokens after the final norm, side by side. statistics: at least
        those that `reads` names, of any precision.
        """
        return None

    def rate(self, trunk: Trunk, form: Form) -> float:
        """Its learning rate with Adam, as a multiple of that of class tokens."""
        return 1.0

    def cost(self, trunk: Trunk, form: Form) -> int:
        """Multiply-adds of matrix products that it adds to the pass over one image when nothing trains."""
        return 0

    def kept(self, trunk: Trunk, form: Form, images: int) -> int:
        """How many numbers of the forward pass over so many images it keeps for the gradient, its parameters left out.

        What another part counts is not counted again.
        """
        return 0


def length(tensor: Any, dimension: int, dimensions: int) -> int:
    """The size of one dimension; -1 for what has not so many dimensions."""
    shape = getattr(tensor, "shape", ())
    return int(shape[dimension]) if len(shape) == dimensions else -1
