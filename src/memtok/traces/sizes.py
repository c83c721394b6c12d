"""How much room there is for traces, and how many fit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

SHARE = 0.5  # of what is free, unless a limit is given


def default_limit(place: str, folder: Path | None, device: torch.device, taken: int = 0) -> int:
    """Bytes that traces may take in `place` unless told otherwise: half of what is free there.

    folder: of a store on disk. taken: bytes that the store has already, which count as free.
    """
    if place == "gpu":
        free = torch.cuda.mem_get_info(device)[0]
    elif place == "disk":
        assert folder is not None
        free = shutil.disk_usage(folder).free
    else:
        free = free_memory()
    return int((free + taken) * SHARE)


def free_memory() -> int:
    """Bytes of main memory that a program can still get."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass  # no Linux
    names = getattr(os, "sysconf_names", {})
    pages = os.sysconf("SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in names else "SC_PHYS_PAGES")
    return pages * os.sysconf("SC_PAGE_SIZE")


def taken_bytes(folder: Path) -> int:
    """What the files in `folder` take on the disk; 0 where there is no folder."""
    try:
        return sum(path.stat().st_blocks * 512 for path in folder.iterdir() if path.is_file())
    except (OSError, AttributeError):  # no such folder; a system that does not tell
        return 0


def default_trace_dir() -> Path:
    """Where traces are kept unless told otherwise: $XDG_CACHE_HOME/memtok/traces, else ~/.cache/memtok/traces."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "memtok" / "traces"
