"""A proxy on loopback that stands between a client and a real server, and fails as it is told."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("500", "429", "nothing", "drop")
HOP_BY_HOP = ("connection", "transfer-encoding", "keep-alive", "content-length", "date", "server")


class Proxy:
    """Passes requests on, or fails.

    Attributes:
        uri: where it listens.
        choose: asked at each request, by method and path, for `pass`, `500`, `429` (answered so, the server never
            hears of it), `nothing` (no answer until the proxy closes) or `drop` (the server does what was asked, the
            client hears nothing of it).
        counts: how often each was chosen.
    """

    def __init__(self, target: str):
        self.target, self.choose = urlsplit(target), lambda method, path: "pass"
        self.counts: dict[str, int] = {}
        self.closing = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Nothing on stderr."""

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (ConnectionError, TimeoutError):
                    self.close_connection = True

        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            setattr(Handler, f"do_{method}", lambda handler: proxy.serve(handler))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self.server.server_address[1]}"

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        """One request."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        chosen = self.choose(handler.command, handler.path)
        self.counts[chosen] = self.counts.get(chosen, 0) + 1
        if chosen == "nothing":
            self.closing.wait()
            handler.close_connection = True
            return
        if chosen in ("500", "429"):
            answer(handler, int(chosen), [("Content-Type", "application/json")], b'{"message": "no"}')
            return
        status, headers, content = self.forward(handler, body)
        if chosen == "drop":
            handler.close_connection = True
            handler.connection.close()
            return
        answer(handler, status, headers, content)

    def forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask the real server."""
        connection = http.client.HTTPConnection(str(self.target.hostname), self.target.port, timeout=60)
        headers = {key: value for key, value in handler.headers.items() if key.lower() not in HOP_BY_HOP}
        connection.request(handler.command, handler.path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, response.getheaders(), content


def answer(handler: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
    """Send a response whole."""
    handler.send_response(status)
    for key, value in headers:
        if key.lower() not in HOP_BY_HOP:
            handler.send_header(key, value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


@contextmanager
def faulty(target: str, choose: Callable[[str, str], str]) -> Iterator[Proxy]:
    """A proxy before the target while the block lasts."""
    proxy = Proxy(target)
    proxy.choose = choose
    thread = threading.Thread(target=proxy.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.closing.set()
        proxy.server.shutdown()
        proxy.server.server_close()
        thread.join()
