"""Only regular files are opened: a named pipe would be waited for without end, and a device need not end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from memtok.errors import MemtokError

KINDS = (
    (stat.S_ISFIFO, "named pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


def special_kind(path: str | Path) -> str:
    """What lies at `path` if it is neither a file nor a folder ("named pipe"), links followed; "" if it is.

    Raises OSError for a path that leads nowhere.
    """
    mode = os.stat(path).st_mode
    return next((name for is_kind, name in KINDS if is_kind(mode)), "")


# Where the shell puts what it has opened: `--config <(...)`, `< file`.
OPENED = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


def check_regular(path: str | Path, expected: str, *, streams: bool = False) -> None:
    """MemtokError, which names `expected`, if a pipe, a socket or a device lies at `path`.

    What is missing or a folder passes: opening it says so at once, and whoever opens it knows what to advise.
    streams: whether what the shell has opened for this process will do, as it does for a text that is read once.
    """
    if streams and str(path).startswith(OPENED):
        return
    try:
        kind = special_kind(path)
    except (OSError, ValueError):
        return
    if kind:
        raise MemtokError(f"expected {expected}, found a {kind} at {path}; copy its content into a file and name that")
