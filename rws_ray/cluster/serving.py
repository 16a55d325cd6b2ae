"""Ray Serve from a command: a service in the session's cluster, for as long as the block lasts."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rws_ray.cluster.session import on_a_cluster, session
from rws_ray.errors import InfrastructureError

NAME = "rws"
REQUEST_SECONDS = 120.0


@contextmanager
def serving(settings: dict[str, Any], host: str, port: int) -> Iterator[str]:
    """Run the service of `settings` (cluster.service.Settings) and yield its address.

    Raises:
        InfrastructureError: the port is taken, Ray does not start, or no replica comes up.
    """
    if not on_a_cluster():
        check_free(host, port)
    with session():
        from ray import serve

        from rws_ray.cluster.service import application
        from rws_ray.cluster.web import Settings

        for name in ("ray.serve", "ray._private"):
            logging.getLogger(name).setLevel(logging.ERROR)
        serve.start(
            http_options={"host": host, "port": port, "request_timeout_s": REQUEST_SECONDS},
            logging_config={"enable_access_log": False},  # a line to a file for each request
        )
        try:
            serve.run(application(Settings(**settings)), name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise InfrastructureError(f"the service did not start: {' '.join(str(error).split())[-800:]}") from None
        try:
            yield f"http://{host}:{port}"
        finally:
            if on_a_cluster():
                serve.delete(NAME)  # elsewhere Serve ends with the session


def check_free(host: str, port: int) -> None:
    """InfrastructureError where another program listens at the address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InfrastructureError(
                f"{host}:{port} cannot be listened at ({error.strerror}): end what listens there, or "
                "take another --port."
            ) from None


@contextmanager
def stopped() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set."""
    event = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        event.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
