"""Input for every route, good and bad, made by schemathesis from the OpenAPI schema: the answers are as it says.

No answer is a 5xx, each status and content type is in the schema, each body fits it, what the schema forbids is
refused, and every error is one line of JSON. A failure prints the request as a curl command. MEMTOK_TEST_SEED is the
seed, MEMTOK_FUZZ_EXAMPLES how much is tried of each route; `make fuzz` tries more, with a seed of its own.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from fastapi import FastAPI
from hypothesis import strategies as st

import memtok
from memtok.serving.application import create_app
from memtok.serving.catalogue import Catalogue
from memtok.serving.settings import Limits
from tests.serving.attack_tools import HOST, made_app, picture, task_file, tenants
from tests.tiny import tiny_backbone, tiny_task

schemathesis = pytest.importorskip("schemathesis")
negative_data_rejection = pytest.importorskip("schemathesis.specs.openapi.checks").negative_data_rejection

SEED = int(os.environ.get("MEMTOK_TEST_SEED", "0"))
EXAMPLES = int(os.environ.get("MEMTOK_FUZZ_EXAMPLES", "6"))

ROUTES = (
    "POST /v1/predict",
    "POST /v1/tasks/{name}/predict",
    "POST /v1/tasks/{name}/attention",
    "GET /v1/tasks",
    "GET /v1/tasks/{name}",
    "PUT /v1/tasks/{name}",
    "DELETE /v1/tasks/{name}",
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /v2/models/{name}",
    "GET /v2/models/{name}/ready",
    "POST /v2/models/{name}/infer",
    "GET /metrics",
)
OPEN = {"GET /v2", "GET /v2/health/live", "GET /v2/health/ready"}
"""Routes that ask for no key."""
CHANGING = {"PUT /v1/tasks/{name}", "DELETE /v1/tasks/{name}"}

# What the schema cannot say: that bytes are those of an image, or of a task file. What the server may answer to a
# request that is wrong in two ways: that its time is over, or that it is too large.
REFUSALS = ["400", "401", "403", "404", "405", "408", "409", "413", "415", "422", "429"]
CONFIG = {
    "checks": {
        "positive_data_acceptance": {"enabled": False},
        "negative_data_rejection": {"expected-statuses": REFUSALS},
    }
}


WHO = ("everybody", "tenant", "admin", "stranger", "exported")


@dataclass
class Asked:
    """A server, whom it takes us for, and what it may be given that no generator finds."""

    app: FastAPI
    headers: dict[str, str]
    file: bytes


@pytest.fixture(params=WHO)
def asked(request: pytest.FixtureRequest, tmp_path: Path) -> Asked:
    backbone = tiny_backbone(depth=1)
    tasks = [tiny_task(backbone, name, seed=seed) for seed, name in enumerate(("acme-one", "beta-one", "acme-two"))]
    file, headers = task_file(tasks[0], tmp_path), {"Host": HOST}
    if request.param == "everybody":
        return Asked(made_app(tasks), headers, file)
    if request.param == "exported":
        return Asked(exported(tasks, tmp_path / "model.onnx"), headers, file)
    keys = {**tenants(tmp_path / "keys.json"), "stranger": {}}
    own = keys["acme" if request.param == "tenant" else request.param]
    return Asked(made_app(tasks, keys=tmp_path / "keys.json"), headers | own, file)


def exported(tasks: list[memtok.Task], path: Path) -> FastAPI:
    """A server of an ONNX file."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from memtok.serving.onnx_model import ExportedModel

    memtok.export(memtok.MemoryViT(tasks[0].backbone, tasks), path, base=True, embedding=True)
    return create_app(Catalogue(ExportedModel(memtok.load_onnx(path)), Limits()))


def test_answers_as_the_schema_says(asked: Asked, request: pytest.FixtureRequest) -> None:
    print(f"seed {SEED}, {EXAMPLES} examples (repeat with MEMTOK_TEST_SEED={SEED} MEMTOK_FUZZ_EXAMPLES={EXAMPLES})")
    config = schemathesis.Config.from_dict(CONFIG)
    schema = schemathesis.openapi.from_asgi("/openapi.json", asked.app, config=config, headers=asked.headers)
    assert {operation.ok().label for operation in schema.get_all_operations()} == set(ROUTES)
    failures = []
    for route in ROUTES:
        method, path = route.split()
        for mode in schemathesis.GenerationMode:
            try:
                ask(asked, schema[path][method], route, mode)
            except Exception as error:
                failures.append(error)
    if failures:
        raise ExceptionGroup("answers that are not as the schema says", failures)
    # The same checks see answers of the work itself, wherever there may be some.
    who = request.node.callspec.params["asked"]
    refused = {
        "everybody": {},
        "admin": {},
        "tenant": {"GET /metrics": 403},
        "stranger": dict.fromkeys(set(ROUTES) - OPEN, 401),
        "exported": dict.fromkeys({*CHANGING, "POST /v1/tasks/{name}/attention"}, 409),
    }[who]
    for route in ROUTES:
        method, path = route.split()
        for content in bodies(asked, route):
            case = schema[path][method].Case(path_parameters=named(route), **content)
            response = case.call(headers=asked.headers)
            assert response.status_code in ((refused[route],) if route in refused else (200, 201, 204)), response.text
            check(asked, case, response)


def ask(asked: Asked, operation: Any, route: str, mode: Any) -> None:
    """Asks a route, in (mode "positive") or out of what the schema allows."""

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=EXAMPLES,
        database=None,
        phases=[hypothesis.Phase.generate],  # a failure is told as it is found
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(
        case=operation.as_strategy(generation_mode=mode),
        known=st.booleans(),
        content=st.sampled_from([{}, *bodies(asked, route)]),
    )
    def answers(case: Any, known: bool, content: dict[str, Any]) -> None:
        real = mode.is_positive and bool(content) and case.media_type == content["media_type"]
        if known and "name" in case.path_parameters:  # no generator finds the name of a task that is there
            case.path_parameters |= named(route)
        if real:  # nor the bytes of an image
            case.body = content["body"]
            case.query.pop("timeout_s", None)  # it is mostly too short
        # What was exchanged may have been all that was wrong.
        check(asked, case, case.call(headers=asked.headers), *([negative_data_rejection] if known or real else []))

    try:
        answers()
    except hypothesis.errors.Unsatisfiable:
        assert mode.is_negative  # nothing can be wrong with a request without parameters


def check(asked: Asked, case: Any, response: Any, *without: Any) -> None:
    """An answer is as the schema says, and an error is one line of JSON."""
    case.validate_response(response, headers=asked.headers, excluded_checks=without)
    if response.status_code >= 400:
        found = response.json()
        assert list(found) == ["error"]
        assert found["error"].isprintable()


def named(route: str) -> dict[str, str]:
    """The name of a task that is there: one to ask, another one to change."""
    return {"name": "acme-two" if route in CHANGING else "acme-one"} if "{name}" in route else {}


def bodies(asked: Asked, route: str) -> list[dict[str, Any]]:
    """Good bodies for a route, with their content types; one that is empty where it takes none."""
    image = picture(size=(3, 2))
    text = base64.b64encode(image).decode()
    if route == "PUT /v1/tasks/{name}":
        return [{"body": asked.file, "media_type": "application/octet-stream"}]
    if not route.startswith("POST"):
        return [{}]
    if route.endswith("/infer"):
        tensor = {"name": "images", "shape": [1], "datatype": "BYTES", "data": [text]}
        objects = [{"inputs": [tensor], "parameters": {"binary_data_output": binary}} for binary in (False, True)]
        return [{"body": one, "media_type": "application/json"} for one in objects]
    found: list[dict[str, Any]] = [{"body": image, "media_type": "image/png"}]
    if route == "POST /v1/predict":
        found.append({"body": {"images": [image]}, "media_type": "multipart/form-data"})
        found.append({"body": {"images": [text], "base": True}, "media_type": "application/json"})
    if route == "POST /v1/tasks/{name}/predict":
        parameters = {"function_to_apply": "none"}
        found.append({"body": {"inputs": text, "parameters": parameters}, "media_type": "application/json"})
    return found
