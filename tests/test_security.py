"""Nothing stored is executed, nothing secret is told, and nobody else may read or write what a run leaves."""

from __future__ import annotations

import ast
import os
import pickle
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

import rws_ray
from rws_ray.errors import ModelError
from rws_ray.tracking import connect, fetch, find_version
from rws_ray.tracking.fetch import PACKED_FILES
from rws_ray.tracking.models import DIGEST_TAGS, digests

ROOT = Path(__file__).parents[1]
SOURCES = [*(ROOT / "rws_ray").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "k8s").rglob("*.py")]
TRAIN = [
    "--name", "small", "--track.register", "small", "--optim.epochs", "2", "--scale.num_workers", "0",
    "--model.layers", "6,4", "--eval.num_samples", "5", "--eval.final_num_samples", "5",
]  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "marshal.loads"}
LOADERS = {
    f"{room}.{name}" for room in ("pickle", "cloudpickle", "torch", "yaml", "joblib") for name in ("load", "loads")
}
CANARY = "canary-7f3a9c"


def dangers(source: str) -> list[str]:
    """Calls that run what they are given, or unpickle it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS | LOADERS:
                found.append(name)
            found += ["shell=True" for key in node.keywords if key.arg == "shell" and ast.unparse(key.value) != "False"]
        elif isinstance(node, ast.ImportFrom) and node.module in ("pickle", "cloudpickle", "marshal"):
            found.append(f"from {node.module}")
    return found


def test_no_code_of_ours_runs_or_unpickles_what_it_is_given():
    assert len(SOURCES) > 60
    assert {str(file): found for file in SOURCES if (found := dangers(file.read_text()))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)", "exec(text)", "subprocess.run(c, shell=True)", "os.system(c)", "yaml.load(f)", "pickle.loads(b)",
        "torch.load(f)", "cloudpickle.load(f)", "from pickle import loads",
    ],
)  # fmt: skip
def test_each_danger_is_found_where_it_is_planted(line):
    assert len(dangers(f"def f(text, c, b):\n    {line}\n")) == 1
    assert dangers("def f(model, yaml):\n    model.eval()\n    yaml.safe_load('a')\n") == []


def python(code: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    settings = {key: value for key, value in os.environ.items() if not key.startswith(("RWS_", "MLFLOW_", "RAY_"))}
    settings |= {"OMP_NUM_THREADS": "1", "RWS_HOME": str(home)} | more
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=settings, cwd=home.parent, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip


def train(home: Path, *changes: str, **more: str) -> subprocess.CompletedProcess[str]:
    words = [*TRAIN, *changes]
    done = python(f"from rws_ray.train import main; main({words!r})", home, **more)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A working folder with a registered model, in a parent folder that everybody may enter."""
    home = tmp_path_factory.mktemp("security") / "runs"
    train(home)
    return home


@pytest.fixture
def home(trained, monkeypatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RWS_HOME", str(trained))
    return trained


UNPICKLING_RAISES = """
    import pickle, cloudpickle, torch

    def refuse(*arguments, **more):
        raise AssertionError("something was unpickled")

    pickle.load = pickle.loads = pickle.Unpickler = refuse
    cloudpickle.load = cloudpickle.loads = torch.load = refuse
"""


def test_from_checkpoint_and_registry_to_prediction_nothing_is_unpickled(home):
    done = python(
        UNPICKLING_RAISES
        + f"""
    import numpy as np, rws_ray
    from rws_ray.train import main

    main({[*TRAIN, "--optim.epochs", "3"]!r})  # goes on from the checkpoint of epoch 2
    rows = np.zeros((3, 64), np.uint8)
    model = rws_ray.load_model("models:/small@champion")
    expected = model.log_likelihood(rows, num_samples=5).numpy()

    import mlflow
    from rws_ray.config import home
    from rws_ray.tracking import tracking_uri
    mlflow.set_tracking_uri(tracking_uri(home()))
    served = mlflow.pyfunc.load_model("models:/small@champion").predict(rows, params={{"num_samples": 5, "seed": 0}})
    assert np.array_equal(expected, served), (expected, served)
    print("epoch 3/3 predicted", expected.shape)
    """,
        home,
        MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false",
    )
    assert done.returncode == 0, done.stderr
    assert "epoch 3/3 predicted (3,)" in done.stdout


def test_the_guard_against_unpickling_is_live(home):
    done = python(UNPICKLING_RAISES + "\n    pickle.loads(pickle.dumps(1))", home)
    assert "something was unpickled" in done.stderr


class Trap:
    """Unpickling this leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def with_length(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


VAST = b'{"p.0.weight":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,18446744073709551615]}}'
HOSTILE = {
    "vast header": struct.pack("<Q", 2**62) + b"{}",
    "vast tensor": with_length(VAST),
    "deep header": with_length(b'{"__metadata__":{"a":' + b"[" * 50_000),
}


@pytest.mark.parametrize("planted", ["pickle", *HOSTILE])
def test_hostile_weights_are_refused_though_the_registry_vouches_for_their_hash(home, tmp_path, planted):
    """Whoever can write to the registry can change file and hash alike: the format itself must hold."""
    content = pickle.dumps(Trap(tmp_path / "mark")) if planted == "pickle" else HOSTILE[planted]
    tracking = connect(home)
    version = find_version(tracking, "small", 1)
    file = Path(version.location.removeprefix("file://")) / "data" / "model" / "model.safetensors"
    whole, tag = file.read_bytes(), DIGEST_TAGS["model.safetensors"]
    try:
        file.write_bytes(content)
        tracking.client.set_model_version_tag("small", "1", tag, digests(file.parent)[tag])
        with pytest.raises(ModelError, match="damaged") as caught:
            rws_ray.load_model("models:/small/1")
        assert "\n" not in str(caught.value)
    finally:
        file.write_bytes(whole)
        tracking.client.set_model_version_tag("small", "1", tag, version.digests[tag])
    assert not (tmp_path / "mark").exists()
    rws_ray.load_model("models:/small/1")


@pytest.mark.parametrize(
    "name", ["../../evil", "data/model/../../../evil", "/etc/cron.d/evil", "data/model/evil.pkl", "code/evil.py"]
)
def test_a_store_that_lists_other_files_is_refused_before_anything_is_fetched(home, tmp_path, monkeypatch, name):
    """A server that is not MLflow may list what it likes; no path of its making is ever written to."""
    listed = [SimpleNamespace(path=path, is_dir=False) for path in [*PACKED_FILES, name]]
    fetched: list[str] = []
    hostile = SimpleNamespace(list_artifacts=lambda path: listed, download_artifacts=lambda *a: fetched.append(a[0]))
    monkeypatch.setattr(
        "mlflow.store.artifact.artifact_repository_registry.get_artifact_repository", lambda *a, **k: hostile
    )
    version = find_version(connect(home), "small", 1)
    with pytest.raises(ModelError, match="which is no file of a model"):
        fetch._fetch(connect(home), "models:/small/1", "s3://hostile/model", version.digests, tmp_path)
    assert fetched == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def told_anywhere(home: Path, done: subprocess.CompletedProcess[str]) -> list[str]:
    """The files, and the output, in which the canary shows."""
    files = [file for file in home.rglob("*") if file.is_file()]
    assert len(files) > 10
    found = [str(file) for file in files if CANARY.encode() in file.read_bytes()]
    return found + [f"the output: {text}" for text in (done.stdout, done.stderr) if CANARY in text]


SECRET_VARIABLES = (
    "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN",
    "PGPASSWORD",
)  # fmt: skip


def test_secrets_of_the_environment_are_kept_out_of_output_and_files(tmp_path):
    home = tmp_path / "runs"
    done = train(home, "-v", **dict.fromkeys(SECRET_VARIABLES, CANARY), RWS_DEBUG="1")
    assert told_anywhere(home, done) == []


def test_a_password_in_the_stores_address_is_kept_out_of_output_and_files(tmp_path):
    home = tmp_path / "runs"
    done = train(home, MLFLOW_TRACKING_URI=f"http://user:{CANARY}@127.0.0.1:9")
    assert "127.0.0.1:9" in done.stdout + done.stderr  # it was tried, and told
    assert told_anywhere(home, done) == []


def open_to_others(home: Path) -> list[str]:
    """What lies in a working folder that others may enter, and is not closed to them."""
    return [str(path) for path in home.iterdir() if path.stat().st_mode & 0o077]


def test_a_new_working_folder_is_its_owners_alone(trained):
    assert trained.stat().st_mode & 0o777 == 0o700


def test_in_a_working_folder_that_others_may_enter_each_entry_is_its_owners_alone(tmp_path):
    home = tmp_path / "shared"
    home.mkdir(mode=0o755)
    train(home)
    assert {"mlflow.db", "artifacts", "small"} <= {path.name for path in home.iterdir()}
    assert open_to_others(home) == []


def test_rays_token_of_this_user_is_made_this_users_alone(tmp_path, monkeypatch):
    from rws_ray.cluster.session import close_token_file

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    close_token_file()  # there is none yet
    (tmp_path / ".ray").mkdir()
    token = tmp_path / ".ray" / "auth_token"
    token.write_text("0123")
    token.chmod(0o644)
    close_token_file()
    assert token.stat().st_mode & 0o777 == 0o600
