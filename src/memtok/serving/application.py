"""The application: routes, errors in one line, the page, the metrics. `create_app` is what an ASGI server runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.routing import Match
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from memtok import __version__
from memtok.errors import MemtokError
from memtok.serving import open_inference, v1
from memtok.serving.catalogue import Catalogue
from memtok.serving.errors import RequestError
from memtok.serving.guard import Guard
from memtok.serving.keys import KeyRing
from memtok.serving.open_inference import InferRequest
from memtok.serving.routes import Caller, Served, written
from memtok.serving.schemas import errors, line_of
from memtok.serving.service import Service

ROUTERS = (v1.router, open_inference.router)
PAGE = Path(__file__).parent / "page"
POLICY = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; frame-ancestors 'none'"
ABOUT = 'Tasks of one Vision Transformer, answered in one pass. Errors are `{"error": line}`.'
PLAIN: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


def create_app(catalogue: Catalogue, keys: KeyRing | None = None, *, hosts: Collection[str] | None = None) -> FastAPI:
    """The application that answers with a catalogue's tasks, to everybody or to those with a key.

    hosts: the names of this server that a request may give in its header `Host`; None for any. Without keys it keeps
    pages of other hosts, which a browser on this machine shows, from using the server (DNS rebinding).
    """
    service = Service(catalogue, keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app: FastAPI = FastAPIOffline(
        redoc_url=None,
        title="memtok",
        version=__version__,
        description=ABOUT,
        lifespan=lifespan,
        static_url="/docs-files",
        favicon_url="/page/icon.svg",
        swagger_ui_parameters={"validatorUrl": None},
        redirect_slashes=False,  # it would redirect to whatever the header Host says
    )
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    add_metrics(app)
    add_page(app)
    add_errors(app)
    add_schemas(app, keys is not None)
    app.add_middleware(Guard, service=service, hosts=hosts)
    return app


def add_metrics(app: FastAPI) -> None:
    """/metrics, for an admin key: it has the names of all tasks."""

    @app.get("/metrics", response_class=Response, responses=errors(403) | PLAIN, tags=["operation"])
    async def metrics(service: Served, key: Caller) -> Response:
        """Metrics in the text format of Prometheus."""
        if not key.admin:
            raise RequestError(403, "expected an admin key for the metrics, found another; ask the operator for one")
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def add_page(app: FastAPI) -> None:
    """The page at / and its files."""

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})

    app.mount("/page", StaticFiles(directory=PAGE), name="page")


def add_errors(app: FastAPI) -> None:
    """Every error as {"error": line}."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        answer = written({"error": str(error)}, error.status)
        answer.headers.update(error.headers)
        return answer

    @app.exception_handler(MemtokError)
    async def wrong(request: Request, error: MemtokError) -> Response:
        return written({"error": str(RequestError(422, error))}, 422)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return written({"error": str(RequestError(422, line_of(error.errors())))}, 422)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        line = f"{error.detail}: {request.method} {request.scope['path']}; /docs has what there is"
        answer = written({"error": str(RequestError(error.status_code, line))}, error.status_code)
        answer.headers.update(error.headers or {})
        if error.status_code == 405:
            answer.headers["Allow"] = ", ".join(sorted(methods_at(app, request.scope)))
        return answer


def methods_at(app: FastAPI, scope: Scope) -> set[str]:
    """The methods that a path has, of all its routes; the error of a wrong one names those of the first only."""
    routes = [*app.routes, *(route for router in ROUTERS for route in router.routes)]
    matching = [route for route in routes if route.matches(scope)[0] is not Match.NONE]
    return {method for route in matching for method in getattr(route, "methods", None) or ()}


def add_schemas(app: FastAPI, with_keys: bool) -> None:
    """The schemas of bodies that routes read themselves; and no key, where none is needed."""
    own = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = own()
            parts = InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            schema["components"]["schemas"] |= {**parts.pop("$defs"), "InferRequest": parts}
            if not with_keys:
                del schema["components"]["securitySchemes"]
                for path in schema["paths"].values():
                    for operation in path.values():
                        operation.pop("security", None)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
