"""UsageError, which distinguishes wrong arguments from work that failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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


def check_pairs(options: Mapping[str, Any]) -> None:
    """UsageError for options of a training that exclude or require each other. It does not import torch."""
    from memtok.checks import check_length, check_trace_options

    with arguments():
        check_length(options["steps"], options["epochs"])
        check_trace_options(*(options[name] for name in ("keep_traces", "trace_dir", "trace_limit", "views")))


def check_spec(spec: str) -> str:
    """Returns the name of a data source; UsageError for an unknown one. It does not import torch."""
    from memtok.data import check_spec as check

    with arguments():
        return check(spec)
