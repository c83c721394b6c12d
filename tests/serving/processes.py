"""`memtok serve` as a process, and requests to it that stay in flight until a test goes on with them."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Self

import memtok

MEMTOK = [sys.executable, "-m", "memtok"]
SOURCE = str(Path(memtok.__file__).parents[1])
PATIENCE = 300
"""Seconds after which a process counts as stuck; far more than any machine needs."""


class Process:
    """A server that listens. `output` has its lines so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.output: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            self.output.append(line)
            if found := re.search(r" on http://[\d.]+:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise AssertionError(f"it did not start: {''.join(self.output)}")

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of a request over a connection of its own."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to it."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, once it has ended. What it printed meanwhile is in `output`."""
        assert self.process.stdout is not None
        self.output += self.process.stdout.readlines()
        return self.process.wait(PATIENCE)

    def refuses(self) -> None:
        """Returns when it takes no new connection."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE).close()
            except ConnectionRefusedError:
                return
            time.sleep(0.01)
        raise AssertionError("it still takes connections")


@contextmanager
def serving(command: Sequence[str], *, cwd: Path, environment: Mapping[str, str] | None = None) -> Iterator[Process]:
    """A server in a folder; it is killed if it does not end by itself. environment: all of its variables."""
    own = {**os.environ, "PYTHONPATH": SOURCE} if environment is None else environment
    process = subprocess.Popen(
        list(command),
        cwd=cwd,
        env={**own, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C of whoever runs the tests is not for it
    )
    try:
        yield Process(process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


class InFlight:
    """A request whose body the server has begun to wait for, and does not have yet."""

    def __init__(self, port: int, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._body = body
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        lines = {"Host": f"127.0.0.1:{port}", "Content-Length": str(len(body)), "Content-Type": "image/png"}
        lines |= {"Expect": "100-continue", **(headers or {})}
        head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._socket.sendall(head.encode() + b"\r\n")
        # The server says so when a route asks for the body: from here on the request is in its hands.
        expected = b"HTTP/1.1 100 Continue\r\n\r\n"
        found = b""
        while len(found) < len(expected):
            part = self._socket.recv(len(expected) - len(found))
            assert part, found
            found += part
        assert found.startswith(b"HTTP/1.1 100"), found

    def finish(self) -> tuple[int, bytes]:
        """Sends the body; status and body of the answer."""
        self._socket.sendall(self._body)
        response = http.client.HTTPResponse(self._socket)
        response.begin()
        return response.status, response.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
