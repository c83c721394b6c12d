"""SIGINT and SIGTERM in a run that saves its state: they wait until the step is done and saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 - no error
    """A signal waits, and what is being done need not be finished first."""


class Interrupts:
    """A context in which signals wait for `deliver`; a second one is delivered at once.

    They go to the handlers that were there before: Ctrl-C becomes a KeyboardInterrupt, and SIGTERM ends the process
    unless the caller handles it. After a handler that returns the run goes on. Signals reach the main thread only: in
    other threads nothing waits, nor where `active` is False.

    Attributes:
        pending: the number of the signal that waits, None if there is none.
    """

    def __init__(self, active: bool = True) -> None:
        self.active = active
        self.pending: int | None = None
        self.before: dict[int, Any] = {}  # the caller's handlers

    def __enter__(self) -> Self:
        if self.active and threading.current_thread() is threading.main_thread():
            # A signal that is ignored (SIG_IGN) or handled outside Python (None) is left as it is.
            found = {number: signal.getsignal(number) for number in SIGNALS}
            self.before = {number: one for number, one in found.items() if one not in (None, signal.SIG_IGN)}
            for number in self.before:
                signal.signal(number, self.note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
        if self.pending is not None:
            signal.raise_signal(self.pending)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: it waits, and a second one lets it through."""
        if self.pending is not None:
            self.deliver()
        else:
            self.pending = number

    def check(self) -> None:
        """Raises Interrupted if a signal waits."""
        if self.pending is not None:
            raise Interrupted

    def deliver(self) -> None:
        """Gives the signal that waits, if there is one, to the caller's handler."""
        number, self.pending = self.pending, None
        if number is not None:
            signal.signal(number, self.before[number])
            try:
                signal.raise_signal(number)
            finally:
                signal.signal(number, self.note)
