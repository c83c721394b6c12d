"""What the tests that attack the server share: a small server in this process, clients with keys, and raw requests."""

from __future__ import annotations

import asyncio
import io
import struct
import zlib
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
from fastapi import FastAPI
from PIL import Image

import memtok
from memtok.serving.application import create_app
from memtok.serving.catalogue import Catalogue
from memtok.serving.keys import KeyRing, new_key
from memtok.serving.service import Service
from memtok.serving.settings import Limits
from memtok.serving.task_folder import TaskFolder
from memtok.serving.torch_model import TorchModel
from tests.tiny import tiny_backbone, tiny_task

T = TypeVar("T")

HOST = "127.0.0.1:8000"
RAW = {"Content-Type": "application/octet-stream"}
JSON = {"Content-Type": "application/json"}


def made_app(
    tasks: Sequence[memtok.Task] | None = None,
    *,
    backbone: memtok.Backbone | None = None,
    keys: Path | None = None,
    store: Path | None = None,
    **limits: Any,
) -> FastAPI:
    """A server of tiny tasks, by default `pets` and `digits`."""
    if backbone is None:
        backbone = tasks[0].backbone if tasks else tiny_backbone()
    if tasks is None:
        tasks = [tiny_task(backbone, "pets"), tiny_task(backbone, "digits", seed=3)]
    model = TorchModel(memtok.MemoryViT(backbone, tasks))
    folder = None if store is None else TaskFolder(store)
    return create_app(Catalogue(model, Limits(**limits), folder), None if keys is None else KeyRing(keys))


def service_of(app: FastAPI) -> Service:
    """The service behind an application."""
    service = app.state.service
    assert isinstance(service, Service)
    return service


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that has started, in this event loop; nothing is left open behind it."""
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=f"http://{HOST}", timeout=None) as client,
    ):
        yield client
        service = service_of(app)
        assert service.batcher.waiting == 0


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a test that is a coroutine; one that hangs is a failure and not a wait without end."""

    async def limited() -> T:
        async with asyncio.timeout(300):
            return await work

    return asyncio.run(limited())


def bearer(key: str) -> dict[str, str]:
    """The header of a key."""
    return {"Authorization": f"Bearer {key}"}


def tenants(path: Path) -> dict[str, dict[str, str]]:
    """A file with keys of three, and their headers: `acme` and `beta` with tasks of their own, and an admin."""
    return {
        "acme": bearer(new_key(path, "acme", change=["acme-*"])),
        "beta": bearer(new_key(path, "beta", see=["shared"], change=["beta-*"])),
        "admin": bearer(new_key(path, "admin", admin=True)),
    }


@dataclass
class Answer:
    """What a raw request got."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


async def ask(
    app: FastAPI,
    method: str,
    path: str,
    body: Iterable[bytes] = (b"",),
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    *,
    after: asyncio.Event | None = None,
) -> Answer:
    """A request as a server of ASGI gives it, for what no client would send.

    body: its parts; without the empty one at the end the rest never comes. after: the client leaves when it is set.
    """
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    parts = list(body)
    answer = Answer()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", HOST.encode()), *((k.lower().encode(), v.encode("latin-1")) for k, v in pairs)],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }

    async def receive() -> dict[str, Any]:
        if parts:
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(part)}
        await (after or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    await app(scope, receive, send)
    return answer


def error_of(response: httpx.Response, *statuses: int) -> str:
    """The error that a response has: one line that prints, as {"error": line} and nothing beside it."""
    assert response.status_code in statuses, (response.status_code, response.text[:500])
    assert response.headers["content-type"] == "application/json"
    found = response.json()
    assert list(found) == ["error"]
    line = found["error"]
    assert isinstance(line, str)
    assert line.isprintable(), line
    assert "Traceback" not in line
    return line


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 36), seed: int = 0, **options: Any) -> bytes:
    """The bytes of a random image, (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def task_file(task: memtok.Task, folder: Path) -> bytes:
    """The bytes of its file."""
    path = folder / "one.safetensors"
    memtok.save_tasks([task], path)
    return path.read_bytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def flat_png(width: int, height: int, *, chunks: bytes = b"") -> bytes:
    """A grey PNG file with all of its pixels black. chunks: stand before them."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer, row = zlib.compressobj(9), b"\0" * (width + 1)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunks + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


GOOD = picture(size=(12, 9))
MAX_BODY, MAX_PIXELS = 8 * 2**20, 2**20
"""Limits of the server that is attacked."""
