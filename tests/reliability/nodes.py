"""A run on a cluster of two nodes, one of which is lost: elastic, or with a fixed number of workers.

Prints how it ended, its reports and the digest of its weights. Arguments: a working folder, the number of workers,
Ray's patience with a start of them in seconds, and `back` where another node comes once the run misses it.
A process of its own, because a cluster of several nodes is started and stopped in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": sys.argv[3]}

from ray.cluster_utils import Cluster

from rws_ray.cluster import trainer
from rws_ray.config import make_job, unflatten
from rws_ray.data import open_dataset
from rws_ray.errors import RwsError
from rws_ray.training.folder import RunFolder

JOB = {
    "model.layers": [12, 6],
    "optim.epochs": 60,
    "eval.num_samples": 5,
    "eval.final_num_samples": 10,
    "scale.checkpoint_steps": 5,
}


def train(folder: Path, workers: Any, show: Any) -> str:
    """Train; the digest of the weights."""
    folder.mkdir(exist_ok=True)
    job = make_job(unflatten(JOB | {"scale.num_workers": workers}))
    outcome = trainer.train_run(job, open_dataset("digits"), RunFolder(folder), None, show, verbose=False)
    weights = [tensor.numpy().tobytes() for tensor in outcome.machine.state_dict().values()]
    return hashlib.sha256(b"".join(weights)).hexdigest()


def main(folder: Path, workers: Any, comes_back: bool) -> None:
    import ray

    trainer.RESIZE_INTERVAL_S = 2.0
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    os.environ["RAY_ADDRESS"] = cluster.address
    records: list[dict[str, Any]] = []
    under_way, missed, ended = threading.Event(), threading.Event(), dict[str, Any]()

    def show(record: dict[str, Any]) -> None:
        records.append(record)
        if record["kind"] == "epoch" and record["epoch"] == 4:
            under_way.set()
        if record.get("lost"):
            missed.set()

    def run() -> None:
        try:
            ended["digest"] = train(folder / "two", workers, show)
        except RwsError as error:
            ended["error"] = str(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert under_way.wait(200)
    lost_at = time.time()
    cluster.remove_node(node, allow_graceful=False)
    if comes_back:
        assert missed.wait(200)
        cluster.add_node(num_cpus=1)
    thread.join()
    ended["seconds"] = time.time() - lost_at
    ray.shutdown()
    cluster.shutdown()
    del os.environ["RAY_ADDRESS"]
    if "error" in ended:  # the same command, with what there is
        ended["digest"] = train(folder / "two", 0, records.append)
    ended["alone"] = train(folder / "alone", 0, lambda record: None)
    starts = [record["num_workers"] for record in records if record["kind"] == "start"]
    again = [record["time"] - lost_at for record in records if record["kind"] == "start" and record["time"] > lost_at]
    print(json.dumps(ended | {"starts": starts, "again": again}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[4:] == ["back"])
