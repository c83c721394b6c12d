"""Sweeps: many configurations of a task trained at once over few passes of the trunk.

Names are imported when they are first used: what checks the command line needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Public name -> module that defines it.
_HOMES = {
    "Configuration": "space",
    "Range": "space",
    "Space": "space",
    "DataResult": "result",
    "RichSweepListener": "progress",
    "SweepListener": "progress",
    "SweepResult": "result",
    "Trial": "trials",
    "sweep": "run",
}

__all__ = [
    "Configuration",
    "DataResult",
    "Range",
    "RichSweepListener",
    "Space",
    "SweepListener",
    "SweepResult",
    "Trial",
    "sweep",
]

if TYPE_CHECKING:
    from memtok.sweeps.progress import RichSweepListener, SweepListener
    from memtok.sweeps.result import DataResult, SweepResult
    from memtok.sweeps.run import sweep
    from memtok.sweeps.space import Configuration, Range, Space
    from memtok.sweeps.trials import Trial


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'memtok.sweeps' has no attribute {name!r}")
    value = getattr(import_module(f"memtok.sweeps.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
