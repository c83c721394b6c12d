"""Bad input to the routes that answer: each gets a 4xx of one line or a whole answer, and the next request is answered
as if nothing had been.
"""

from __future__ import annotations

import base64
import encodings
import gzip
import io
import json
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import memtok
from tests.serving.attack_tools import GOOD, JSON, MAX_BODY, RAW, chunk, error_of, flat_png, picture
from tests.serving.conftest import Client

BASE64 = base64.b64encode(GOOD).decode()
FILE = b'Content-Disposition: form-data; name="f"; filename="a"'
FIELD = b'Content-Disposition: form-data; name="n"'
FORM = "multipart/form-data; boundary=x"
DEEP = 100_000


def expect(response: Any, status: int) -> None:
    """A refusal in one line, or a whole answer of both tasks to every image."""
    if status >= 400:
        line = error_of(response, status)
        assert not any(folder in line for folder in (str(Path(memtok.__file__).parent), tempfile.gettempdir()))
        return
    assert response.status_code == status, response.text
    found = json.loads(response.content, parse_constant=lambda name: pytest.fail(name))
    for image in found["images"]:
        assert list(image) == ["name", "tasks"]
        for ranking in image["tasks"].values():
            scores = [one["score"] for one in ranking]
            assert scores == sorted(scores, reverse=True)
            assert 0 <= min(scores) <= max(scores) <= sum(scores) <= 1.001


def saved(pixels: Any, kind: str, mode: str | None = None, **options: Any) -> bytes:
    """The bytes of an image of these pixels."""
    image, stream = Image.fromarray(np.asarray(pixels)), io.BytesIO()
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


def cut(kind: str, end: int) -> bytes:
    """The first bytes of an image."""
    return picture(kind)[:end]


def png_of(width: int, height: int, chunks: bytes = b"") -> bytes:
    """A PNG file that says that it has this size, and has no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunks + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


GREY = np.arange(1600, dtype=np.uint16).reshape(40, 40)
FRAME = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0"  # of one pixel
EXIF = b"Exif\0\0II*\0\x08\0\0\0\1\0"  # a table with one entry

IMAGES: dict[str, tuple[Callable[[], bytes], int]] = {
    "nothing": (lambda: b"", 422),
    "zeros": (lambda: b"\0" * 1000, 422),
    **{
        f"{kind} cut to {end}": (partial(cut, kind, end), 422)
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "BMP")
        for end in (1, 12, 600, -50)
    },
    "png of 2^31 x 2^31": (lambda: png_of(2**31 - 1, 2**31 - 1), 422),
    "png of 0 x 0": (lambda: png_of(0, 0), 422),
    "png without pixels": (lambda: png_of(40, 40), 422),
    "much in few bytes": (lambda: flat_png(1100, 1000), 413),
    "just not too much": (lambda: flat_png(1000, 1000), 200),
    "gif screen": (lambda: b"GIF89a\xff\xff\xff\xff\0\0\0" + FRAME + b";", 422),
    "ppm size": (lambda: b"P6 60000 2000 255\n", 413),
    "one pixel high": (lambda: flat_png(65_535, 1), 200),
    "one pixel wide": (lambda: flat_png(1, 65_535), 200),
    "one pixel": (lambda: flat_png(1, 1), 200),
    "too long": (lambda: flat_png(65_536, 1), 413),
    "gif of 20,000 frames": (lambda: b"GIF89a\1\0\1\0\0\0\0" + FRAME * 20_000 + b";", 200),
    "text of 5 MB": (lambda: flat_png(9, 9, chunks=chunk(b"tEXt", b"k\0" + b"a" * 5_000_000)), 200),
    "packed text": (lambda: flat_png(9, 9, chunks=chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 10_000_000))), 200),
    "packed profile": (lambda: flat_png(9, 9, chunks=chunk(b"iCCP", b"k\0\0" + zlib.compress(b"a" * 10_000_000))), 200),
    "chunk past the end": (lambda: flat_png(9, 9)[:-12] + b"\xff\xff\xff\xfftEXt", 422),
    "10,000 chunks": (lambda: flat_png(9, 9, chunks=chunk(b"tEXt", b"k\0") * 10_000), 200),
    "16 bit": (lambda: saved(GREY, "PNG"), 200),
    "32 bit": (lambda: saved(GREY.astype(np.int32) - 2_000_000_000, "TIFF"), 200),
    "nan": (lambda: saved(np.full((9, 9), np.nan, np.float32), "TIFF"), 200),
    "infinity": (lambda: saved(np.full((9, 9), -np.inf, np.float32), "TIFF"), 200),
    "palette": (lambda: saved(GREY.astype(np.uint8), "PNG", "P", transparency=3), 200),
    "black and white": (lambda: saved(GREY.astype(np.uint8), "PNG", "1"), 200),
    "cmyk": (lambda: saved(GREY.astype(np.uint8), "JPEG", "CMYK"), 200),
    "grey and alpha": (lambda: saved(GREY.astype(np.uint8), "PNG", "LA"), 200),
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', 422),
    "html": (lambda: b"<html><script>alert(1)</script></html>", 422),
    "eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(owned) (w) file closefile\n", 422),
    **{kind: (partial(picture, kind), 200) for kind in ("TIFF", "PPM", "BMP", "TGA", "SGI", "PCX", "JPEG2000", "AVIF")},
    **{kind: (partial(picture, kind), 422) for kind in ("ICO", "PDF", "EPS", "QOI", "DDS", "IM")},
    "decoded in Python": (lambda: b"P3 2 2 255\n" + b"1 " * 12, 422),
    "scans": (lambda: picture("JPEG")[:-2] + b"\xff\xda\0\0" * 300, 422),
    "exif rubbish": (lambda: picture("JPEG", exif=b"Exif\0\0" + b"\xff" * 500), 200),
    "exif in a circle": (lambda: picture("JPEG", exif=EXIF + b"\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0"), 200),
    "exif past its end": (lambda: picture("JPEG", exif=EXIF + b"\x12\1\3\0\xff\xff\xff\xff\x08\0\0\0\0\0\0\0"), 200),
    "exif turned by 99": (lambda: picture("PNG", exif=EXIF + b"\x12\1\3\0\1\0\0\0\x63\0\0\0\0\0\0\0"), 200),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_images(attacked: Client, name: str) -> None:
    content, status = IMAGES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of broken metadata
        made = content()
        for kind in ("image/png", "application/octet-stream"):
            expect(attacked.post("/v1/predict", content=made, headers={"Content-Type": kind}), status)
        parts = [("f", ("a", GOOD)), ("f", ("b", made))]
        found = attacked.post("/v1/predict", files=parts).json()["images"]
    assert ["tasks" in one for one in found] == [True, status == 200]


def body(text: str) -> bytes:
    """JSON with an image, and `text` beside it."""
    return f'{{"images": ["{BASE64}"], {text}}}'.encode()


NO_TOPS = ("NaN", "Infinity", "1e400", "1.5", "0", "-1", "100001", "9" * 4000, "9" * 9000, "null", "[]", "{}", '"x"')
DOCUMENTS: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 422),
    "no JSON": (b"\xff\xfe\0", 422),
    "a number": (b"1", 422),
    "null": (b"null", 422),
    "lists": (b"[" * DEEP, 422),
    "lists that end": (b'{"images": ' + b"[" * DEEP + b"]" * DEEP + b"}", 422),
    "objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, 422),
    "many values": (b'{"images": [' + b"1," * DEEP * 2 + b"1]}", 413),
    "no image": (b'{"images": null}', 422),
    "a number for an image": (b'{"images": [1]}', 422),
    "an object for images": (b'{"images": {"a": 1}}', 422),
    "no base64": (b'{"images": ["!"]}', 422),
    "half of base64": (b'{"images": ["' + BASE64[:-3].encode() + b'"]}', 422),
    "other letters": ('{"images": ["é\\ud800"]}'.encode(), 422),
    "an empty address": (b'{"images": ["data:,"]}', 422),
    "an address elsewhere": (b'{"images": ["http://127.0.0.1/x.png"]}', 422),
    "a file's address": (b'{"images": ["file:///etc/passwd"]}', 422),
    "images twice": (body('"images": ["!"]'), 422),
    "top twice": (body('"top": 0, "top": 1'), 200),
    "half a pair as a name": (body('"tasks": ["\\ud800"]'), 404),
    "half a pair as a field": (body('"\\ud800": 1'), 422),
    "a zero in a name": (body('"tasks": ["pets\\u0000"]'), 404),
    "10,000 names": (body('"tasks": [' + ",".join(f'"{n}"' for n in range(10_000)) + "]"), 404),
    "a name 10,000 times": (body('"tasks": [' + ",".join(['"pets"'] * 10_000) + "]"), 200),
    "a name of 1 MB": (body(f'"tasks": ["{"a" * 2**20}"]'), 404),
    "no list of names": (body('"tasks": "pets"'), 422),
    "a number as a name": (body('"tasks": [1]'), 422),
    "parameters": (body('"parameters": [1]'), 422),
    **{f"top {top[:9]}": (body(f'"top": {top}'), 422) for top in NO_TOPS},
    "top true": (body('"top": true'), 200),  # as in a query, what can be read as a number is one
    **{f"base {base}": (body(f'"base": {base}'), 422) for base in ("2", "NaN", "[]", '"maybe"', "null")},
    **{f"timeout {time}": (body(f'"timeout_s": {time}'), 422) for time in ("NaN", "Infinity", "-1", "0", "[]", '"x"')},
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_json(attacked: Client, name: str) -> None:
    content, status = DOCUMENTS[name]
    expect(attacked.post("/v1/predict", content=content, headers=JSON), status)
    response = attacked.post("/v1/tasks/pets/predict", content=content, headers=JSON)
    assert 200 <= response.status_code < 500
    if response.status_code != 200:
        error_of(response, response.status_code)


def form(*parts: tuple[bytes, bytes], end: bytes = b"--x--\r\n") -> bytes:
    """A form of parts: (headers, content) each."""
    return b"".join(b"--x\r\n" + head + b"\r\n\r\n" + content + b"\r\n" for head, content in parts) + end


def named(name: bytes) -> bytes:
    """The header of a file with this name."""
    return b'Content-Disposition: form-data; name="f"; filename="' + name + b'"'


NAMES = (b"../../etc/passwd", b"a\0b", b"", b"\xff\xfe", b"C:\\x", b"<script>", b"%00", "\u202e".encode(), b"a" * 3000)
CHARSETS = ("none-such", "undefined", "base64", "a\0b", "../x", "x" * 5000)
FORMS: dict[str, tuple[bytes, str, int]] = {
    "whole": (form((FILE, GOOD)), FORM, 200),
    "no boundary": (form((FILE, GOOD)), "multipart/form-data", 422),
    "an empty boundary": (form((FILE, GOOD)), "multipart/form-data; boundary=", 422),
    "an odd boundary": (form((FILE, GOOD)), 'multipart/form-data; boundary="x\\"y"', 422),
    "a long boundary": (form((FILE, GOOD)), "multipart/form-data; boundary=" + "x" * 60_000, 422),
    "another boundary": (form((FILE, GOOD)), "multipart/form-data; boundary=y", 422),
    "an open quote": (form((FILE, GOOD)), 'multipart/form-data; charset=idna; boundary="x', 422),
    "nothing": (b"", FORM, 422),
    "no end": (form((FILE, GOOD), end=b"")[:-2], FORM, 422),
    "cut": (form((FILE, GOOD))[:30], FORM, 422),
    "more behind": (form((FILE, GOOD)) + b"--x\r\n" * 1000, FORM, 200),
    "lines of another system": (form((FILE, GOOD)).replace(b"\r\n", b"\n"), FORM, 422),
    "a header of 100 kB": (form((FILE + b"\r\nX: " + b"a" * 100_000, GOOD)), FORM, 422),
    "1,000 headers": (form((FILE + b"\r\nX: a" * 1000, GOOD)), FORM, 422),
    "no headers": (form((b"", GOOD)), FORM, 422),
    "no name": (form((b"Content-Disposition: form-data", GOOD)), FORM, 422),
    "1,000 files": (form(*[(FILE, b"x")] * 1000), FORM, 413),
    "2,000 files": (form(*[(FILE, b"x")] * 2000), FORM, 422),
    "50,000 fields": (form(*[(FIELD, b"")] * 50_000), FORM, 422),
    "a field of 2 MB": (form((FIELD, b"x" * 2**21), (FILE, GOOD)), FORM, 422),
    "another field": (form((FIELD, b"x"), (FILE, GOOD)), FORM, 422),
    "fields alone": (form((FIELD, b"x")), FORM, 422),
    "a form in a form": (form((FILE + b"\r\nContent-Type: multipart/mixed; boundary=y", b"--y--")), FORM, 422),
    "a file that is cut": (form((FILE, GOOD), (FILE, GOOD), end=b"")[:-9], FORM, 422),
    **{f"named {name[:9]!r}": (form((named(name), GOOD)), FORM, 200) for name in NAMES},
    **{f"charset {name[:9]!r}": (form((FILE, GOOD)), f"{FORM}; charset={name}", 200) for name in CHARSETS},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms(attacked: Client, name: str) -> None:
    content, kind, status = FORMS[name]
    expect(attacked.post("/v1/predict", content=content, headers={b"Content-Type": kind.encode()}), status)


@pytest.mark.parametrize("charset", ["punycode", "idna", "utf-7", "utf-16"])
def test_a_form_names_no_codec(attacked: Client, charset: str) -> None:
    """Some of Python's codecs are slow by the square of a text, and it remembers every name that it looks up."""
    content = form((FILE, GOOD), (b'Content-Disposition: form-data; name="+2AA-"', b"xn--a-a"))
    for named_so in (charset, f"none-such-{charset}"):
        headers = {"Content-Type": f"{FORM}; charset={named_so}"}
        line = error_of(attacked.post("/v1/predict", content=content, headers=headers), 422)
        assert "+2AA-" in line
        assert "'xn--a-a'" in line
        assert f"none_such_{charset}".replace("-", "_") not in encodings._cache  # type: ignore[attr-defined]


def test_encodings_and_lengths(attacked: Client) -> None:
    for coding in ("gzip", "br", "none-such", "gzip, gzip"):
        headers = {"Content-Encoding": coding}
        expect(attacked.post("/v1/predict", content=gzip.compress(GOOD), headers=headers), 422)
        expect(attacked.post("/v1/predict", content=gzip.compress(b"{}"), headers=headers | JSON), 422)
    for kind, status in (("text/html", 415), ("multipart/mixed; boundary=x", 415), ("x" * 9000, 415), (";", 200)):
        expect(attacked.post("/v1/predict", content=GOOD, headers={"Content-Type": kind}), status)
    parts = [b"x" * 2**20] * 9
    for headers in (RAW, JSON, {"Content-Type": FORM}):
        expect(attacked.post("/v1/predict", content=iter(parts), headers=headers), 413)  # in chunks, without a length
    expect(attacked.post("/v2/models/pets/infer", content=iter(parts)), 413)
    expect(attacked.put("/v1/tasks/new", content=iter(parts)), 413)
    for length in ("9" * 30, str(MAX_BODY + 1)):
        expect(attacked.post("/v1/predict", content=b"", headers={"Content-Length": length}), 413)


PATHS = ("%00", "%ff", "..%2f..%2fguard.py", "%2e%2e/guard.py", "%5c..%5cguard.py", "/etc/passwd", "a" * 5000, "~root")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("folder", ["/page/", "/docs-files/", "/v1/tasks/", "/v2/models/", "/"])
def test_paths(attacked: Client, folder: str, path: str) -> None:
    error_of(attacked.get(folder + path), 404)
