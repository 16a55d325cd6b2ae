"""One public file fetched to disk, with its progress on stderr."""

from __future__ import annotations

import http.client
import sys
import time
import urllib.request
from pathlib import Path
from typing import IO

from rws_ray.errors import InfrastructureError

_TIMEOUT_S = 30.0
_BLOCK_BYTES = 1 << 20


def download(address: str, target: Path, way_out: str) -> None:
    """Fetch `address` (https) into `target`.

    Raises:
        InfrastructureError: no network, no such file, or a connection cut short; the sentence ends with `way_out`.
    """
    try:
        # An opener of our own, so that the proxy settings of the moment count.
        with (
            urllib.request.build_opener().open(address, timeout=_TIMEOUT_S) as answer,
            target.open("wb") as file,
        ):
            expected = int(answer.headers.get("Content-Length") or 0)
            received = _copy(answer, file, target.name, expected)
        if received < expected:
            raise EOFError(f"{received} of {expected} bytes came")
    except (OSError, EOFError, http.client.HTTPException) as error:
        raise InfrastructureError(f"{address}: cannot be fetched ({str(error).strip('<>')}). {way_out}") from error


def _copy(answer: IO[bytes], file: IO[bytes], name: str, expected: int) -> int:
    is_terminal = sys.stderr.isatty()
    # A terminal's line is written over; a log gets a line now and then.
    form, end, pause_s = ("\r{:<79}", "", 0.2) if is_terminal else ("{}", "\n", 10.0)
    started = told = time.monotonic()
    received = 0
    while block := answer.read(_BLOCK_BYTES):
        file.write(block)
        received += len(block)
        now = time.monotonic()
        if now - told >= pause_s and expected:
            told, left_s = now, (expected - received) * (now - started) / received
            line = f"{name}: {received / 1e6:.1f} of {expected / 1e6:.1f} MB, {left_s:.0f} s left"
            print(form.format(line), end=end, file=sys.stderr, flush=True)
    print(form.format(f"{name}: {received / 1e6:.1f} MB"), file=sys.stderr, flush=True)
    return received
