"""UsageError, which distinguishes wrong arguments from work that failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from memtok.errors import MemtokError


class UsageError(MemtokError):
    """Arguments that are wrong whatever the content of files. Exit code 2."""


@contextmanager
def arguments() -> Iterator[None]:
    """Around library calls that only check arguments: their MemtokError becomes a UsageError."""
    try:
        yield
    except MemtokError as error:
        raise UsageError(error.message, argument=error.argument) from error


def check_spec(spec: str) -> str:
    """Returns the name of a data source; UsageError for an unknown one. It does not import torch."""
    from memtok.data import check_spec as check

    with arguments():
        return check(spec)
