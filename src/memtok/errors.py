"""The exceptions that users of memtok meet: one, and a special case of it; and how their text is made printable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# How an Argument stands in the text of a message: its name and its value, if any, as Python writes it. No name of a
# file and no repr has a zero byte.
MENTIONED = re.compile(r"\0([^\0]*)\0([^\0]*)\0")


@dataclass(frozen=True)
class Argument:
    """An argument that a message mentions: `f"expected {Argument('steps')} or {Argument('epochs')}, found both"`.

    The message of a MemtokError has it as Python writes it, `steps` or with a value `steps=3`; the command line has the
    option, `--steps` or `--steps 3`. value: `...` for none; None is an option left out, True a switch.
    """

    name: str
    value: object = ...

    def __format__(self, spec: str) -> str:
        """Its place in the message of a MemtokError."""
        return f"\0{self.name}\0{'' if self.value is ... else repr(self.value)}\0"


def spelled(message: str, options: Mapping[str, str]) -> str:
    """A message with its arguments as the `options` that they have, and those that have none as Python writes them."""

    def spell(match: re.Match[str]) -> str:
        name, value = match.groups()
        option = options.get(name)
        if option is None:
            return f"{name}={value}" if value else name
        typed = value.strip("'")
        return {"": option, "True": option, "None": f"no {option}"}.get(typed, f"{option} {typed}")

    return MENTIONED.sub(spell, message)


class MemtokError(ValueError):
    """Bad input. The message is one line: what was expected, what was found, what to do.

    argument: the name of the argument that the error is about, None if it is about none; by default the first one that
    the message mentions. message: as it was given, with each `Argument` in it, for an error that says more.
    """

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(spelled(message, {}))
        first = MENTIONED.search(message)
        self.message = message
        self.argument = argument if argument is not None or first is None else first[1]


class DivergedError(MemtokError):
    """A training whose loss, gradient or parameters stopped being finite."""


def printable(text: str) -> str:
    """One line in which names from files cannot steer the terminal: what does not print is written as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def one_line(error: object, limit: int = 200) -> str:
    """What an error says, on one line of at most `limit` characters; its class where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
