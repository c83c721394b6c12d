"""The exceptions that users of memtok meet: one, and a special case of it."""

from __future__ import annotations


class MemtokError(ValueError):
    """Bad input. The message is one line: what was expected, what was found, what to do."""


class DivergedError(MemtokError):
    """A training whose loss, gradient or parameters stopped being finite."""
