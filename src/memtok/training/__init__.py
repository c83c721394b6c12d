"""Training of tasks and of whole models: recipes, regimes, the loop, exact resume, progress."""

from __future__ import annotations

from memtok.regimes import REGIMES, Regime
from memtok.training.loop import train
from memtok.training.progress import Progress, RichProgress, RunInfo
from memtok.training.recipes import RECIPES, Recipe
from memtok.training.regimes import FullModel, create
from memtok.training.result import TrainResult
from memtok.training.together import train_together

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
