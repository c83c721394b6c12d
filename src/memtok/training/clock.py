"""The times of a run, which its state keeps, so that those of all sessions add up. No decision but when to save."""

from __future__ import annotations

import time

from memtok.training.state import RunState


class Clock:
    """Counts the seconds of a run on from what its state has. images: seen so far."""

    def __init__(self, state: RunState, images: int) -> None:
        self.state, self.before = state, state.seconds
        self.begun = self.training_since = time.perf_counter()
        self.marked_images, self.marked_seconds = images, state.training_seconds

    def seconds(self) -> float:
        """Since the start of the run; its state has them then."""
        self.state.seconds = self.before + time.perf_counter() - self.begun
        return self.state.seconds

    def pause(self) -> None:
        """Training stops for a while, for a validation or to save."""
        self.state.training_seconds += time.perf_counter() - self.training_since

    def go_on(self) -> None:
        """Training goes on."""
        self.training_since = time.perf_counter()

    def speed(self, images: int) -> float:
        """Images per second of training since the last call; `images` were seen in all."""
        seconds = self.state.training_seconds - self.marked_seconds
        found = (images - self.marked_images) / max(seconds, 1e-9)
        self.marked_images, self.marked_seconds = images, self.state.training_seconds
        return found
