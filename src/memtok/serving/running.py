"""Running the application under uvicorn: where it listens, what it prints, how it stops."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from types import FrameType

import uvicorn
from fastapi import FastAPI

from memtok.errors import MemtokError

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names under which a server on loopback is reached. A page of another host that resolves to it is refused."""

GRACE = 60  # seconds that a stop waits for requests that were taken


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; MemtokError for an address that is taken or is none. Port 0 takes a free one."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with ExitStack() as stack:
            found = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, port))
            stack.pop_all()  # it stays open
            return found
    except (OSError, OverflowError) as error:
        raise MemtokError(f"expected an address to listen on, found {host}:{port} ({error}); choose another") from error


def address_of(listening: socket.socket) -> str:
    """The URL of a socket that listens."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run(app: FastAPI, listening: socket.socket, started: Callable[[], None], *, log_requests: bool = False) -> None:
    """Answers until SIGINT or SIGTERM; then it takes no more and finishes what it took. `started` is called once.

    A second SIGINT drops what is left: KeyboardInterrupt.
    """
    # Of large images, whose limit is ours, and of broken metadata: Python would remember each text that clients cause.
    warnings.filterwarnings("ignore", module="PIL")
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=log_requests,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=GRACE,
    )
    if log_requests:
        access = logging.getLogger("uvicorn.access")
        access.setLevel(logging.INFO)
        access.addHandler(logging.StreamHandler())
    server = Announcing(config, started)
    server.run(sockets=[listening])
    if server.force_exit:
        raise KeyboardInterrupt


class Announcing(uvicorn.Server):
    """A server that says when it answers, and for which a signal is a wish and no failure."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        if self.started:
            self._announce()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stops at a signal, as uvicorn does, but does not raise it again: a stop that was asked for is success."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes note of a signal."""
        super().handle_exit(sig, frame)
        if self.force_exit:  # uvicorn would show a traceback of everything that is dropped
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
