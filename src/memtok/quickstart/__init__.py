"""`memtok quickstart`: the whole workflow on what is installed, with a report."""

from __future__ import annotations

from memtok.quickstart.console import Listener, RichListener
from memtok.quickstart.job import run
from memtok.quickstart.result import PredictedImage, QuickstartResult, QuickstartSettings, TrainedRun

__all__ = [
    "Listener",
    "PredictedImage",
    "QuickstartResult",
    "QuickstartSettings",
    "RichListener",
    "TrainedRun",
    "run",
]
