"""The one exception that users of memtok meet."""

from __future__ import annotations


class MemtokError(ValueError):
    """Bad input. The message is one line: what was expected, what was found, what to do."""
