"""memtok's own protocol: /v1/predict, and /v1/tasks with what can be done with one of them."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from memtok.exports.description import BASE
from memtok.serving.batching import Asked
from memtok.serving.bodies import Body, area, read_body
from memtok.serving.errors import RequestError
from memtok.serving.keys import Key
from memtok.serving.models import Answers, ServedModel, TaskFacts, softmax
from memtok.serving.routes import Caller, Served, ranking, written
from memtok.serving.schemas import (
    IMAGE_BODY,
    PREDICT_BODY,
    TASK_FILE_BODY,
    TASK_PREDICT_BODY,
    Attention,
    HubWishes,
    Label,
    Prediction,
    StoredTaskDescription,
    TaskDescription,
    TaskList,
    Timeout,
    Wishes,
    checked,
    errors,
    without_image,
)
from memtok.serving.service import Result, Service, attended, deadline

router = APIRouter(prefix="/v1")


@router.post("/predict", response_model=Prediction, responses=errors(), openapi_extra=PREDICT_BODY, tags=["predict"])
async def predict(request: Request, service: Served, key: Caller, query: Annotated[Wishes, Query()]) -> Response:
    """Answers of all tasks, or of some, to one image or several.

    The body is an image (`image/*` or `application/octet-stream`), a form with images as files, or JSON with base64.
    A broken image among several has an `error` in the place of its answers; one alone is a 422.
    """
    async with deadline(allowed(service, query.timeout_s)):
        body = await read_body(request, service.in_pool)
        given = query.model_dump(exclude_unset=True)
        wishes = checked(Wishes, {**given, **body.fields})
        model = service.catalogue.model
        names = service.chosen(model, key, wishes.tasks)
        check_offered(model, wishes)
        results = await attended(request, service.results(model, body, Asked(names, wishes.base, wishes.embedding)))
        if all(one.error is not None for one in results):
            raise results[0].error or AssertionError
        return await service.in_pool(lambda: written({"images": [image(model, one, wishes) for one in results]}))


def allowed(service: Service, asked: float | None) -> float:
    """The seconds that a request may take."""
    return service.limits.timeout if asked is None else min(asked, service.limits.timeout)


def check_offered(model: ServedModel, wishes: Wishes) -> None:
    """RequestError 422 for what this model cannot give."""
    if wishes.base and model.base_classes is None:
        raise RequestError(422, "expected a model with classes of its own for base, found none; leave it out")
    if wishes.embedding and not model.embeds:
        raise RequestError(422, "expected a model that gives its embedding, found none; leave it out")


def image(model: ServedModel, result: Result, wishes: Wishes) -> dict[str, Any]:
    """What is answered for one image."""
    if result.answers is None:
        return {"name": result.name, "error": str(result.error)}
    tasks = {}
    for name in result.answers.probabilities:
        classes = (model.base_classes or ()) if name == BASE else model.tasks[name].classes
        tasks[name] = ranking(result.answers.probabilities[name], classes, wishes.top)
    found: dict[str, Any] = {"name": result.name, "tasks": tasks}
    if result.answers.embedding is not None:
        found["embedding"] = result.answers.embedding.tolist()
    return found


@router.post(
    "/tasks/{name:path}/predict",
    response_model=list[Label],
    responses=errors(),
    openapi_extra=TASK_PREDICT_BODY,
    tags=["predict"],
)
async def predict_task(
    name: str, request: Request, service: Served, key: Caller, query: Annotated[HubWishes, Query()]
) -> Response:
    """Answers of one task to an image, in the schema of Hugging Face's image classification.

    `huggingface_hub.InferenceClient(model=URL_OF_THIS_ROUTE).image_classification(image)` asks so.
    """
    async with deadline(allowed(service, query.timeout_s)):
        model = service.catalogue.model
        (name,) = service.chosen(model, key, [name])
        body = await read_body(request, service.in_pool)
        wishes = checked(HubWishes, {**query.model_dump(exclude_unset=True), **body.fields})
        answers = await one_answer(request, service, model, body, Asked((name,)))
        scores = applied(answers, name, wishes.function_to_apply)
        classes = model.tasks[name].classes
        return written(ranking(scores, classes, wishes.top_k or len(classes)))


async def one_answer(request: Request, service: Service, model: ServedModel, body: Body, asked: Asked) -> Answers:
    """The answer to the only image of a request; RequestError if it is broken or there are several."""
    if len(body.images) != 1:
        raise RequestError(422, f"expected one image, found {len(body.images)}; POST /v1/predict takes several")
    [result] = await attended(request, service.results(model, body, asked))
    if result.answers is None:
        raise result.error or AssertionError
    return result.answers


def applied(answers: Answers, name: str, function: str | None) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The scores of a task (classes,): probabilities, or what `function` makes of the logits."""
    if function in (None, "softmax"):
        return answers.probabilities[name]
    if answers.logits is None:
        raise RequestError(
            422, f"expected a model that gives logits for function_to_apply {function!r}, found one of probabilities"
        )
    logits = answers.logits[name]
    return logits if function == "none" else softmax(np.stack([logits, np.zeros_like(logits)], axis=-1))[..., 0]


@router.post(
    "/tasks/{name:path}/attention",
    response_model=Attention,
    responses=errors(409),
    openapi_extra=IMAGE_BODY,
    tags=["predict"],
)
async def attention(
    name: str, request: Request, service: Served, key: Caller, timeout_s: Annotated[Timeout | None, Query()] = None
) -> Response:
    """Attention weights over the patches of an image, of the task's class tokens or else of the backbone's."""
    async with deadline(allowed(service, timeout_s)):
        model = service.catalogue.model
        (name,) = service.chosen(model, key, [name])
        token = model.tasks[name].attention
        if token is None:
            raise RequestError(409, f"expected a task or a backbone with a class token, found {name!r} without")
        body = await read_body(request, service.in_pool)
        weights, size = await attended(request, service.attention(model, body, name))
        found = {"task": name, "token": token, "weights": weights.tolist(), "area": area(size, model.preprocessing)}
        return written(found)


@router.get("/tasks", response_model=TaskList, responses=without_image(), tags=["tasks"])
async def tasks(service: Served, key: Caller) -> Response:
    """The tasks that the key can see, and what is served with them."""
    model = service.catalogue.model
    source, fingerprint = model.backbone
    return written(
        {
            "backbone": {"source": source, "fingerprint": fingerprint},
            "preprocessing": model.preprocessing.to_dict(),
            "base_classes": None if model.base_classes is None else len(model.base_classes),
            "embedding": model.embeds,
            "fixed": service.catalogue.fixed,
            "keys": service.keys is not None,
            "admin": key.admin,
            "may_add": not service.catalogue.fixed and (key.admin or bool(key.change)),
            "limits": {"body": service.limits.max_body, "pixels": service.limits.max_pixels},
            "tasks": [described(service, key, task) for task in service.catalogue.seen(key).values()],
        }
    )


@router.get("/tasks/{name:path}", response_model=TaskDescription, responses=without_image(), tags=["tasks"])
async def task(name: str, service: Served, key: Caller) -> Response:
    """One task."""
    model = service.catalogue.model
    (name,) = service.chosen(model, key, [name])
    return written(described(service, key, model.tasks[name]))


@router.put(
    "/tasks/{name:path}",
    response_model=StoredTaskDescription,
    responses={**errors(403, 409), 201: {"model": StoredTaskDescription, "description": "A task that was not there."}},
    openapi_extra=TASK_FILE_BODY,
    tags=["tasks"],
)
async def put_task(name: str, request: Request, service: Served, key: Caller) -> Response:
    """Adds a task, or replaces the one of its name, from the bytes of a task file. Requests in flight stay as they are.

    With `--task-dir` it is there again after a restart.
    """
    async with deadline(service.limits.timeout):
        content = await request.body()
        change = await service.catalogue.put(name, content, key)
    found = {**described(service, key, change.task), "stored": change.stored}
    return written(found, 201 if change.created else 200)


@router.delete("/tasks/{name:path}", status_code=204, responses=without_image() | errors(403, 409), tags=["tasks"])
async def delete_task(name: str, service: Served, key: Caller) -> Response:
    """Removes a task. Requests in flight are still answered. One given on the command line is back after a restart."""
    async with deadline(service.limits.timeout):
        await service.catalogue.delete(name, key)
    service.metrics.forget(name)
    return Response(status_code=204)


def described(service: Service, key: Key, task: TaskFacts) -> dict[str, Any]:
    """A task as the key sees it: of what it extends, only what the key can see too."""
    return {
        "name": task.name,
        "classes": list(task.classes),
        "fingerprint": task.fingerprint,
        "regime": task.regime,
        "parameters": task.parameters,
        "bytes": task.bytes,
        "extends": [name for name in task.extends if key.sees(name)],
        "attention": task.attention is not None,
        "changeable": not service.catalogue.fixed and key.changes(task.name),
        "record": dict(task.record),
    }
