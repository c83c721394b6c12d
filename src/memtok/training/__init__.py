"""Training of tasks and of whole models: settings, recipes, regimes, the loop, exact resume, progress.

Names are imported when they are first used: the command line reads the settings before it loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Public name -> module that defines it.
_HOMES = {
    "train": "loop",
    "Progress": "progress",
    "RichProgress": "progress",
    "RunInfo": "progress",
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "REGIMES": "regimes",
    "FullModel": "regimes",
    "Regime": "regimes",
    "create": "regimes",
    "TrainResult": "result",
    "train_together": "together",
}

__all__ = [
    "RECIPES",
    "REGIMES",
    "FullModel",
    "Progress",
    "Recipe",
    "Regime",
    "RichProgress",
    "RunInfo",
    "TrainResult",
    "create",
    "train",
    "train_together",
]

if TYPE_CHECKING:
    from memtok.training.loop import train
    from memtok.training.progress import Progress, RichProgress, RunInfo
    from memtok.training.recipes import RECIPES, Recipe
    from memtok.training.regimes import REGIMES, FullModel, Regime, create
    from memtok.training.result import TrainResult
    from memtok.training.together import train_together


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'memtok.training' has no attribute {name!r}")
    value = getattr(import_module(f"memtok.training.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
