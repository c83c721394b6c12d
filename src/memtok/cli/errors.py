"""What tells wrong arguments from work that failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from memtok.errors import MemtokError


class UsageError(MemtokError):
    """Arguments that are wrong by themselves, whatever the files hold. Exit code 2."""


@contextmanager
def arguments() -> Iterator[None]:
    """Around library calls that only look at arguments: their MemtokError becomes a UsageError."""
    try:
        yield
    except MemtokError as error:
        raise UsageError(error.message, argument=error.argument) from error


def check_spec(spec: str) -> str:
    """A data source as it may be typed; UsageError for a name that no data set has. Brings no torch along."""
    from memtok.data import check_spec as check

    with arguments():
        return check(spec)
