"""A part is one capacity of a task: its tensors, its options, how it starts, what decays, and its mathematics.

What is declared here is all that others need: `Task.create` draws the tensors, task files are checked against them, the
command line asks for the options. Nothing here or in the parts imports torch: headers are read and help is answered
without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

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
    def layers(self) -> tuple[Layer, ...]: ...

    @property
    def class_token(self) -> Tensor | None: ...


@dataclass(frozen=True)
class Option:
    """A whole number that sizes a part: a keyword of `Task.create`, and an option of the command line.

    default: None where it follows from the regime. help: for the command line.
    """

    name: str
    least: int
    default: int | None
    help: str


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

    options: what it is sized by. names: all tensors that it may have, as a task file calls them. No name is the end of
    another one behind a dot, so that in a file of several tasks `tasks.NAME.TENSOR` is read in one way only.
    """

    options: tuple[Option, ...] = ()
    names: tuple[str, ...] = ()

    @abstractmethod
    def specs(self, trunk: Trunk, regime: str, sizes: Sizes) -> dict[str, Spec]:
        """The tensors that a task of this regime and these sizes has, by name."""

    @abstractmethod
    def sizes(self, tensors: Mapping[str, Any]) -> dict[str, int]:
        """The options that these tensors, by name, were made with; -1 for one whose tensor has no such shape."""

    def begin(self, trunk: Trunk, regime: str, drawn: dict[str, Tensor]) -> None:  # noqa: B027 - most change nothing
        """Changes freshly drawn tensors, float32 on the CPU, in place, where they start from something known."""


def length(tensor: Any, dimension: int, dimensions: int) -> int:
    """The size of one dimension; -1 for what has not so many dimensions."""
    shape = getattr(tensor, "shape", ())
    return int(shape[dimension]) if len(shape) == dimensions else -1
