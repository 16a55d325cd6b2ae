"""Answer over HTTP for a registered model: score, reconstruct, encode and sample; the alias is followed.

python -m rws_ray.serve models:/rws-digits@champion
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rws_ray.config import home
from rws_ray.errors import run_command
from rws_ray.evaluate import positive
from rws_ray.tracking import fetch_model, tracking_uri

EXAMPLE = "example: python -m rws_ray.serve models:/rws-digits@champion --port 8000"


def main(arguments: list[str]) -> None:
    """The command: it serves until it is interrupted."""
    asked = _parser().parse_args(arguments)
    place = home().resolve()
    folder = fetch_model(asked.model, place)
    is_path = Path(asked.model).expanduser().exists()
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri(place)  # replicas have another working folder

    from rws_ray.cluster.serving import serving, stopped

    settings = {
        "model": str(folder.resolve()) if is_path else asked.model,
        "home": str(place),
        "num_replicas": asked.num_replicas,
        "watch_seconds": asked.watch_seconds,
        "max_rows": asked.max_rows,
        "max_samples": asked.max_samples,
    }
    with stopped() as stop, serving(settings, asked.host, asked.port) as address:
        print(f"{asked.model} is served at {address} (its API: {address}/docs); Ctrl-C ends it.", flush=True)
        stop.wait()
    print("stopped.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Serve a model over HTTP.", epilog=EXAMPLE)
    parser.add_argument("model", metavar="MODEL", help="models:/NAME@ALIAS, a run's name or id, or a folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=positive, default=8000, help="default: 8000")
    parser.add_argument("--num-replicas", type=positive, default=1, metavar="N", help="processes, one CPU each")
    parser.add_argument(
        "--watch-seconds", type=_seconds, default=5.0, metavar="S", help="between looks at the alias (default: 5)"
    )
    parser.add_argument("--max-rows", type=positive, default=1000, metavar="N", help="of a request (default: 1000)")
    parser.add_argument(
        "--max-samples", type=positive, default=10_000, metavar="K", help="of a request (default: 10000)"
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


if __name__ == "__main__":
    run_command(main)
