"""A run on a cluster that loses a node and gets it back, and the same in one process.

Prints the sizes of its worker groups and the digests of both runs' weights.

A process of its own, because a cluster of several nodes is started and stopped in it. Argument: a working folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}

from ray.cluster_utils import Cluster

from rws_ray.cluster import trainer
from rws_ray.config import make_job, unflatten
from rws_ray.data import open_dataset
from rws_ray.training.folder import RunFolder

JOB = {
    "model.layers": [12, 6],
    "optim.epochs": 120,
    "eval.num_samples": 5,
    "eval.final_num_samples": 10,
    "scale.checkpoint_steps": 5,
}
ELASTIC = {"scale.num_workers": [1, 2]}


def train(folder: Path, workers: dict[str, Any], show: Any) -> str:
    """Train on so many workers; the digest of the weights."""
    folder.mkdir()
    job = make_job(unflatten(JOB | workers))
    outcome = trainer.train_run(job, open_dataset("digits"), RunFolder(folder), None, show, verbose=False)
    weights = [tensor.numpy().tobytes() for tensor in outcome.machine.state_dict().values()]
    return hashlib.sha256(b"".join(weights)).hexdigest()


class Events:
    """Sets an event at the report that a condition holds for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.epochs = 0
        self.changed = threading.Condition()

    def __call__(self, record: dict[str, Any]) -> None:
        with self.changed:
            if record["kind"] == "start":
                self.sizes.append(record["num_workers"])
                self.epochs = 0
            self.epochs += record["kind"] == "epoch"
            self.changed.notify_all()

    def wait_for(self, size: int) -> None:
        """Until a group of that size has reported three epochs."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.sizes[-1:] == [size] and self.epochs >= 3, timeout=120):
                raise TimeoutError(f"no group of {size} workers; there were {self.sizes}")


def main(folder: Path) -> None:
    import ray

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    os.environ["RAY_ADDRESS"] = cluster.address
    trainer.RESIZE_INTERVAL_S = 2.0
    seen, found = Events(), list[str]()
    thread = threading.Thread(target=lambda: found.append(train(folder / "elastic", ELASTIC, seen)))
    thread.start()
    seen.wait_for(2)
    cluster.remove_node(node, allow_graceful=False)
    seen.wait_for(1)
    cluster.add_node(num_cpus=1)
    seen.wait_for(2)
    thread.join()
    ray.shutdown()
    cluster.shutdown()
    found.append(train(folder / "alone", {"scale.num_workers": 0}, lambda record: None))
    print(json.dumps({"sizes": seen.sizes, "digests": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
