"""What happens around every request: limits before anything is read, metrics after, and no traceback ever leaves."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Collection
from contextlib import suppress

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memtok.errors import printable
from memtok.serving.errors import RequestError
from memtok.serving.service import Service

BUFFERED = 16
"""Bodies of the largest size that may be in memory at once."""

DRAINED, PATIENCE = 4, 10.0  # times the largest body, and seconds, that are read of one that is too large
LONGEST_NUMBER = 18
"""Digits of a length that is looked at."""

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
)

logger = logging.getLogger("memtok")


class Guard:
    """An ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service, hosts: Collection[str] | None = None) -> None:
        self.app = app
        self.service = service
        self.hosts = hosts
        self.open = 0  # requests that are being answered
        self.buffered = 0  # bytes of their bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, begun, taken = time.monotonic(), 500, False, 0
        limits = self.service.limits

        def take(size: int) -> None:
            nonlocal taken
            if taken + size > limits.max_body:
                raise RequestError(413, f"expected a body of at most {limits.max_body:,} bytes, found a larger one")
            if self.buffered + size > BUFFERED * limits.max_body:
                raise RequestError(429, "expected fewer large requests at once, found too many", retry_after=1)
            taken += size
            self.buffered += size

        async def limited() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                try:
                    take(len(message.get("body", b"")))
                except RequestError as error:
                    if error.status == 413 and message.get("more_body", False):
                        await drained(receive, limits.max_body)
                    raise
            return message

        async def answered(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                own = {name for name, _ in message.get("headers", ())}
                extra = [(name, value) for name, value in HEADERS if name not in own]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        self.open += 1
        try:
            self._check(scope, limits.max_body)
            await self.app(scope, limited, answered)
        except RequestError as error:
            if not begun:
                if error.status == 413:
                    await drained(receive, limits.max_body)
                await refuse(error, answered)
        except asyncio.CancelledError:
            raise
        except ClientDisconnect:  # in the middle of its body; nobody is there to be answered
            status = 400
        except Exception:
            logger.exception("a request failed: %s %s", scope["method"], printable(scope["path"]))
            if not begun:
                await refuse(RequestError(500, "unexpected error; the log of the server has it"), answered)
        finally:
            self.open -= 1
            self.buffered -= taken
            self._count(scope, status, time.monotonic() - started)

    def _check(self, scope: Scope, max_body: int) -> None:
        """RequestError for a request that is refused by its head."""
        headers = dict(scope["headers"])
        host = host_of(headers.get(b"host", b"").decode("latin-1"))
        if self.hosts is not None and host not in self.hosts:
            raise RequestError(400, f"expected a Host out of {', '.join(sorted(self.hosts))}, found {host[:100]!r}")
        length = headers.get(b"content-length", b"0").lstrip(b"0") or b"0"
        if length.isdigit() and (len(length) > LONGEST_NUMBER or int(length) > max_body):
            raise RequestError(413, f"expected a body of at most {max_body:,} bytes, found a larger one")
        if self.open > self.service.limits.max_queue and scope["method"] in ("POST", "PUT"):
            raise RequestError(
                429, f"expected at most {self.service.limits.max_queue} requests at once, found more", retry_after=1
            )

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        """The metrics of a request, under its route: a path would have names, and there is no end of paths."""
        route = getattr(scope.get("route"), "path_format", None) or getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in ("GET", "POST", "PUT", "DELETE", "HEAD") else "other"
        self.service.metrics.requests.labels(route, method, str(status)).inc()
        self.service.metrics.latency.labels(route, method).observe(seconds)


async def drained(receive: Receive, most: int) -> None:
    """Reads some more of a body that is too large: a browser shows no answer that comes before it has sent it all."""
    left = DRAINED * most
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return


def host_of(header: str) -> str:
    """The name in a header `Host`, without the port."""
    if header.startswith("["):  # an IPv6 address
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


async def refuse(error: RequestError, send: Send) -> None:
    """Sends an error as JSON."""
    content = json.dumps({"error": str(error)}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **error.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
