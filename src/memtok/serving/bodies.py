"""The images of a request, from its body: raw bytes, a form with files, or JSON with base64."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from memtok.data.images import FORMATS, UnreadableImageError, guarded, open_upright
from memtok.data.pixels import centre_corner, evaluation_array, resized_sides
from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing
from memtok.serving.errors import RequestError
from memtok.serving.models import Pixels

RAW = ("application/octet-stream", "")
NAMED = 200  # characters of a file name that are given back
MOST_VALUES = 100_000
"""Values in a JSON body. Ten million empty strings are 30 MB of text, and 1.7 GB in memory."""
BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
"""What separates the parts of a form. Source: RFC 2046, section 5.1.1."""


@dataclass(frozen=True)
class Body:
    """The images of a request, (name, bytes) each, and the fields of its JSON or form beside them."""

    images: list[tuple[str, bytes]]
    fields: Mapping[str, Any] = field(default_factory=dict)


class InMemory(MultiPartParser):
    """Forms whose files stay in memory: a server may have no disk to write to. The size of a body is limited before."""

    spool_max_size = 2**40
    ended = False

    def on_end(self) -> None:
        """The boundary that ends the form was read."""
        self.ended = True

    def close(self) -> None:
        """Closes the files, those that were cut short among them."""
        for file in self._files_to_close_on_error:
            file.close()


async def read_body(request: Request, in_pool: Callable[[Callable[[], Body]], Awaitable[Body]]) -> Body:
    """The images of a request; RequestError for a body that is none of the three kinds.

    in_pool: runs what would hold up the event loop, to read much JSON, in a thread.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await read_form(request)
    content = await request.body()
    if kind == "application/json":
        return await in_pool(lambda: read_json(content))
    if kind in RAW or kind.startswith("image/"):
        if not content:
            raise RequestError(422, "expected the bytes of an image as the body, found nothing; send one")
        return Body([("image", content)])
    raise RequestError(
        415,
        "expected a body of image/*, application/octet-stream, multipart/form-data or application/json, found "
        f"{kind!r}; set Content-Type",
    )


async def read_form(request: Request) -> Body:
    """The files of a form, whatever their fields are called, and its other fields."""
    images: list[tuple[str, bytes]] = []
    fields: dict[str, Any] = {}
    try:
        parser = InMemory(form_headers(request), request.stream())
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, AssertionError) as error:
        raise RequestError(422, f"expected a form with images as files, found a damaged one ({error})") from error
    try:
        if not parser.ended:
            raise RequestError(422, "expected a form with images as files, found one without its end; send it all")
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                images.append(((value.filename or name)[:NAMED], await value.read()))
            elif name == "tasks":
                fields.setdefault("tasks", []).append(value)
            else:
                fields[name] = value
    finally:
        parser.close()
    if not images:
        raise RequestError(422, "expected a form with images as files, found none; add a part with a filename")
    return Body(images, fields)


def form_headers(request: Request) -> Headers:
    """The headers by which a form is read: its boundary alone, which is all that its type has (RFC 7578, section 8).

    The parser would decode texts by a `charset` beside it. Some of Python's codecs take time by the square of a text's
    length (punycode, idna), and Python remembers every name of a codec that it was ever asked for.
    """
    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"").decode("latin-1")
    if not BOUNDARY.fullmatch(boundary):
        raise ValueError(f"its boundary is {boundary[:80]!r}")
    return Headers({"content-type": f'multipart/form-data; boundary="{boundary}"'})


def parsed(content: bytes) -> dict[str, Any]:
    """The JSON object in a body; RequestError for anything else."""
    if content.count(b",") > MOST_VALUES:
        raise RequestError(413, f"expected JSON with at most {MOST_VALUES:,} values, found more; send several requests")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RequestError(422, f"expected JSON as the body, found something else ({error})") from error
    if not isinstance(value, dict):
        raise RequestError(422, f"expected a JSON object, found {type(value).__name__}; /docs has what to send")
    return value


def read_json(content: bytes) -> Body:
    """`{"images": [base64, ...]}`, or as Hugging Face's clients write it `{"inputs": base64, "parameters": {...}}`."""
    value = parsed(content)
    given = value.get("images", value.get("inputs"))
    images = given if isinstance(given, list) else [given]
    fields = {name: part for name, part in value.items() if name not in ("images", "inputs", "parameters")}
    parameters = value.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise RequestError(422, f"expected parameters as an object, found {type(parameters).__name__}")
    found = [(f"images[{index}]", decoded(image, index)) for index, image in enumerate(images)]
    if not found:
        raise RequestError(422, "expected images as a list with base64, found an empty one; send one or more")
    return Body(found, fields | (parameters or {}))


def decoded(text: object, index: int) -> bytes:
    """The bytes of base64; a `data:` address may stand around it."""
    if not isinstance(text, str):
        raise RequestError(422, f"expected images[{index}] as base64, found {type(text).__name__}; encode its bytes")
    head, comma, tail = text.partition(",")
    try:
        return base64.b64decode(tail if comma and head.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(422, f"expected images[{index}] as base64, found something else ({error})") from error


@dataclass(frozen=True)
class Decoded:
    """An image as the model takes it. size: (height, width) of the upright image."""

    pixels: Pixels
    size: tuple[int, int]


SERVED = tuple(name for name in FORMATS if name not in ("ICO", "QOI", "XBM", "XPM"))
"""Formats of images. Pillow decodes QOI, XBM and XPM in Python, up to minutes for one body, and an ICO file before
anybody can look at its size."""
LONGEST_SIDE = 65_535
"""Pixels of a side, as JPEG has it. Some decoders take room for a multiple of a row."""
MOST_SCANS = 200
"""Scans of a progressive JPEG; usual ones have ten. A scan may cost 26 bytes, and a pass over all of the image."""


class Withdrawable(io.BytesIO):
    """The bytes of an image, which a thread decodes as long as somebody waits for it: then its next read fails."""

    def __init__(self, content: bytes, withdrawn: Callable[[], bool]) -> None:
        super().__init__(content)
        self._withdrawn = withdrawn

    def read(self, size: int | None = -1, /) -> bytes:
        """As of every stream; OSError when nobody waits."""
        if self._withdrawn():
            raise OSError("the request was given up")
        return super().read(size)


def decode(
    content: bytes, preprocessing: Preprocessing, max_pixels: int, withdrawn: Callable[[], bool] = lambda: False
) -> Decoded:
    """The pixels (C, H, W) of an image in bytes; RequestError 413 for one that is too large, 422 for a broken one.

    withdrawn: whether nobody waits for it any more; the work then ends early, in an error.
    """

    def check(image: Image.Image) -> None:
        if image.width * image.height > max_pixels or max(image.size) > LONGEST_SIDE:
            raise RequestError(
                413,
                f"expected an image of at most {max_pixels:,} pixels and sides of at most {LONGEST_SIDE:,}, found "
                f"{image.width} x {image.height}; send a smaller one",
            )
        slow = any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", ()))  # those are written in Python
        if slow or (image.format in ("JPEG", "MPO") and content.count(b"\xff\xda") > MOST_SCANS):
            raise RequestError(
                422, f"expected an image that is quick to decode, found an unusual form of {image.format}; save it anew"
            )

    try:
        image = open_upright(Withdrawable(content, withdrawn), "the image", check, SERVED)
        with guarded("the image"):
            return Decoded(evaluation_array(image, preprocessing), (image.height, image.width))
    except UnreadableImageError as error:
        cause: BaseException | None = error
        while cause is not None:  # a check that failed inside of the guarded block
            if isinstance(cause, RequestError):
                raise cause from error
            cause = cause.__cause__
        raise RequestError(422, f"expected a readable image, found another ({error.reason}); mend it") from error
    except MemtokError as error:
        raise RequestError(422, f"expected a readable image, found another ({error}); mend it") from error


def area(size: tuple[int, int], preprocessing: Preprocessing) -> dict[str, float]:
    """The part of an upright image of (height, width) `size` that the model sees, in fractions of its sides."""
    resized = resized_sides(*size, preprocessing.resize)
    crop = preprocessing.image_size if preprocessing.crop else resized
    top, left = centre_corner(resized, crop, low=preprocessing.position_resize == "transformers")
    return {
        "left": left / resized[1],
        "top": top / resized[0],
        "width": crop[1] / resized[1],
        "height": crop[0] / resized[0],
    }
