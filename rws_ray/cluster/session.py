"""Ray's session: joined where there is a cluster, started on this machine where there is none."""

from __future__ import annotations

import functools
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rws_ray.errors import ConfigError, InfrastructureError
from rws_ray.estimators import ESTIMATORS, Method
from rws_ray.kinds import KINDS, Kind

# Ray reads these when it is imported. A report is acknowledged at the controller's next poll: 2 s by default.
DEFAULTS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "20",  # a stopped worker is replaced; Ray's own patience is 600 s
    # Serve takes half as long for a request. Its gRPC and its ports of replicas would be ways around the token.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # a stopped worker does not answer; Ray waits 30 s for its good-bye
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread of Ray's that outlives its cluster would start another one
}
OBJECT_STORE_BYTES = 512 * 2**20


def apply_defaults() -> None:
    """Set what Ray reads from the environment, where nobody else has."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def on_a_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster to join (it does inside a submitted job)."""
    return bool(os.environ.get("RAY_ADDRESS"))


@contextmanager
def session(verbose: bool = False) -> Iterator[Callable[[], None]]:
    """A connection to Ray; one that is already there (a notebook's, a test's) is used and left open.

    Yields what frees the resources that a lost controller held: a new session, where this one was started here. Ray's
    own cleaner asks the dashboard which controllers live; a cluster that is joined has one, a session of ours has not.

    Raises:
        InfrastructureError: RAY_ADDRESS names a cluster that does not answer.
    """
    apply_defaults()
    import ray

    if ray.is_initialized():
        yield lambda: None
        return

    def renew() -> None:
        if not on_a_cluster():
            ray.shutdown()
            _start(verbose)

    _start(verbose)
    try:
        yield renew
    finally:
        ray.shutdown()


def _start(verbose: bool) -> None:
    level = logging.INFO if verbose else logging.ERROR
    logging.getLogger("ray").setLevel(level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            with _handlers_kept():
                _join_or_start(verbose, level)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InfrastructureError(f"Ray cannot be reached or started: {' '.join(str(error).split())}") from None


def _join_or_start(verbose: bool, level: int) -> None:
    import ray

    if on_a_cluster():
        ray.init(log_to_driver=verbose, logging_level=level, runtime_env=_environment())
        return
    ray.init(
        address="local",
        runtime_env=_environment(),
        include_dashboard=False,
        log_to_driver=verbose,
        logging_level=level,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    close_token_file()


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put a command's own signal handlers back: Ray's start replaces them, and its core aborts on SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)


def _environment() -> dict[str, Any]:
    """What workers start with: the kinds of layers and the estimators that this process added to the tables."""
    from ray import cloudpickle

    kinds = {name: kind for name, kind in KINDS.items() if not isinstance(kind.layer, str)}
    estimators = {name: row for name, row in ESTIMATORS.items() if not isinstance(row.gradients, str)}
    if not kinds and not estimators:
        return {}
    for code in (*(kind.layer for kind in kinds.values()), *(row.gradients for row in estimators.values())):
        if code.__module__ != "__main__":  # workers run the hook before they know the driver's folders
            cloudpickle.register_pickle_by_value(sys.modules[code.__module__])
    hook = functools.partial(_add_rows, kinds, estimators)
    return {"worker_process_setup_hook": functools.update_wrapper(hook, _add_rows)}  # Ray asks for its name


def _add_rows(kinds: dict[str, Kind], estimators: dict[str, Method]) -> None:
    KINDS.update(kinds)
    ESTIMATORS.update(estimators)


def close_token_file() -> None:
    """Keep the token that Ray made for this user's clusters to this user: Ray leaves the file readable by all."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if token.is_file() and token.stat().st_uid == os.getuid() and token.stat().st_mode & 0o077:
        token.chmod(0o600)


def cpus_per_worker(num_workers: int, threads: int) -> float:
    """CPUs that a worker asks for: one a thread, or its even share of a machine that has fewer."""
    import ray

    total = ray.cluster_resources().get("CPU", 1.0)
    if on_a_cluster() or num_workers * threads <= total:
        return float(threads)
    return max(int(100 * total / num_workers) / 100, 0.01)


def is_gone() -> bool:
    """Whether the cluster's control process no longer answers; Ray itself would wait for it for a minute."""
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError:
        return True
    return False


def check_gpus(num_workers: int) -> None:
    """ConfigError where this machine has fewer GPUs than workers want (a cluster may still grow)."""
    import torch

    found = torch.cuda.device_count()
    if not on_a_cluster() and found < num_workers:
        raise ConfigError(
            f"scale.use_gpu: {num_workers} workers need {num_workers} GPUs, this machine has {found}; set "
            "scale.num_workers lower, or scale.use_gpu to false."
        )
