"""A server that answers the page's requests as `memtok serve` does, from a table in memory and without a model."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageOps

PAGE = Path(__file__).resolve().parents[3] / "src" / "memtok" / "serving" / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:"
GRID = 7
LIMITS = {"body": 32 * 2**20, "pixels": 50_000_000}


class RefusedError(Exception):
    """A status and one line for the user."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def described(name: str, classes: list[str], **changes: Any) -> dict[str, Any]:
    """An entry of `GET /v1/tasks`."""
    record = {
        "data": "folder:photos",
        "hyperparameters": {"learning_rate": 0.05, "steps": 300, "image_size": [28, 28]},
        "validation": {"top1": 0.912, "curve": list(range(20))},
    }
    common = {"regime": "memory", "extends": [], "bytes": 24_012, "parameters": 5_258, "record": record}
    common |= {"changeable": True, "attention": True, "fingerprint": "sha256:" + sha256(name.encode()).hexdigest()}
    return {"name": name, "classes": classes, **common, **changes}


def two_tasks() -> dict[str, dict[str, Any]]:
    pets = described("pets", ["cat", "dog", "hamster", "parrot", "rabbit", "turtle", "goldfish"])
    scenes = described("scenes", ["beach", "city", "forest"], extends=["pets"], regime="side", changeable=False)
    return {"pets": pets, "scenes": scenes}


def answers(image: bytes, task: dict[str, Any], top: int) -> list[dict[str, Any]]:
    """Probabilities that depend on the bytes of the image and on the task alone."""
    seed = int.from_bytes(sha256(image + task["name"].encode()).digest()[:8], "big")
    logits = 2 * np.random.default_rng(seed).standard_normal(len(task["classes"]))
    scores = np.exp(logits) / np.exp(logits).sum()
    return [{"label": task["classes"][i], "score": float(scores[i])} for i in np.argsort(-scores)[:top]]


def attention(image: bytes, task: dict[str, Any]) -> dict[str, Any]:
    """The brighter a patch of the square in the middle, the larger its weight."""
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(image))).convert("L")
    width, height = upright.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    patches = upright.crop((left, top, left + side, top + side)).resize((GRID, GRID), Image.Resampling.BOX)
    weights = np.asarray(patches, float) ** 3 + 1
    return {
        "task": task["name"],
        "token": "class token of the task",
        "weights": (0.6 * weights / weights.sum()).tolist(),
        "area": {"left": left / width, "top": top / height, "width": side / width, "height": side / height},
    }


@contextmanager
def stand_in() -> Iterator[str]:
    """The address of a server with two tasks, `pets`, which may be removed, and `scenes`, which may not."""
    tasks = two_tasks()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Nothing on standard error."""

        def do_GET(self) -> None:
            if self.path == "/v1/tasks":
                self.answer(self.tasks)
            else:
                self.file()

        def do_POST(self) -> None:
            self.answer(self.predict if self.path.startswith("/v1/predict") else self.attend)

        def do_PUT(self) -> None:
            self.answer(self.add)

        def do_DELETE(self) -> None:
            self.answer(self.remove)

        def tasks(self, body: bytes) -> tuple[int, Any]:
            return 200, {
                "backbone": {"source": "small", "fingerprint": "sha256:1234"},
                "preprocessing": {"image_size": [28, 28]},
                "limits": LIMITS,
                **{"fixed": False, "keys": False, "admin": False, "may_add": True, "tasks": list(tasks.values())},
            }

        def predict(self, body: bytes) -> tuple[int, Any]:
            check_image(body)
            top = int(self.path.partition("?top=")[2])
            found = {name: answers(body, task, top) for name, task in tasks.items()}
            return 200, {"images": [{"name": "image", "tasks": found}]}

        def attend(self, body: bytes) -> tuple[int, Any]:
            check_image(body)
            return 200, attention(body, tasks[self.named()])

        def add(self, body: bytes) -> tuple[int, Any]:
            name = unquote(self.path.split("/")[3])
            if not body.startswith(b"task of "):
                raise RefusedError(422, f"{name}: not a task file")
            status = 200 if name in tasks else 201
            tasks[name] = described(name, body.removeprefix(b"task of ").decode().split(","), bytes=len(body))
            return status, {**tasks[name], "stored": False}

        def remove(self, body: bytes) -> tuple[int, Any]:
            del tasks[self.named()]
            return 204, None

        def named(self) -> str:
            name = unquote(self.path.split("/")[3])
            if name not in tasks:
                raise RefusedError(404, f"{name}: no such task")
            return name

        def answer(self, work: Any) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                status, value = work(body)
            except RefusedError as error:
                status, value = error.status, {"error": str(error)}
            self.send(status, b"" if value is None else json.dumps(value).encode(), "application/json")

        def file(self) -> None:
            path = PAGE / (self.path.removeprefix("/page/").lstrip("/") or "index.html")
            if path.is_file() and path.parent == PAGE:
                self.send(200, path.read_bytes(), TYPES[path.suffix] + "; charset=utf-8")
            else:
                self.send(404, b'{"error": "not found"}', "application/json")

        def send(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            if status != 204:
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True  # a browser keeps connections open
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def check_image(body: bytes) -> None:
    try:
        Image.open(io.BytesIO(body)).verify()
    except Exception as error:
        raise RefusedError(422, "image: cannot be read as an image") from error
