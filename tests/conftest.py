"""What all rooms' tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.shots import pytest_terminal_summary, shot

__all__ = ["pytest_terminal_summary", "shot"]  # for every room: faults are counted

# Where there is no GPU Triton's kernels run in its interpreter, which it asks about when it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# One thread, so that figures and timings do not depend on the machine's load.
torch.set_num_threads(1)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of prepared real data sets beside the repository; the test skips where there is none."""
    if not (SHARED_DATA / "binarized_mnist").is_dir():
        pytest.skip("the prepared data sets are not at ../shared/data")
    return SHARED_DATA


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray cluster of four CPUs (names for shares of the cores) for all tests that need one."""
    import warnings

    from rws_ray.cluster.session import DEFAULTS

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in DEFAULTS.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        import ray

        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=256 * 2**20,
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def registry_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder whose registry all tests of what is served share, each under a name of its own."""
    from rws_ray.tracking import connect

    home = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        connect(home)
    return home
