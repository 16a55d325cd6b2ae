"""The page's server: static files and what their script asks for. It answers to this machine's own names alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response

from rws_ray.core.machine import HelmholtzMachine
from rws_ray.errors import RwsError
from rws_ray.explorer import views

PAGE = Path(__file__).parent / "page"
POLICY = "default-src 'self'; style-src 'self'; img-src 'self' data:"
Load = Callable[[str], HelmholtzMachine]
Row = Annotated[list[Annotated[int, Field(ge=0, le=1)]], Field(max_length=100_000)]
Num = Annotated[int, Field(ge=1, le=64)]


class Asked(BaseModel):
    """What every question names."""

    model_config = ConfigDict(extra="forbid")
    model: str
    seed: Annotated[int, Field(ge=0)] = 0


class Look(Asked):
    """A row to look at."""

    row: Row


class Dream(Asked):
    """A layer to dream from; its units, or none to have them drawn."""

    layer: int
    units: Annotated[list[float], Field(max_length=100_000)] | None = None
    num: Num = 6


class Complete(Asked):
    """A row of which a part is known."""

    row: Row
    known: Annotated[list[bool], Field(max_length=100_000)]
    num: Num = 6


class Models:
    """The models that the page may show: loaded when they are asked for, and no others.

    Args:
        uris: of all that may be chosen, the one that the page opens with first.
        load: makes a machine of a URI.
    """

    def __init__(self, uris: list[str], load: Load):
        self.uris, self.load = uris, load
        self.loaded = {uris[0]: load(uris[0])}

    def __getitem__(self, uri: str) -> HelmholtzMachine:
        """The machine; ValueError where it is none of those that may be chosen."""
        if uri not in self.uris:
            raise ValueError(f"there is no model {uri!r} on this page")
        if uri not in self.loaded:
            self.loaded[uri] = self.load(uri)
        return self.loaded[uri]


def new_app(models: Models, examples: list[list[int]]) -> FastAPI:
    """The app.

    Args:
        models: what may be chosen.
        examples: rows to pick from; may be empty.
    """
    app = FastAPI(title="rws_ray explorer", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])

    @app.middleware("http")
    async def guard(request: Request, proceed: Any) -> Response:
        answer: Response = await proceed(request)
        answer.headers["Content-Security-Policy"] = POLICY
        answer.headers["Cache-Control"] = "no-store"
        return answer

    @app.exception_handler(ValueError)
    @app.exception_handler(RwsError)
    async def refuse(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"{str(error).rstrip('.')}."}, 422)

    @app.exception_handler(RequestValidationError)
    async def refuse_schema(request: Request, error: RequestValidationError) -> JSONResponse:
        fault = error.errors()[0]
        return JSONResponse({"error": f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}."}, 422)

    @app.get("/api/models")
    def choices() -> dict[str, Any]:
        return {
            "uris": models.uris,
            "num_examples": len(examples),
            "first": views.facts(models.uris[0], models[models.uris[0]]),
        }

    @app.get("/api/model")
    def model(uri: str) -> dict[str, Any]:
        return views.facts(uri, models[uri])

    @app.get("/api/examples/{number}")
    def example(number: int) -> dict[str, Any]:
        if not examples:
            raise ValueError("there are no examples: the data that the model was trained on are not here")
        return {"row": examples[number % len(examples)]}

    @app.post("/api/look")
    def look(asked: Look) -> dict[str, Any]:
        return views.look(models[asked.model], asked.row, asked.seed)

    @app.post("/api/dream")
    def dream(asked: Dream) -> dict[str, Any]:
        return views.dream(models[asked.model], asked.layer, asked.units, asked.num, asked.seed)

    @app.post("/api/complete")
    def complete(asked: Complete) -> dict[str, Any]:
        return {"rows": views.completions(models[asked.model], asked.row, asked.known, asked.num, asked.seed)}

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app
