"""A model behind HTTP, on Ray Serve: its routes, and `application`, which a RayService imports.

    serve.run(application(Settings(model="models:/rws-digits@champion")))

Requests that wait are answered together, by one model. Every refusal is `{"error": "a sentence"}`.
"""

# Without `from __future__ import annotations`: FastAPI reads the routes' types from their signatures.

import asyncio
import logging
import time
from pathlib import Path
from typing import Any, TypeVar

from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rws_ray.cluster.answers import (
    Answer,
    Codes,
    Description,
    EncodeQuestion,
    Question,
    Reconstructions,
    ReconstructQuestion,
    SampleQuestion,
    Samples,
    ScoreQuestion,
    Scores,
    answers,
    facts,
    work,
)
from rws_ray.cluster.metrics import SERVICE_TOTALS, RunMetrics
from rws_ray.cluster.served import ServedModel
from rws_ray.cluster.web import Settings, check, new_app
from rws_ray.config import home

MAX_BATCH = 16
INLINE_PRODUCTS = 1e8  # multiplications that take a few milliseconds, which is less than a thread may wait for its turn
log = logging.getLogger("ray.serve")
A = TypeVar("A", bound=Answer)


class Counted:
    """Counts what becomes of every request that reaches a replica, and the seconds of those that are answered."""

    def __init__(self, inner: ASGIApp):
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and look at the status of its answer; without one it failed."""
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.inner(scope, receive, seen)
        finally:
            metrics: RunMetrics = serve.get_replica_context().servable_object.metrics
            count(metrics, scope["method"], status, time.perf_counter() - started)


def count(metrics: RunMetrics, method: str, status: int, seconds: float) -> None:
    """Take an answer into the metrics; what is only looked at (GET) counts where it is refused or fails."""
    if status >= 500:
        metrics.add("rws_failed_total")
    elif status >= 400:
        metrics.add("rws_refused_total")
    elif method == "POST":
        metrics.add("rws_requests_total")
        metrics.observe("rws_request_seconds", seconds)


app = new_app()
app.add_middleware(Counted)


@serve.deployment(
    health_check_period_s=10,
    graceful_shutdown_timeout_s=20,
    ray_actor_options={"num_cpus": 1},
    logging_config={"enable_access_log": False},
)
@serve.ingress(app)
class ModelService:
    """One replica: a model, the watch of its alias, and the routes."""

    def __init__(self, settings: Settings):
        self.settings = settings
        place = Path(settings.home) if settings.home else home()
        self.served = ServedModel(settings.model, place, self._tell)
        self.metrics = RunMetrics(self.served.current.name, totals=SERVICE_TOTALS)
        self._tell_metrics()
        self.watch = self.served.watch(settings.watch_seconds)

    def __del__(self) -> None:
        """End the watch."""
        if hasattr(self, "served"):
            self.served.close()

    def _tell(self, sentence: str) -> None:
        log.warning(sentence)

    def _tell_metrics(self) -> None:
        self.metrics.tell_totals()
        self.metrics.set("rws_model_version", self.served.current.version)
        self.metrics.set("rws_model_refused", float(bool(self.served.refusal)))

    def check_health(self) -> None:
        """Asked by Serve, which replaces a replica that raises."""
        self._tell_metrics()
        if not self.watch.is_alive():
            raise RuntimeError("the watch of the alias has ended")

    @app.get("/health")
    async def health(self) -> dict[str, str]:
        """The replica lives."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready(self) -> dict[str, str]:
        """A model is loaded and was tried; a replica without one takes no requests at all."""
        return {"status": "ready", "model": self.served.current.uri}

    @app.get("/model")
    async def describe(self) -> Description:
        """The model in use, and the limits of a request."""
        served, limits = self.served.current, self.settings
        return Description(
            model=facts(served),
            reference=limits.model,
            refusal=self.served.refusal,
            dim=served.machine.dim,
            shape=list(served.machine.shape),
            layers=served.machine.layers,
            max_rows=limits.max_rows,
            max_samples=limits.max_samples,
            max_work=limits.max_work,
        )

    @app.post("/score")
    async def score(self, question: ScoreQuestion) -> Scores:
        """log p̂(x) of each row in nats, its Monte-Carlo error, and its effective sample size."""
        return await self._answered(question, Scores)

    @app.post("/reconstruct")
    async def reconstruct(self, question: ReconstructQuestion) -> Reconstructions:
        """The mean of p(x|h1) for each row, over samples of q(h1|x)."""
        return await self._answered(question, Reconstructions)

    @app.post("/encode")
    async def encode(self, question: EncodeQuestion) -> Codes:
        """The mean states of q(h|x) for each row, layer by layer."""
        return await self._answered(question, Codes)

    @app.post("/sample")
    async def sample(self, question: SampleQuestion) -> Samples:
        """Rows drawn from p."""
        return await self._answered(question, Samples)

    async def _answered(self, question: Question, kind: type[A]) -> A:
        check(question, self.served.current.machine.dim, self.settings)
        found = await self._batched(question)
        assert isinstance(found, kind)
        return found

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0)
    async def _batched(self, questions: list[Question]) -> list[Answer]:
        served = self.served.current
        if work(served.machine, questions) <= INLINE_PRODUCTS:
            return answers(served, questions)
        # In a thread: the replica's loop goes on taking requests, and answers health checks.
        return await asyncio.to_thread(answers, served, questions)


def application(args: Settings) -> Any:
    """The application that Serve runs; a RayService names it and gives `args`."""
    deployment: Any = ModelService  # which the decorators made of the class
    return deployment.options(
        num_replicas=args.num_replicas, max_ongoing_requests=args.max_ongoing, max_queued_requests=args.max_queued
    ).bind(args)
