"""Train with two workers and serve what came of it, in one local cluster; print the last of what Ray exports.

python exporting.py METRICS_PORT HTTP_PORT
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
import urllib.error
import urllib.request

from rws_ray.cluster.session import apply_defaults

SMALL = {
    "model.layers": [6, 3], "optim.epochs": 3, "eval.num_samples": 5, "eval.final_num_samples": 5, "eval.every": 1,
}  # fmt: skip
WANTED_SECONDS = 60


class Scraper:
    """Asks again and again, as Prometheus does: what a run exported stays known when it has ended."""

    def __init__(self, port: int):
        self.port, self.last = port, dict[str, str]()  # a series' last value
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while not self.ended.wait(0.3):
            with contextlib.suppress(OSError), self.opened() as answer:
                lines = answer.read().decode().splitlines()
                self.last |= dict(line.rsplit(" ", 1) for line in lines if line.startswith("ray_rws_"))

    def opened(self):
        return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10)

    def text(self) -> str:
        return "\n".join(f"{series} {value}" for series, value in self.last.items())


def ask(address: str, body: dict) -> int:
    request = urllib.request.Request(
        f"{address}/score", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def main(port: int, http: int) -> None:
    apply_defaults()
    import ray

    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
        _metrics_export_port=port, _system_config={"metrics_report_interval_ms": 300},
    )  # fmt: skip
    import rws_ray
    from rws_ray.cluster.metrics import MEANINGS
    from rws_ray.cluster.serving import serving

    scraper = Scraper(port)
    try:
        rws_ray.train({"name": "watched", "track.register": "rws-watched", "scale.num_workers": 2, **SMALL}, quiet=True)
        settings = {"model": "models:/rws-watched@champion", "home": os.environ["RWS_HOME"]}
        with serving(settings, "127.0.0.1", http) as address:
            good = {"rows": [[0, 1] * 32], "num_samples": 5}
            statuses = [ask(address, body) for body in (good, {"rows": [[0]]}, {"rows": [[2] * 64]})]
            deadline = time.monotonic() + WANTED_SECONDS
            while time.monotonic() < deadline and not is_told(scraper.text(), MEANINGS, len(statuses)):
                time.sleep(0.3)
    finally:
        scraper.ended.set()
    print(json.dumps({"statuses": statuses, "exported": scraper.text()}))


def is_told(found: str, names, num_requests: int) -> bool:
    """Whether every metric was exported, and every request was counted."""
    totals = [line for line in found.splitlines() if line.startswith(("ray_rws_requests", "ray_rws_refused"))]
    counted = sum(float(line.rsplit(" ", 1)[1]) for line in totals)
    return all(name in found for name in names) and counted == num_requests


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
