"""The settings of a load test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from memtok.errors import Argument, MemtokError
from memtok.serving.settings import Limits

PARTS = ("rates", "changes", "soak")
QUESTIONS = ("all", "one")
SERVERS = ("memtok", "unbatched", "models", "lora")
LABELS = {
    "memtok": "memtok serve",
    "unbatched": "memtok serve --max-batch 1",
    "models": "K separate models",
    "lora": "PEFT LoRA r=8, switched",
}
SATURATING = 1.3
HALF = 0.5
BOUND_TASKS = 100  # where the project's bounds stand


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is loaded, and how long.

    backbone: a source of `memtok.load_backbone`; image_size: pixels, None for the model's own. tasks: how many, one
    server after another. classes, cells: of each task. questions: `all` asks every task of an image, `one` one task
    that is drawn for each request. servers: see `LABELS`. max_batch: images in a pass; rates: offered load, as shares
    of the images per second of the model's own batched pass. seconds: of each load; warm: of these the share at the
    start that is not counted. parts: of `PARTS`. steady_tasks: in the parts `changes` and `soak`, which last
    changes_seconds and soak_seconds, at the shares changes_share and soak_share. pause: seconds between two changes of
    a task in the part `changes`. images: how many different JPEG files are sent, their shorter side `side` pixels.
    """

    backbone: str
    image_size: int | None = None
    tasks: tuple[int, ...] = (1, 10, 100, 1000)
    classes: int = 10
    cells: int = 5
    questions: tuple[str, ...] = QUESTIONS
    servers: tuple[str, ...] = SERVERS
    max_batch: int = Limits().max_batch
    rates: tuple[float, ...] = (0.25, HALF, 0.7, 0.8, 0.9, SATURATING)
    seconds: float = 60.0
    warm: float = 0.1
    parts: tuple[str, ...] = PARTS
    steady_tasks: int = BOUND_TASKS
    changes_seconds: float = 120.0
    changes_share: float = 0.3
    pause: float = 0.0
    soak_seconds: float = 600.0
    soak_share: float = HALF
    images: int = 64
    side: int = 256
    passes: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("parts", PARTS), ("questions", QUESTIONS), ("servers", SERVERS)):
            check_among(name, getattr(self, name), known)
        for name in ("tasks", "rates"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values) or min(values) <= 0:
                raise MemtokError(f"expected {Argument(name)} above 0, each once, found {list(values)}; change them")

    def bound(self, tasks: int, value: float) -> float | None:
        """A bound of the project, which is stated for 100 tasks and the server's own batch; None for any others."""
        return value if tasks == BOUND_TASKS and self.max_batch == Limits().max_batch else None

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def check_among(name: str, values: Sequence[str], known: Sequence[str]) -> None:
    """MemtokError unless all values are known, each once."""
    if not values or len(set(values)) != len(values) or not set(values) <= set(known):
        raise MemtokError(f"expected {Argument(name)} among {', '.join(known)}, each once, found {list(values)}")
