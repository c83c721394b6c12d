"""Hostile input: every answer is a 4xx of one line, or a right answer, and the server goes on as before."""

from __future__ import annotations

import base64
import gzip
import io
import json
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

import memtok
from tests.serving.attack_tools import JSON, RAW, chunk, error_of, flat_png, picture
from tests.serving.conftest import Client, Serve, over_a_socket, png, task_bytes
from tests.tiny import tiny_backbone, tiny_task

LIMITS = {"max_pixels": 1_000_000, "max_images": 4, "max_body": 2**20}
FORM = "multipart/form-data; boundary=b"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "tasks"


@pytest.fixture
def client(serve: Serve, model: memtok.MemoryViT, store: Path) -> Client:
    return serve(model, limits=LIMITS, store=store)


def goes_on(client: Client | httpx.Client) -> None:
    """A good request is answered as ever."""
    found = client.post("/v1/predict", content=png(1), headers=RAW)
    assert found.status_code == 200, found.text
    assert set(found.json()["images"][0]["tasks"]) == {"pets", "digits", "breeds"}


def refused(client: Client, response: httpx.Response, *statuses: int) -> None:
    """It was, in one line, and the server goes on."""
    error_of(response, *statuses)
    goes_on(client)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a picture."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


# Images


BROKEN = {
    "nothing": b"",
    "one byte": b"\x89",
    "text": b"GIF89a? no, text",
    "HTML": b"<html><script>alert(1)</script></html>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "PDF": b"%PDF-1.7\n1 0 obj\n<</Type/Catalog>>\nendobj\n",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/etc/passwd) (r) file\n",
    "half a PNG": picture()[:200],
    "half a JPEG": picture("JPEG")[:300],
    "half a WebP": picture("WEBP")[:100],
    "a PNG of no pixels": flat_png(0, 0),
    "a bomb by its header": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)),
    "a bomb of a megapixel and more": flat_png(1100, 1000),
    "a wrong checksum": picture()[:40] + b"x" + picture()[41:],
}


@pytest.mark.parametrize("name", BROKEN)
def test_images_that_are_none(client: Client, name: str) -> None:
    refused(client, client.post("/v1/predict", content=BROKEN[name], headers=RAW), 400, 413, 415, 422)
    refused(client, client.post("/v1/tasks/pets/predict", content=BROKEN[name], headers=RAW), 400, 413, 415, 422)


ODD = {
    "16 bits": saved(Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30)), "PNG"),
    "palette with transparency": saved(Image.new("P", (9, 9)), "PNG", transparency=0),
    "grey with alpha": saved(Image.new("LA", (9, 9)), "PNG"),
    "one bit": saved(Image.new("1", (9, 9)), "PNG"),
    "CMYK": saved(Image.new("CMYK", (30, 30)), "JPEG"),
    "a line": saved(Image.new("RGB", (900, 1)), "PNG"),
    "a pixel": saved(Image.new("RGB", (1, 1)), "PNG"),
    "a thousand frames": saved(
        Image.new("P", (4, 4)), "GIF", save_all=True, append_images=[Image.new("P", (4, 4), n % 7) for n in range(999)]
    ),
    "a bomb of text": flat_png(8, 8, chunks=chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 100_000_000))),
    "a bomb of a profile": flat_png(8, 8, chunks=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100_000_000)))),
    "Exif of rubbish": picture("JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 200),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_answered(client: Client, name: str) -> None:
    answered = client.post("/v1/predict?tasks=pets", content=ODD[name], headers=RAW)
    assert answered.status_code == 200, answered.text
    scores = [label["score"] for label in answered.json()["images"][0]["tasks"]["pets"]]
    assert sum(scores) == pytest.approx(1, abs=1e-5)
    goes_on(client)


# Bodies


IMAGE = base64.b64encode(png()).decode()
BAD_JSON = {
    "nothing": b"",
    "no JSON": b"{",
    "a number": b"3",
    "deep": b"[" * 100_000,
    "deep inside": b'{"images": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "not UTF-8": b'{"images": ["\xff\xfe"]}',
    "a million digits": b'{"images": ["AAAA"], "top": ' + b"9" * 100_000 + b"}",
    "no base64": json.dumps({"images": ["*" * 100]}).encode(),
    "an address": json.dumps({"images": ["http://127.0.0.1:1/a.png"]}).encode(),
    "a path": json.dumps({"images": ["/etc/passwd"]}).encode(),
    "null": json.dumps({"images": [None]}).encode(),
    "an object": json.dumps({"images": {"0": IMAGE}}).encode(),
    "five images": json.dumps({"images": [IMAGE] * 5}).encode(),
    "not a number": b'{"images": ["%s"], "top": NaN}' % IMAGE.encode(),
    "infinity": b'{"images": ["%s"], "top": 1e999}' % IMAGE.encode(),
    "top below one": json.dumps({"images": [IMAGE], "top": -1}).encode(),
    "top of text": json.dumps({"images": [IMAGE], "top": "x"}).encode(),
    "tasks a number": json.dumps({"images": [IMAGE], "tasks": 7}).encode(),
    "a hundred thousand tasks": json.dumps({"images": [IMAGE], "tasks": [f"t{n}" for n in range(100_000)]}).encode(),
    "half a character": b'{"images": ["%s"], "tasks": ["\\ud800"]}' % IMAGE.encode(),
    "too large": b'{"images": ["' + b"A" * 2**20 + b'"]}',
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_json(client: Client, name: str) -> None:
    refused(client, client.post("/v1/predict", content=BAD_JSON[name], headers=JSON), 400, 404, 413, 415, 422)


def part(name: str, content: bytes, more: str = "") -> bytes:
    """A part of a form."""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"


BAD_FORMS = {
    "no boundary": ("multipart/form-data", part("images", png()) + b"--b--\r\n"),
    "an empty boundary": ("multipart/form-data; boundary=", part("images", png()) + b"--b--\r\n"),
    "nothing": (FORM, b""),
    "no image": (FORM, part("top", b"1") + b"--b--\r\n"),
    "a long header": (FORM, b"--b\r\nContent-Disposition: " + b"x" * 100_000 + b"\r\n\r\n1\r\n--b--\r\n"),
    "many parts": (FORM, part("images", b"1", '; filename="a"') * 3000 + b"--b--\r\n"),
    "many fields": (FORM, part("a", b"1") * 3000 + b"--b--\r\n"),
    "an image as a field": (FORM, part("images", b"x" * 500) + b"--b--\r\n"),
    "rubbish": (FORM, bytes(range(256)) * 10),
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_forms(client: Client, name: str) -> None:
    kind, content = BAD_FORMS[name]
    refused(client, client.post("/v1/predict", content=content, headers={"Content-Type": kind}), 400, 413, 415, 422)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\\b", "C:\\x", "\x01", "x" * 5000, "ü", ""])
def test_a_file_name_goes_nowhere(client: Client, store: Path, name: str) -> None:
    found = client.post("/v1/predict?tasks=pets", files={"images": (name or "x", png(), "image/png")})
    assert found.status_code in (200, 400, 422), found.text
    assert not any(store.iterdir())
    goes_on(client)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "br, gzip"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "image/"},
        {"Content-Type": "a" * 5000},
    ],
)
def test_headers(client: Client, headers: dict[str, str]) -> None:
    response = client.post("/v1/predict", content=gzip.compress(bytes(2**22)), headers={**RAW, **headers})
    refused(client, response, 400, 413, 415, 422)


@pytest.mark.parametrize(
    "query", ["top=-1", "top=1e9", "top=x", "tasks=", "tasks=%00", "timeout_s=-1", "timeout_s=nan", "embedding=7"]
)
def test_queries(client: Client, query: str) -> None:
    refused(client, client.post(f"/v1/predict?{query}", content=png(), headers=RAW), 400, 404, 422)


# Task files


def bad_files(folder: Path, backbone: memtok.Backbone) -> dict[str, bytes]:
    """Task files that are none, by what is wrong."""
    good = task_bytes(tiny_task(backbone, "new", seed=9), folder)
    size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + size])
    name = next(name for name in header if name.endswith("head.weight"))

    def with_header(changed: dict[str, Any]) -> bytes:
        text = json.dumps(changed).encode()
        return len(text).to_bytes(8, "little") + text + good[8 + size :]

    def with_offsets(start: int, end: int) -> bytes:
        return with_header({**header, name: {**header[name], "data_offsets": [start, end]}})

    at = 8 + size + header[name]["data_offsets"][0]
    other = tiny_task(tiny_backbone(seed=5), "new", seed=9)
    return {
        "nothing": b"",
        "seven bytes": good[:7],
        "a header of eight exabytes": (2**63).to_bytes(8, "little") + good[8:],
        "a header beyond the end": (len(good)).to_bytes(8, "little") + good[8:],
        "a header that is no JSON": good[:8] + b"x" * size + good[8 + size :],
        "a header of a number": (1).to_bytes(8, "little") + b"7",
        "a deep header": (100_000).to_bytes(8, "little") + b"[" * 100_000,
        "half of it": good[: len(good) // 2],
        "more than it": good + b"x",
        "tensors beyond the end": with_offsets(0, 2**40),
        "tensors that overlap": with_offsets(0, header[name]["data_offsets"][1] - header[name]["data_offsets"][0]),
        "a tensor of negative place": with_offsets(-4, 4),
        "no header of memtok": with_header({key: value for key, value in header.items() if key != "__metadata__"}),
        "a number that is none": good[:at] + struct.pack("<f", float("nan")) + good[at + 4 :],
        "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "a zip, as torch saves": b"PK\x03\x04" + bytes(200),
        "another backbone": task_bytes(other, folder),
    }


def test_task_files(serve: Serve, model: memtok.MemoryViT, store: Path, tmp_path: Path) -> None:
    client = serve(model, store=store)
    for what, content in bad_files(tmp_path, model.backbone).items():
        response = client.put("/v1/tasks/new", content=content, headers=RAW)
        assert response.status_code in (400, 413, 422), (what, response.text)
        error_of(response, response.status_code)
        assert not any(store.iterdir()), what
        assert "new" not in client.get("/v1/tasks").text, what
    goes_on(client)


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../x",
        "a/../../x",
        "/etc/passwd",
        "a\\b",
        "x\0y",
        "a\nb",
        ".hidden",
        " x",
        "x" * 101,
        "CON|",
        "base",
        "＼x",
    ],
)
def test_names_of_tasks(client: Client, store: Path, tmp_path: Path, model: memtok.MemoryViT, name: str) -> None:
    """A name is that of a file in one folder, and never another one's."""
    content = task_bytes(tiny_task(model.backbone, "new", seed=9), tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    for spelled in (quote(name, safe=""), quote(quote(name, safe=""), safe="")):
        response = client.put(f"/v1/tasks/{spelled}", content=content, headers=RAW)
        assert response.status_code in (400, 404, 405, 422), response.text
    assert sorted(path for path in tmp_path.rglob("*")) == before
    goes_on(client)


# Connections


def exchange(address: str, *pieces: bytes, end: bool = False, half: bool = True) -> bytes:
    """What a server answers on a connection of its own, until it or `end` closes it. half: nothing more is sent."""
    place = urlsplit(address)
    answer = b""
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            if end:
                return answer
            if half:
                connection.shutdown(socket.SHUT_WR)
            while received := connection.recv(2**16):
                answer += received
        except TimeoutError:
            raise
        except OSError:  # the server has closed it
            pass
    return answer


def post(length: int | str, more: str = "") -> bytes:
    """The head of a request that sends an image."""
    return (
        f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n"
        f"{more}\r\n"
    ).encode()


def test_connections(model: memtok.MemoryViT) -> None:
    with over_a_socket(model) as address, httpx.Client(base_url=address, timeout=120) as client:
        attempts: list[Callable[[], bytes]] = [
            lambda: exchange(address, b"\0" * 1000),
            lambda: exchange(address, b"GET / HTTP/9.9\r\n\r\n"),
            lambda: exchange(address, b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
            lambda: exchange(address, post("-5")),
            lambda: exchange(address, post("x")),
            lambda: exchange(address, post(10, "Transfer-Encoding: chunked\r\n"), b"zz\r\n"),
            lambda: exchange(address, post(1000), png()[:500], end=True),
            lambda: exchange(address, post(1000), end=True),
            lambda: exchange(address, b"POST /v1/predict HT", end=True),
        ]
        for attempt in attempts:
            answer = attempt()
            assert not answer or answer.split(b" ", 2)[1].startswith(b"4"), answer[:100]
            goes_on(client)
        idle = [socket.create_connection((urlsplit(address).hostname, urlsplit(address).port)) for _ in range(100)]
        goes_on(client)
        for connection in idle:
            connection.close()
        one = post(len(png())).replace(b"/v1/predict", b"/v1/predict?tasks=pets") + png()
        last = one.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nConnection: close\r\n", 1)
        assert (
            exchange(address, one * 3 + last, half=False).count(b"HTTP/1.1 200 OK") == 4
        )  # sent at once, answered in turn
        goes_on(client)
