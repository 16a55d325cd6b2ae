"""A run of very many tiny steps on a Ray worker, in a cluster that outlives it; prints what it used and what it left.

Arguments: a working folder, the number of epochs. A process of its own, so that all that is open in it is the run's.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil

JOB = {
    "model.layers": [2],
    "estimator.num_samples": 1,
    "optim.name": "sgd",
    "optim.batch_size": 4,
    "optim.average": 0.0,
    "eval.num_samples": 1,
    "eval.rows": 10,
    "eval.every": 5,
    "eval.final_num_samples": 5,
    "scale.micro_shards": 1,
    "scale.num_workers": 1,
}


def usage() -> dict[str, int]:
    """What this process holds: its own memory in bytes, open files, threads."""
    gc.collect()
    process = psutil.Process()
    return {"memory": process.memory_info().rss, "files": process.num_fds(), "threads": process.num_threads()}


def worker(config: dict[str, Any]) -> Any:
    """A Ray Train worker that notes its usage at each checkpoint."""
    from rws_ray.cluster.trainer import _worker
    from rws_ray.training.loop import Fitter

    save = Fitter.save

    def noted(fitter: Fitter, is_scheduled: bool = True) -> None:
        save(fitter, is_scheduled)
        with Path(os.environ["RWS_USAGE"]).open("a") as stream:
            stream.write(json.dumps({"step": fitter.progress.step} | usage()) + "\n")

    Fitter.save = noted  # type: ignore[method-assign]
    return _worker(config)


def left_over() -> list[str]:
    """Actors that live and placement groups that hold something, of a cluster in which nothing runs any more."""
    import ray

    actors = [actor["ActorClassName"] for actor in ray._private.state.actors().values() if actor["State"] != "DEAD"]
    groups = [group["name"] for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
    return actors + [f"placement group {name}" for name in groups]


def main(folder: Path, epochs: int) -> None:
    os.environ |= {"RWS_HOME": str(folder / "home"), "RWS_USAGE": str(folder / "usage"), "TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir()
    from rws_ray.cluster import trainer
    from rws_ray.cluster.jobs import prepare, run_job
    from rws_ray.cluster.session import session
    from rws_ray.config import make_job, unflatten

    def train(name: str, epochs: int) -> dict[str, Any]:
        job = make_job(unflatten(JOB | {"name": name, "optim.epochs": epochs}))
        return run_job(prepare(job), lambda record: None)

    trainer._worker = worker
    with session():
        train("warm", 1)
        (folder / "usage").unlink()
        before, there = usage(), left_over()
        result = train("long", epochs)
        after, still = usage(), left_over()
    lines = [json.loads(line) for line in (folder / "usage").read_text().splitlines()]
    # Ray keeps the logs of its sessions there; they are its own.
    files = sorted(file.name for file in (folder / "tmp").iterdir() if file.name != "ray")
    found = {"driver": [before, after], "left": [there, still], "worker": lines, "files": files}
    print(json.dumps(found | {"examples_per_second": result["examples_per_second"]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
