"""What the routes of both protocols share: who asks, and what is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from memtok.serving.keys import Key
from memtok.serving.models import Scores
from memtok.serving.service import Service

bearer = HTTPBearer(auto_error=False, description="An API key, if the server was started with --keys.")


async def service_of(request: Request) -> Service:
    """The service behind the application. A coroutine: FastAPI would run a function in a thread, for every request."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


Served = Annotated[Service, Depends(service_of)]


async def key_of(
    request: Request, service: Served, _: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)] = None
) -> Key:
    """Who asks; RequestError 401 or 429."""
    address = request.client.host if request.client else ""
    return await service.caller(request.headers.get("authorization"), address)


Caller = Annotated[Key, Depends(key_of)]


def ranking(scores: Scores, classes: tuple[str, ...], top: int) -> list[dict[str, Any]]:
    """[{"label", "score"}] of the `top` highest of (classes,) scores; of equal ones the first."""
    order = np.argsort(-scores, kind="stable")[:top]
    return [{"label": classes[number], "score": float(scores[number])} for number in order]


def written(value: Mapping[str, Any] | list[Any], status: int = 200) -> Response:
    """A value as an answer in JSON."""
    return Response(json_bytes(value), status, media_type="application/json")


def json_bytes(value: Mapping[str, Any] | list[Any]) -> bytes:
    """A value in JSON. Of a name that is no UTF-8, as a record or a request may have one, the odd parts are escapes."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")
