"""What the tests of training share: a small backbone, quick runs, and a listener that can interrupt them."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn

from memtok.backbone import Backbone
from memtok.data import DataSource
from memtok.training import Progress, TrainResult, create, train
from memtok.training.regimes import Trainable

STEPS = 8


def fingerprint(*modules: nn.Module) -> str:
    """Over the bytes of all parameters and buffers."""
    total = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            total.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def quick(trainable: Trainable, data: Any, **arguments: Any) -> TrainResult:
    """`train` with a few small steps, unless told otherwise."""
    settings: dict[str, Any] = {
        "steps": STEPS,
        "batch_size": 16,
        "learning_rate": 0.003 if trainable.regime == "full" else 0.02,
        "device": "cpu",
        "workers": 0,
        "augment": "none",
        "log_every": 2,
        "validate_every": 4,
    }
    if "epochs" in arguments:
        del settings["steps"]
    return train(trainable, data, **(settings | arguments))


def new_task(backbone: Backbone, data: DataSource, regime: str = "memory", **arguments: Any) -> Any:
    """A task, or a full model, for the classes of `data`, always with the same initial values."""
    memory = 2 if regime.startswith("memory") else None
    settings: dict[str, Any] = {"name": "digits", "classes": data.classes, "memory": memory, "seed": 0}
    return create(backbone, regime=regime, **(settings | arguments))


class Recorder(Progress):
    """Keeps what it is told; raises at step `stop`, as if the run had been interrupted there."""

    def __init__(self, stop: int | None = None) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.stop = stop

    def reading(self, done: int, total: int) -> None:
        self.calls.append(("reading", (done, total)))

    def caching(self, what: str, done: int, total: int) -> None:
        self.calls.append(("caching", (what, done, total)))

    def message(self, text: str) -> None:
        self.calls.append(("message", text))

    def start(self, info: Any) -> None:
        self.calls.append(("start", info))

    def step(self, step: int) -> None:
        self.calls.append(("step", step))
        if step == self.stop:
            raise KeyboardInterrupt

    def log(self, row: Any) -> None:
        self.calls.append(("log", row))

    def validation(self, row: Any, best: bool) -> None:
        self.calls.append(("validation", (row, best)))

    def close(self) -> None:
        self.calls.append(("close", None))

    def said(self, kind: str) -> list[Any]:
        """What one hook was told."""
        return [value for name, value in self.calls if name == kind]
