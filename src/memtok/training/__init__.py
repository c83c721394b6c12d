"""Training of tasks and of whole models: settings, recipes, regimes, the loop, exact resume, progress.

Names are imported when they are first used: the command line reads the settings before it loads torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memtok.lazy import lazily

# Public name -> module that defines it.
_HOMES = {
    "REGIMES": "memtok.regimes",
    "Regime": "memtok.regimes",
    "FormChoice": "memtok.training.forms",
    "choose_form": "memtok.training.forms",
    "train": "memtok.training.loop",
    "Progress": "memtok.training.progress",
    "RichProgress": "memtok.training.progress",
    "RunInfo": "memtok.training.progress",
    "RECIPES": "memtok.training.recipes",
    "Recipe": "memtok.training.recipes",
    "FullModel": "memtok.training.regimes",
    "create": "memtok.training.regimes",
    "TrainResult": "memtok.training.result",
    "train_together": "memtok.training.together",
}

__all__ = [
    "RECIPES",
    "REGIMES",
    "FormChoice",
    "FullModel",
    "Progress",
    "Recipe",
    "Regime",
    "RichProgress",
    "RunInfo",
    "TrainResult",
    "choose_form",
    "create",
    "train",
    "train_together",
]

if TYPE_CHECKING:
    from memtok.regimes import REGIMES, Regime
    from memtok.training.forms import FormChoice, choose_form
    from memtok.training.loop import train
    from memtok.training.progress import Progress, RichProgress, RunInfo
    from memtok.training.recipes import RECIPES, Recipe
    from memtok.training.regimes import FullModel, create
    from memtok.training.result import TrainResult
    from memtok.training.together import train_together

__getattr__, __dir__ = lazily(__name__, _HOMES)
