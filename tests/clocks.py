"""What tests need because a file system's clock moves in ticks."""

from __future__ import annotations

import os
from pathlib import Path


def with_the_old_time(path: Path, before: os.stat_result) -> None:
    """Gives a changed file the time of modification that it had `before`.

    It is set until the file's time of change, which nobody can set, differs from that of `before`: two changes within a
    tick of the clock have the same one, and code that tells files apart by it would be right or wrong by chance.
    """
    while True:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        if path.stat().st_ctime_ns != before.st_ctime_ns:
            return
