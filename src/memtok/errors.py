"""The exceptions that users of memtok meet: one, and a special case of it; and how their text is made printable."""

from __future__ import annotations


class MemtokError(ValueError):
    """Bad input. The message is one line: what was expected, what was found, what to do."""


class DivergedError(MemtokError):
    """A training whose loss, gradient or parameters stopped being finite."""


def printable(text: str) -> str:
    """One line in which names from files cannot steer the terminal: what does not print is written as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
