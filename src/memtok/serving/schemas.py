"""What goes in and out, as OpenAPI has it. Answers are written without these: they would cost more than the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memtok.serving.errors import RequestError

T = TypeVar("T", bound=BaseModel)

LARGEST_TOP = 100_000

Top = Annotated[int, Field(ge=1, le=LARGEST_TOP, description="how many classes of each task, the most likely first")]
Timeout = Annotated[float, Field(gt=0, allow_inf_nan=False, description="seconds; at most the server's own limit")]


class Strict(BaseModel):
    """Without other fields than those that are named."""

    model_config = ConfigDict(extra="forbid")


class Wishes(Strict):
    """What is asked of the images of a request, in its query, or beside them in JSON or a form."""

    tasks: list[str] | None = Field(None, description="the tasks to ask; by default all that the key can see")
    top: Top = 5
    base: bool = Field(False, description="also the backbone's own classes, as task `base`")
    embedding: bool = Field(False, description="also the backbone's features")
    timeout_s: Timeout | None = None


class HubWishes(Strict):
    """The same of one task, as Hugging Face's image classification calls it."""

    top_k: Top | None = None
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    timeout_s: Timeout | None = None


class Label(BaseModel):
    """A class and its probability."""

    label: str
    score: float


class ImageAnswer(BaseModel):
    """Of one image: its tasks' classes, or the error of one that is broken."""

    name: str
    tasks: dict[str, list[Label]] | None = None
    embedding: list[float] | None = None
    error: str | None = None


class Prediction(BaseModel):
    """Of all images of a request, in their order."""

    images: list[ImageAnswer]


class TaskDescription(BaseModel):
    """A task. bytes: its numbers in float32. attention: whether attention weights can be asked.

    They are those of its class tokens, or of the backbone's where it has none.
    """

    name: str
    classes: list[str]
    fingerprint: str
    regime: str | None
    parameters: int | None
    bytes: int | None
    extends: list[str]
    attention: bool
    changeable: bool
    record: dict[str, Any]


class StoredTaskDescription(TaskDescription):
    """A task that was added or replaced. stored: whether it is there again after a restart."""

    stored: bool


class Backbone(BaseModel):
    """Where the backbone came from."""

    source: str
    fingerprint: str


class TaskList(BaseModel):
    """The tasks that the key can see. fixed: whether they cannot change. keys: whether the server asks for keys.

    may_add: whether the key may add tasks, under some name. limits: bytes of a body, and pixels of an image.
    """

    backbone: Backbone
    preprocessing: dict[str, Any]
    base_classes: int | None
    embedding: bool
    fixed: bool
    keys: bool
    admin: bool
    may_add: bool
    limits: dict[str, int]
    tasks: list[TaskDescription]


class Area(BaseModel):
    """A part of an image, in fractions of its sides."""

    left: float
    top: float
    width: float
    height: float


class Attention(BaseModel):
    """Attention weights of a class token over the patches, rows from the top: last layer, mean over the heads."""

    task: str
    token: str
    weights: list[list[float]]
    area: Area


class Error(BaseModel):
    """One line: what was expected, what was found, what to do."""

    error: str


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "The request could not be read."},
    401: {"model": Error, "description": "No key, or a wrong one."},
    404: {"model": Error, "description": "No such task, or none that the key can see."},
    408: {"model": Error, "description": "The time of the request is over."},
    413: {"model": Error, "description": "The body, an image, or the number of images is too large."},
    415: {"model": Error, "description": "A body of an unknown type."},
    422: {"model": Error, "description": "An image, a file or a parameter is not what was expected."},
    429: {"model": Error, "description": "Too many requests, or too many images that wait. See `Retry-After`."},
}


def errors(*more: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, `more` beside the usual ones."""
    extra = {403: "The key may not change this task.", 409: "The task cannot be changed as it is."}
    return ERRORS | {status: {"model": Error, "description": extra[status]} for status in more}


def without_image() -> dict[int | str, dict[str, Any]]:
    """The errors of a route that takes no body."""
    return {status: ERRORS[status] for status in (400, 401, 404, 422, 429)}


def checked(kind: type[T], fields: Mapping[str, Any]) -> T:
    """The fields as `kind`; RequestError 422 in one line."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise RequestError(422, line_of(error.errors())) from error


def line_of(errors: Any) -> str:
    """The first of pydantic's errors, in one line."""
    first = errors[0]
    where = [str(part) for part in first["loc"] if part not in ("query", "body", "path", "header")]
    found = f", found {str(first['input'])[:80]!r}" if "input" in first else ""
    return f"expected another {'.'.join(where) or 'request'}: {first['msg'][:1].lower()}{first['msg'][1:]}{found}"


IMAGE = {"schema": {"type": "string", "format": "binary"}}
FILES = {
    "type": "object",
    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}},
    "required": ["images"],
}
BASE64 = {"type": "string", "contentEncoding": "base64", "description": "the bytes of an image, in base64"}


def body(content: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body itself: the schema of each content type."""
    return {"requestBody": {"required": True, "content": content}}


RAW = dict.fromkeys(("image/png", "image/jpeg", "image/webp", "application/octet-stream"), IMAGE)


def json_of(required: str, properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of a JSON object with these properties only."""
    schema = {"type": "object", "properties": properties, "required": [required], "additionalProperties": False}
    return {"schema": schema}


TOP = {"type": "integer", "minimum": 1, "maximum": LARGEST_TOP}
PREDICT_BODY = body(
    {
        **RAW,
        "multipart/form-data": {"schema": FILES},
        "application/json": json_of(
            "images",
            {
                "images": {"type": "array", "items": BASE64, "minItems": 1},
                "tasks": {"type": "array", "items": {"type": "string"}},
                "top": TOP,
                "base": {"type": "boolean"},
                "embedding": {"type": "boolean"},
            },
        ),
    }
)
TASK_PREDICT_BODY = body(
    {
        **RAW,
        "application/json": json_of(
            "inputs",
            {
                "inputs": BASE64,
                "parameters": {
                    "type": "object",
                    "properties": {"top_k": TOP, "function_to_apply": {"enum": ["softmax", "sigmoid", "none"]}},
                    "additionalProperties": False,
                },
            },
        ),
    }
)
IMAGE_BODY = body(RAW)
TASK_FILE_BODY = body({"application/octet-stream": IMAGE})
