"""Train with two workers and serve what came of it, in one local cluster; print what Ray exports meanwhile.

python exporting.py METRICS_PORT HTTP_PORT
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
import urllib.error
import urllib.request

from rws_ray.cluster.session import apply_defaults

SMALL = {
    "model.layers": [6, 3], "optim.epochs": 3, "eval.num_samples": 5, "eval.final_num_samples": 5, "eval.every": 1,
}  # fmt: skip
WANTED_SECONDS = 60


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


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

    rws_ray.train({"name": "watched", "track.register": "rws-watched", "scale.num_workers": 2, **SMALL}, quiet=True)
    settings = {"model": "models:/rws-watched@champion", "home": os.environ["RWS_HOME"]}
    with serving(settings, "127.0.0.1", http) as address:
        statuses = [ask(address, {"rows": [[0, 1] * 32], "num_samples": 5}), ask(address, {"rows": [[0]]})]
        found, deadline = "", time.monotonic() + WANTED_SECONDS
        while time.monotonic() < deadline and not all(name in found for name in MEANINGS):
            with contextlib.suppress(OSError):
                found = scrape(port)
            time.sleep(0.3)
        print(json.dumps({"statuses": statuses, "exported": found}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
