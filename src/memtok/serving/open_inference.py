"""The Open Inference Protocol (KServe, Triton): /v2, with a BYTES tensor of images and every task as a model.

Source: https://github.com/kserve/open-inference-protocol, and Triton's extension for binary tensors, which its clients
use by default.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, Field

from memtok import __version__
from memtok.serving.batching import Asked
from memtok.serving.bodies import Body, decoded, parsed
from memtok.serving.errors import RequestError
from memtok.serving.models import Answers, TaskFacts
from memtok.serving.routes import Caller, Served, json_bytes, written
from memtok.serving.schemas import IMAGE, body, checked, errors, without_image
from memtok.serving.service import attended, deadline

INPUT, SCORES, LABELS = "images", "scores", "labels"

router = APIRouter(prefix="/v2", tags=["open inference protocol"])


class Tensor(BaseModel):
    """A tensor of a request. data: base64 of images; without it they are in the binary part."""

    name: str
    shape: list[int]
    datatype: str
    data: list[str] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class OutputWish(BaseModel):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferRequest(BaseModel):
    """A request of the protocol."""

    id: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: list[Tensor] = Field(min_length=1, max_length=1)
    outputs: list[OutputWish] | None = Field(None, max_length=2)  # there are two


class OutputTensor(BaseModel):
    """A tensor of an answer."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferResponse(BaseModel):
    """An answer of the protocol."""

    model_name: str
    id: str | None = None
    outputs: list[OutputTensor]


class TensorFacts(BaseModel):
    """A tensor of a model."""

    name: str
    datatype: str
    shape: list[int]


class ModelFacts(BaseModel):
    """A model of the protocol: a task."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorFacts]
    outputs: list[TensorFacts]
    parameters: dict[str, Any]


@router.get("")
async def server() -> dict[str, Any]:
    """The server."""
    return {"name": "memtok", "version": __version__, "extensions": ["binary_tensor_data"]}


@router.get("/health/live")
async def live() -> dict[str, bool]:
    """Whether the process answers."""
    return {"live": True}


@router.get("/health/ready", responses={503: {"description": "The server starts or stops."}})
async def ready(service: Served, response: Response) -> dict[str, bool]:
    """Whether it takes requests."""
    response.status_code = 200 if service.ready else 503
    return {"ready": service.ready}


@router.get("/models/{name:path}/ready", responses=without_image())
async def model_ready(name: str, service: Served, key: Caller) -> dict[str, Any]:
    """Whether a task is there."""
    (name,) = service.chosen(service.catalogue.model, key, [name])
    return {"name": name, "ready": service.ready}


@router.get("/models/{name:path}", response_model=ModelFacts, responses=without_image())
async def model(name: str, service: Served, key: Caller) -> Response:
    """A task, as a model of the protocol."""
    served = service.catalogue.model
    (name,) = service.chosen(served, key, [name])
    return written(facts(served.tasks[name]))


def facts(task: TaskFacts) -> dict[str, Any]:
    """A task in the protocol's terms."""
    return {
        "name": task.name,
        "versions": [],
        "platform": "memtok",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": SCORES, "datatype": "FP32", "shape": [-1, len(task.classes)]},
            {"name": LABELS, "datatype": "BYTES", "shape": [-1]},
        ],
        "parameters": {"classes": list(task.classes)},
    }


@router.post(
    "/models/{name:path}/infer",
    response_model=InferResponse,
    responses=errors() | {200: {"content": {"application/octet-stream": IMAGE}}},
    openapi_extra=body({"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}}),
)
async def infer(
    name: str,
    request: Request,
    service: Served,
    key: Caller,
    inference_header_content_length: Annotated[int | None, Header(ge=0)] = None,
) -> Response:
    """Scores (images, classes) and the most likely class (images,) of a task.

    The input is `images`: BYTES of shape [images], each the bytes of an image, in base64 as JSON, or as a binary
    tensor. A broken image is an error of the whole request: a tensor has no place for it.
    """
    async with deadline(service.limits.timeout):
        served = service.catalogue.model
        (name,) = service.chosen(served, key, [name])
        content = await request.body()
        end = len(content) if inference_header_content_length is None else inference_header_content_length
        asked = await service.in_pool(lambda: checked(InferRequest, parsed(content[:end])))
        tensor = asked.inputs[0]
        check_input(tensor)
        service.check_count(tensor.shape[0])
        found = await service.in_pool(lambda: images_of(tensor, content[end:]))
        images = [(f"{INPUT}[{index}]", one) for index, one in enumerate(found)]
        results = await attended(request, service.results(served, Body(images), Asked((name,))))
        for one in results:
            if one.error is not None:
                raise RequestError(one.error.status, f"{one.name}: {one.error}")
        answers = [one.answers for one in results if one.answers is not None]
        outputs = tensors(served.tasks[name], answers)
        return await service.in_pool(lambda: answer(asked, name, outputs))


def check_input(tensor: Tensor) -> None:
    """RequestError for another input than images."""
    if tensor.name != INPUT or tensor.datatype != "BYTES" or len(tensor.shape) != 1 or tensor.shape[0] < 1:
        raise RequestError(
            422,
            f"expected the input {INPUT!r} of datatype BYTES and shape [images], found {tensor.name[:80]!r} of "
            f"{tensor.datatype[:20]} and shape {tensor.shape[:5]}",
        )


def images_of(tensor: Tensor, binary: bytes) -> list[bytes]:
    """The bytes of each image of the input; RequestError for what is damaged or not as many as the shape says."""
    most = tensor.shape[0] + 1  # one more tells that there are too many
    if tensor.data is not None:
        images = [decoded(text, index) for index, text in enumerate(tensor.data[:most])]
    else:
        size = tensor.parameters.get("binary_data_size", len(binary))
        if size != len(binary):
            raise RequestError(422, f"expected binary_data_size {len(binary)}, found {str(size)[:20]}")
        images = list(islice(elements(binary), most))
    if len(images) != tensor.shape[0]:
        more = " or more" if len(images) == most else ""
        raise RequestError(422, f"expected {tensor.shape[0]} images by the shape, found {len(images)}{more}")
    return images


def elements(binary: bytes) -> Iterator[bytes]:
    """The elements of a binary BYTES tensor: each a length of four bytes, little endian, and so many bytes."""
    place = 0
    while place < len(binary):
        if place + 4 > len(binary):
            raise RequestError(422, "expected a whole binary tensor, found a truncated one")
        (length,) = struct.unpack_from("<I", binary, place)
        place += 4
        if place + length > len(binary):
            raise RequestError(422, "expected a whole binary tensor, found a truncated one")
        yield binary[place : place + length]
        place += length


def tensors(task: TaskFacts, answers: list[Answers]) -> dict[str, Any]:
    """The outputs of a task: scores as an array (images, classes), labels as a list."""
    scores = np.stack([one.probabilities[task.name] for one in answers])
    return {SCORES: scores, LABELS: [task.classes[number] for number in scores.argmax(axis=1)]}


def answer(asked: InferRequest, name: str, outputs: dict[str, Any]) -> Response:
    """The answer: the outputs that are asked for, those of `binary_data` behind the JSON."""
    wishes = [OutputWish(name=name) for name in outputs] if asked.outputs is None else asked.outputs
    every = asked.parameters.get("binary_data_output") is True
    described, parts = [], []
    for wish in wishes:
        if wish.name not in outputs:
            raise RequestError(422, f"expected an output out of {', '.join(outputs)}, found {wish.name[:80]!r}")
        value = outputs[wish.name]
        found: dict[str, Any] = {
            "name": wish.name,
            "datatype": "FP32" if wish.name == SCORES else "BYTES",
            "shape": list(np.shape(value)),
        }
        if wish.parameters.get("binary_data", every) is True:
            parts.append(binary_of(value))
            found["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            found["data"] = np.ravel(value).tolist()
        described.append(found)
    head = {"model_name": name, **({} if asked.id is None else {"id": asked.id}), "outputs": described}
    if not parts:
        return written(head)
    text = json_bytes(head)
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return Response(text + b"".join(parts), media_type="application/octet-stream", headers=headers)


def binary_of(value: Any) -> bytes:
    """An output as a binary tensor."""
    if isinstance(value, list):
        texts = [text.encode() for text in value]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return bytes(value.astype("<f4").tobytes())
