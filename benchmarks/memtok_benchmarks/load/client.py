"""The client of a load test: requests that are sent when they are due, over kept connections of HTTP/1.1.

It shares the machine with the server that it measures, so it does little: a request is bytes that were made before, an
answer is a status and bytes. How late it sent and how much of a core it took is part of every result.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

IDLE = 2.0  # seconds after which a connection is not used again; uvicorn closes it after 5
PATIENCE = 40.0  # seconds that the client waits for an answer; the servers give up after 30
NO_ANSWER = 0  # in the place of a status: the connection broke, or nothing came within `PATIENCE`


@dataclass(frozen=True)
class Question:
    """A request as bytes. image: which one it has. name: the task that it asks, None for all."""

    content: bytes
    image: int
    name: str | None = None


@dataclass(frozen=True)
class Sample:
    """One request of a load. due, sent, done: seconds since the start of the load. status: of HTTP, or NO_ANSWER."""

    due: float
    sent: float
    done: float
    status: int

    @property
    def latency(self) -> float:
        """Seconds from the moment at which it was due."""
        return self.done - self.due


Look = Callable[[Question, int, bytes], None]
"""Called with a question, the status and the body of its answer."""


def request(address: str, method: str, path: str, body: bytes = b"", kind: str = "image/jpeg") -> bytes:
    """A request of HTTP/1.1."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {urlsplit(address).netloc}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client:
    """Connections to one server, closed when the block ends; a new one is opened when all are in use."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        assert parts.hostname is not None
        self.address, self.host, self.port = address, parts.hostname, parts.port
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, content: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to a request; (NO_ANSWER, b"") if there is none."""
        writer, status = None, NO_ANSWER
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await self._connection()
                writer.write(content)
                status, body = await answer(reader)
        except (OSError, EOFError, ValueError, TimeoutError):
            status, body = NO_ANSWER, b""
        finally:
            if writer is not None and status == NO_ANSWER:
                writer.close()
        if writer is not None and status != NO_ANSWER:
            self._idle.append((time.monotonic(), reader, writer))
        return status, body

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The connection that was used last, or a new one."""
        now = time.monotonic()
        while self._idle:
            since, reader, writer = self._idle.pop()
            if now - since < IDLE and not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self.host, self.port)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        for _, _, writer in self._idle:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, _, writer in self._idle), return_exceptions=True)
        self._idle.clear()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of an answer that says how long it is, as those of all servers here do."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(b" ", 2)[1])
    _, found, rest = head.partition(b"\r\ncontent-length:")
    return status, await reader.readexactly(int(rest.partition(b"\r\n")[0])) if found else b""


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """When requests are due: a Poisson process of `rate` per second, of as many arrivals as are expected.

    Given their number, the arrivals of such a process lie independently and evenly; so the offered load is exact.
    """
    drawn = random.Random(seed)
    return sorted(drawn.uniform(0, seconds) for _ in range(max(1, round(rate * seconds))))


async def fire(client: Client, due: Sequence[float], questions: Sequence[Question], look: Look | None) -> list[Sample]:
    """Sends question i at `due[i]` seconds from now, whatever became of the others; the samples in that order."""
    begun = time.monotonic()

    async def one(moment: float, question: Question) -> Sample:
        sent = time.monotonic() - begun
        status, body = await client.ask(question.content)
        sample = Sample(moment, sent, time.monotonic() - begun, status)
        if look is not None:
            look(question, status, body)
        return sample

    running = []
    for moment, question in zip(due, questions, strict=True):
        wait = begun + moment - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        running.append(asyncio.create_task(one(moment, question)))
    return list(await asyncio.gather(*running))
