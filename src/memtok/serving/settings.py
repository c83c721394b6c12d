"""What the server's operator decides: limits, each with its default."""

from __future__ import annotations

from dataclasses import dataclass, fields

from memtok.errors import Argument, MemtokError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a server.

    max_batch: images in one pass of the model. max_wait_ms: how long the first of them waits for others while the
    model is idle. max_queue: images that wait for the model, and requests that are being read; beyond it the answer is
    429. timeout: seconds for a request, reading it included; a request may ask for less. max_body: bytes of a request.
    max_pixels: width times height of an image before it is resized. max_images: images of one request. max_tasks: tasks
    that are served at once. rate: requests per second of one key, or without keys of one address; None for any.
    """

    max_batch: int = 16
    max_wait_ms: float = 4.0
    max_queue: int = 256
    timeout: float = 30.0
    max_body: int = 32 * 2**20
    max_pixels: int = 50_000_000
    max_images: int = 64
    max_tasks: int = 2000
    rate: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name == "rate":
                continue
            least = 0 if field.name == "max_wait_ms" else 1 if isinstance(field.default, int) else 0.001
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
                raise MemtokError(f"expected {Argument(field.name)} of {least} or more, found {value!r}; change it")
        if self.max_images > self.max_queue:
            raise MemtokError(
                f"expected {Argument('max_queue')} of at least {Argument('max_images')} ({self.max_images}), found "
                f"{self.max_queue}; raise it, or lower the other"
            )
