"""Which values a setting may have: checked in Python, read from a word of the command line or of a YAML file.

Importing this module brings no torch along.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from os import PathLike
from typing import Any

from memtok.errors import Argument, MemtokError

MOST = 1_000_000_000  # of anything that is counted
LARGEST = 3.0e38  # near the end of single precision


@dataclass(frozen=True)
class Values(ABC):
    """Some kind of values.

    also: a type that Python takes besides; whoever declares it checks such values.
    """

    _: KW_ONLY
    also: type | None = None

    @property
    @abstractmethod
    def expected(self) -> str:
        """In words, such as `a whole number of 1 or more`."""

    @abstractmethod
    def holds(self, value: Any) -> bool:
        """Whether `value` is one of them."""

    @property
    def metavar(self) -> str:
        """How help calls one of them; nothing for a switch."""
        return ""

    def read(self, word: str) -> Any:
        """The value that a word stands for; ValueError if it is none of these. Switches are read by nobody."""
        raise ValueError(word)

    def takes(self, value: Any) -> bool:
        """Whether Python takes `value`: one of them, or one of the type `also`."""
        return self.holds(value) or (self.also is not None and isinstance(value, self.also))

    def check(self, name: str, value: Any) -> None:
        """MemtokError unless Python takes `value`, of the argument `name`."""
        if not self.takes(value):
            raise MemtokError(f"expected {Argument(name)} as {self.expected}, found {value!r}; change it")


@dataclass(frozen=True)
class Whole(Values):
    """Whole numbers from `least` to `most`. unit: how help calls one."""

    least: int = 0
    most: int = MOST
    unit: str = "N"

    @property
    def expected(self) -> str:
        return f"a whole number of {self.least} or more"

    @property
    def metavar(self) -> str:
        return self.unit

    def holds(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= self.least

    def read(self, word: str) -> int:
        if not self.holds(number := int(word)):
            raise ValueError(word)
        return number

    def check(self, name: str, value: Any) -> None:
        super().check(name, value)
        if self.holds(value) and value > self.most:  # perhaps too long to be shown
            raise MemtokError(f"expected {Argument(name)} of {self.most:,} at most, found more; change it")


@dataclass(frozen=True)
class WholeOr(Whole):
    """Whole numbers from `least` on, or one word."""

    word: str = "all"

    @property
    def expected(self) -> str:
        return f"{super().expected}, or {self.word}"

    @property
    def metavar(self) -> str:
        return f"{self.unit}|{self.word}"

    def read(self, word: str) -> Any:
        return word if word == self.word else super().read(word)

    def takes(self, value: Any) -> bool:
        return value == self.word or super().takes(value)


@dataclass(frozen=True)
class Number(Values):
    """Numbers from zero on, or above zero, finite in single precision. unit: how help calls one."""

    above_zero: bool = False
    unit: str = "X"

    @property
    def expected(self) -> str:
        return f"a finite number {'above 0' if self.above_zero else 'of 0 or more'}"

    @property
    def metavar(self) -> str:
        return self.unit

    def holds(self, value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        return number and not (self.above_zero and value == 0)

    def read(self, word: str) -> float:
        if not self.holds(number := float(word)):
            raise ValueError(word)
        return number

    def check(self, name: str, value: Any) -> None:
        super().check(name, value)
        if self.holds(value) and value > LARGEST:
            raise MemtokError(f"expected {Argument(name)} of {LARGEST:g} at most, found more; change it")


@dataclass(frozen=True)
class OneOf(Values):
    """A few words."""

    words: tuple[str, ...]

    @property
    def expected(self) -> str:
        return f"one of {', '.join(self.words)}"

    @property
    def metavar(self) -> str:
        return "|".join(self.words)

    def holds(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.words

    def read(self, word: str) -> str:
        if word not in self.words:
            raise ValueError(word)
        return word

    def check(self, name: str, value: Any) -> None:
        if not self.takes(value):
            raise MemtokError(
                f"expected {Argument(name)} among {', '.join(self.words)}, found {value!r}; choose one of these"
            )


@dataclass(frozen=True)
class Place(Values):
    """Paths of files or folders. unit: how help calls one."""

    unit: str = "FILE"

    @property
    def expected(self) -> str:
        return "a path"

    @property
    def metavar(self) -> str:
        return self.unit

    def holds(self, value: Any) -> bool:
        return isinstance(value, str | PathLike)

    def read(self, word: str) -> str:
        return word


@dataclass(frozen=True)
class Switch(Values):
    """True or False; on the command line an option without value."""

    @property
    def expected(self) -> str:
        return "True or False"

    def holds(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class YesNo(Switch):
    """True, False or, where nothing is said, None; on the command line `--flag` and `--no-flag`."""

    @property
    def expected(self) -> str:
        return "True, False or None"
