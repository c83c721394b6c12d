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

from memtok.regimes import Regime

if TYPE_CHECKING:
    from torch import Tensor

    from memtok.layers import Layer

Sizes = Mapping[str, int]
"""The number of classes under "classes", and the options of all parts by name."""


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
    def statistics_shape(self) -> tuple[int, int]: ...


def always(regime: Regime) -> bool:
    """Fits every regime."""
    return True


@dataclass(frozen=True, kw_only=True)
class Option:
    """A whole number that sizes a part: a keyword of `Task.create`, an option of `train`, an axis of `sweep`.

    least: the smallest value, which a task has where the option does not fit its regime. default: where it does. help:
    for the command line. axis: its name as an axis of a sweep, the plural if there is one. heading: in tables and plots
    of a sweep. tag: what stands before the value in the name of a sweep's configuration; with an empty one the value
    always stands there, else only where it is not the default. fits: which regimes it is for.
    """

    name: str
    least: int = 0
    default: int = 0
    help: str
    axis: str
    heading: str
    tag: str
    fits: Callable[[Regime], bool] = always

    def absent(self, regime: Regime) -> int:
        """The value where none is given."""
        return self.default if self.fits(regime) else self.least


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several words that says how a part works: a keyword of `Task.create`, and a field in a task file's header.

    The first of `values` is the default, and the only one where it does not fit the regime.
    """

    name: str
    values: tuple[str, ...]
    help: str
    fits: Callable[[Regime], bool] = always


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
    def specs(self, trunk: Trunk, regime: Regime, sizes: Sizes) -> dict[str, Spec]:
        """The tensors that a task of this regime and these sizes has, by name."""

    @abstractmethod
    def sizes(self, tensors: Mapping[str, Any]) -> dict[str, int]:
        """The options that these tensors, by name, were made with; 0 for one whose tensor is missing or misshapen."""

    def check(self, trunk: Trunk, sizes: Sizes) -> None:  # noqa: B027 - most fit every backbone
        """MemtokError for sizes that this backbone cannot have."""

    def begin(self, trunk: Trunk, regime: Regime, drawn: dict[str, Tensor]) -> None:  # noqa: B027 - most change nothing
        """Changes freshly drawn tensors, float32 on the CPU, in place, where they start from something known."""

    def reads(self, sizes: Sizes) -> int:
        """How many of the last layers' statistics `logits` reads; see `Backbone.statistics`."""
        return 0

    def logits(self, tensors: Mapping[str, Tensor], features: Tensor, statistics: Tensor | None) -> Tensor | None:
        """(B, classes) what the part adds to a task's logits, None for nothing.

        features: (B, max(queries, 1) * D) the class tokens after the final norm, side by side. statistics: (B, n, S, D)
        of the last n layers, at least as many as `reads` says.
        """
        return None

    def cost(self, trunk: Trunk, sizes: Sizes) -> int:
        """Multiply-adds of matrix products that it adds to the pass over one image when nothing trains."""
        return 0

    def kept(self, trunk: Trunk, sizes: Sizes, images: int) -> int:
        """How many numbers of the forward pass over so many images it keeps for the gradient, its parameters left out.

        What another part counts is not counted again.
        """
        return 0


def length(tensor: Any, dimension: int, dimensions: int) -> int:
    """The size of one dimension; -1 for what has not so many dimensions."""
    shape = getattr(tensor, "shape", ())
    return int(shape[dimension]) if len(shape) == dimensions else -1
