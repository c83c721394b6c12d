"""Sweeps: many configurations of a task trained at once over few passes of the trunk.

Names are imported when they are first used: what checks the command line needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memtok.lazy import lazily

# Public name -> module that defines it.
_HOMES = {
    "Configuration": "memtok.sweeps.space",
    "Range": "memtok.sweeps.space",
    "Space": "memtok.sweeps.space",
    "DataResult": "memtok.sweeps.result",
    "RichSweepListener": "memtok.sweeps.progress",
    "SweepListener": "memtok.sweeps.progress",
    "SweepResult": "memtok.sweeps.result",
    "Trial": "memtok.sweeps.trials",
    "sweep": "memtok.sweeps.run",
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

__getattr__, __dir__ = lazily(__name__, _HOMES)
