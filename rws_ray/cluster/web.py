"""HTTP around a model: the app, how large a request may be, and how it is refused, in a sentence each time."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rws_ray import __version__
from rws_ray.cluster.answers import Fault, Question, RowsQuestion

PATHS = "/score, /reconstruct, /encode, /sample, /model, /docs"
MAX_BODY_BYTES = 32 * 2**20
MAX_DRAINED_BYTES = 8 * MAX_BODY_BYTES


class Settings(BaseModel):
    """What a service is started with; `args` of a RayService's application."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(description="models:/NAME@ALIAS, or whatever else names a model")
    home: str = Field("", description="working folder; empty: RWS_HOME")
    num_replicas: int = Field(1, ge=1)
    watch_seconds: float = Field(5.0, gt=0, description="between looks at the alias")
    max_rows: int = Field(1000, ge=1, description="rows of a request")
    max_samples: int = Field(10_000, ge=1, description="num_samples of a request")
    max_work: int = Field(1_000_000, ge=1, description="rows times num_samples of a request")
    max_ongoing: int = Field(64, ge=1, description="requests that a replica takes at a time")
    max_queued: int = Field(512, ge=0, description="requests that wait for a replica; more get 503")


class BodyLimit:
    """Refuses bodies that are too large."""

    def __init__(self, inner: ASGIApp):
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body, or answer 413."""
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        body, taken = bytearray(), 0
        # What is too much is read as well, though not kept: most clients listen only when they have sent all.
        while taken <= MAX_DRAINED_BYTES:
            message = await receive()
            chunk = message.get("body", b"")
            taken += len(chunk)
            if taken <= MAX_BODY_BYTES:
                body += chunk
            if not message.get("more_body", False):
                break
        if taken > MAX_BODY_BYTES:
            sentence = f"the body has more than {MAX_BODY_BYTES:,} bytes: send fewer rows at a time."
            await JSONResponse({"error": sentence}, 413)(scope, receive, send)
            return
        is_taken = False

        async def whole() -> Message:
            nonlocal is_taken
            if is_taken:
                return await receive()
            is_taken = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.inner(scope, whole, send)


async def refuse(request: Request, error: HTTPException) -> JSONResponse:
    """Unknown paths, wrong methods, and what the routes refuse."""
    if error.status_code == 404 and error.detail == "Not Found":
        error.detail = f"there is no {request.url.path}; there are {PATHS}."
    if error.status_code == 405:
        error.detail = f"{request.url.path} does not take {request.method}; /docs tells what it takes."
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def refuse_schema(request: Request, error: RequestValidationError) -> JSONResponse:
    """The first fault of a body, with its place."""
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"] if part != "body") or "the body"
    if fault["type"] == "json_invalid":
        place, fault["msg"] = "the body", f"is no JSON ({fault.get('ctx', {}).get('error', 'unreadable')})"
    reason = fault["msg"].removeprefix("Input ")
    return JSONResponse({"error": f"{place}: {reason}. See /docs for what {request.url.path} takes."}, 422)


async def fail(request: Request, error: Exception) -> JSONResponse:
    """A fault of ours."""
    return JSONResponse({"error": "the service failed; its log tells why."}, 500)


def new_app() -> FastAPI:
    """The app, without its routes."""
    app = FastAPI(
        title="rws_ray",
        version=__version__,
        description="Likelihoods, reconstructions, codes and samples of a Helmholtz machine.",
        responses={status: {"model": Fault} for status in (413, 422)},
    )
    app.add_middleware(BodyLimit)
    app.exception_handler(HTTPException)(refuse)
    app.exception_handler(RequestValidationError)(refuse_schema)
    app.exception_handler(Exception)(fail)
    return app


def check(question: Question, dim: int, limits: Settings) -> None:
    """HTTPException (413: too large, 422: of the wrong width) unless the question can be answered."""
    num_rows = len(question.rows) if isinstance(question, RowsQuestion) else getattr(question, "num", 0)
    if num_rows > limits.max_rows:
        raise HTTPException(413, f"{num_rows:,} rows are asked for; a request may have {limits.max_rows:,}.")
    num_samples = getattr(question, "num_samples", 1)
    if num_samples > limits.max_samples:
        raise HTTPException(413, f"num_samples is {num_samples:,}; a request may have {limits.max_samples:,}.")
    if num_rows * num_samples > limits.max_work:
        raise HTTPException(
            413,
            f"{num_rows:,} rows times {num_samples:,} samples are {num_rows * num_samples:,}; a request may have "
            f"{limits.max_work:,}: send fewer rows at a time.",
        )
    if isinstance(question, RowsQuestion):
        for place, row in enumerate(question.rows):
            if len(row) != dim:
                raise HTTPException(422, f"rows.{place} has {len(row)} values; the model takes {dim}.")
