"""The images of a request, from its body: raw bytes, a form with files, or JSON with base64."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from memtok.data.images import UnreadableImageError, open_upright
from memtok.data.pixels import centre_corner, evaluation_array, resized_sides
from memtok.errors import MemtokError
from memtok.preprocessing import Preprocessing
from memtok.serving.errors import RequestError
from memtok.serving.models import Pixels

RAW = ("application/octet-stream", "")
NAMED = 200  # characters of a file name that are given back


@dataclass(frozen=True)
class Body:
    """The images of a request, (name, bytes) each, and the fields of its JSON or form beside them."""

    images: list[tuple[str, bytes]]
    fields: Mapping[str, Any] = field(default_factory=dict)


class InMemory(MultiPartParser):
    """Forms whose files stay in memory: a server may have no disk to write to. The size of a body is limited before."""

    spool_max_size = 2**40


async def read_body(request: Request) -> Body:
    """The images of a request; RequestError for a body that is none of the three kinds."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await read_form(request)
    content = await request.body()
    if kind == "application/json":
        return read_json(content)
    if kind in RAW or kind.startswith("image/"):
        if not content:
            raise RequestError(422, "expected the bytes of an image as the body, found nothing; send one")
        return Body([("image", content)])
    raise RequestError(
        415,
        "expected a body of image/*, application/octet-stream, multipart/form-data or application/json, found "
        f"{kind!r}; set Content-Type",
    )


@asynccontextmanager
async def closing(form: FormData) -> AsyncIterator[None]:
    """Closes the files of a form at the end of the block."""
    try:
        yield
    finally:
        await form.close()


async def read_form(request: Request) -> Body:
    """The files of a form, whatever their fields are called, and its other fields."""
    images: list[tuple[str, bytes]] = []
    fields: dict[str, Any] = {}
    try:
        form = await InMemory(request.headers, request.stream()).parse()
        async with closing(form):
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    images.append(((value.filename or name)[:NAMED], await value.read()))
                elif name == "tasks":
                    fields.setdefault("tasks", []).append(value)
                else:
                    fields[name] = value
    except (MultiPartException, KeyError, ValueError, AssertionError) as error:
        raise RequestError(422, f"expected a form with images as files, found a damaged one ({error})") from error
    if not images:
        raise RequestError(422, "expected a form with images as files, found none; add a part with a filename")
    return Body(images, fields)


def read_json(content: bytes) -> Body:
    """`{"images": [base64, ...]}`, or as Hugging Face's clients write it `{"inputs": base64, "parameters": {...}}`."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RequestError(422, f"expected JSON as the body, found something else ({error})") from error
    if not isinstance(value, dict):
        raise RequestError(422, f'expected a JSON object, found {type(value).__name__}; send {{"images": [base64]}}')
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


def decode(content: bytes, preprocessing: Preprocessing, max_pixels: int) -> Decoded:
    """The pixels (C, H, W) of an image in bytes; RequestError 413 for one that is too large, 422 for a broken one."""

    def check(image: Image.Image) -> None:
        if image.width * image.height > max_pixels:
            raise RequestError(
                413,
                f"expected an image of at most {max_pixels:,} pixels, found {image.width} x {image.height}; send a "
                "smaller one",
            )

    try:
        image = open_upright(io.BytesIO(content), "the image", check)
        return Decoded(evaluation_array(image, preprocessing), (image.height, image.width))
    except UnreadableImageError as error:
        cause: BaseException | None = error
        while cause is not None:  # a check that failed inside of the guarded block
            if isinstance(cause, RequestError):
                raise cause from error
            cause = cause.__cause__
        raise RequestError(422, f"expected a readable image, found another ({error.reason}); mend it") from error
    except (MemtokError, ValueError, MemoryError, OSError) as error:
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
