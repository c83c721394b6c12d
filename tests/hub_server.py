"""A Hugging Face Hub of one repository on this machine: what the client asks for when it lists and downloads files."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def local_hub(repository: str, folder: Path, cache: Path, patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """While it lasts, huggingface_hub finds `repository` with the files of `folder`, and keeps its copies in `cache`.

    Yields the list of requests, which grows: "GET /path".
    """
    from huggingface_hub import constants

    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Nothing on standard error."""

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            asked.append(f"{self.command} {path}")
            content, headers = b"", {}
            file = folder / path.rpartition("/")[2]
            if path.startswith(f"/api/models/{repository}/tree/"):
                content = json.dumps([entry(path) for path in sorted(folder.iterdir())]).encode()
            elif path.startswith(f"/api/models/{repository}"):
                names = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
                content = json.dumps({"id": repository, "sha": COMMIT, "siblings": names}).encode()
            elif path.startswith(f"/{repository}/resolve/") and file.is_file():
                content = file.read_bytes()
                headers = {"ETag": f'"{sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            else:
                headers = {"X-Error-Code": "EntryNotFound" if f"/{repository}/" in path else "RepoNotFound"}
            self.send_response(200 if content else 404)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setenv("NO_PROXY", "127.0.0.1")
    try:
        yield asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def entry(path: Path) -> dict[str, Any]:
    """A file as the Hub lists it."""
    return {
        "type": "file",
        "oid": sha256(path.name.encode()).hexdigest()[:40],
        "size": path.stat().st_size,
        "path": path.name,
    }
