"""What the tests that attack the server share: a small server in this process, keys, images and files as bytes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from PIL import Image

import memtok
from memtok.serving.application import create_app
from memtok.serving.catalogue import Catalogue
from memtok.serving.keys import KeyRing, new_key
from memtok.serving.settings import Limits
from memtok.serving.task_folder import TaskFolder
from memtok.serving.torch_model import TorchModel
from tests.tiny import tiny_backbone, tiny_task

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


def error_of(response: httpx.Response, *statuses: int) -> str:
    """The error that a response has: one line that prints, as {"error": line} and nothing beside it."""
    assert response.status_code in statuses, (response.status_code, response.text[:500])
    assert response.headers["content-type"] == "application/json"
    found = response.json()
    assert list(found) == ["error"]
    line = found["error"]
    assert isinstance(line, str)
    assert line
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
