"""Storage that is full, read-only, slow or flaky, checkpoints that are damaged, two runs at one place."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs
from running import Run

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from tiny import bits, run_tiny, tiny_dataset, tiny_job

from rws_ray.errors import ConfigError, InfrastructureError, RunError
from rws_ray.training import checkpoint as checkpoints
from rws_ray.training.checkpoint import MANIFEST, STATE, TENSORS, Store, folder_name, newest_valid, open_store
from rws_ray.training.lease import lease
from rws_ray.training.loop import fit
from rws_ray.training.reduction import Group

JOB = tiny_job(optim__name="natural", scale__checkpoint_steps=1)
IN_A_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bits of the tiny job's undisturbed run."""
    return bits(run_tiny(Group(), JOB, tiny_dataset(), tmp_path_factory.mktemp("whole")))


@pytest.fixture
def on_a_tmpfs(tmp_path: Path) -> Callable[[str, int], str]:
    """Runs a Python program beside a tmpfs of its own, mounted at PLACE in a mount namespace of its own."""
    if subprocess.run([*IN_A_NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody have a mount namespace")

    def run(program: str, size_kib: int) -> str:
        place = tmp_path / "small"
        place.mkdir()
        shell = f'mount -t tmpfs -o size={size_kib}k none {place} && exec {sys.executable} -c "$PROGRAM"'
        preamble = (
            "import sys, subprocess; sys.path[:0] = sys.argv and "
            f"[{str(Path(__file__).parents[1] / 'training')!r}, {str(Path(__file__).parents[2])!r}]\n"
            f"PLACE = {str(place)!r}\n"
        )
        environment = {**os.environ, "PROGRAM": preamble + textwrap.dedent(program)}
        done = subprocess.run(
            [*IN_A_NAMESPACE, "sh", "-c", shell], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


PROGRAM = """
    import json, os
    from pathlib import Path
    from tiny import bits, tiny_dataset, tiny_job
    from rws_ray.errors import RunError
    from rws_ray.training.checkpoint import open_store
    from rws_ray.training.loop import fit
    from rws_ray.training.reduction import Group

    job = tiny_job(optim__name="natural", scale__checkpoint_steps=1)
    filler, told = Path(PLACE) / "filler", []

    def fill(record):
        told.append(record)
        if record["kind"] == "epoch" and record["epoch"] == 1:
            {spoil}
        if record["kind"] == "warning" and {mended}:
            {mend}

    try:
        outcome = fit(job, tiny_dataset(), Group(), open_store(PLACE + "/run"), fill)
    except RunError as error:
        print(json.dumps(str(error)))
        {mend}
        outcome = fit(job, tiny_dataset(), Group(), open_store(PLACE + "/run"), told.append)
    for record in told:
        if record["kind"] == "warning":
            print(json.dumps(record["message"]))
    print(json.dumps([part.hex() for part in bits(outcome)]))
"""
FILL = "subprocess.run(['dd', 'if=/dev/zero', f'of={filler}', 'bs=1k'], stderr=subprocess.DEVNULL, check=False)"
READ_ONLY = "subprocess.run(['mount', '-o', 'remount,ro', PLACE], check=True)"
WRITABLE = "subprocess.run(['mount', '-o', 'remount,rw', PLACE], check=True)"
UNFILL = "filler.unlink(missing_ok=True)"


FULL, LOCKED = (FILL, UNFILL, "No space left"), (READ_ONLY, WRITABLE, "Read-only file system")


@pytest.mark.parametrize(
    ("spoil", "mend", "reason", "is_mended"),
    [(*FULL, False), *(pytest.param(*case, marks=pytest.mark.long) for case in
                       ((*FULL, True), (*LOCKED, False), (*LOCKED, True)))],
)  # fmt: skip
def test_a_disk_that_fills_up_or_turns_read_only(
    spoil: str, mend: str, reason: str, is_mended: bool, on_a_tmpfs: Any, whole: Any, shot: Any
) -> None:
    """A real one: training goes on where it is mended in time, and ends with one sentence, to be resumed, if not."""
    program = PROGRAM.format(spoil=spoil, mend=mend, mended=is_mended)
    *told, found = map(json.loads, on_a_tmpfs(program, 512).splitlines())
    assert all(reason in sentence for sentence in told)
    assert len(told) == (1 if is_mended else 3)
    if not is_mended:
        assert "run the same command again" in told[0]
    kind = "disk full" if spoil == FILL else "disk read-only"
    shot(f"{kind} in training", "mended" if is_mended else "until the run ended", found == [b.hex() for b in whole])


class Flaky(fs.FileSystemHandler):
    """A local file system that is slow, or fails a share of its calls. Stores use no other methods than these."""

    def __init__(self, share: float, seconds: float = 0.0):
        self.below, self.draws, self.share, self.seconds = fs.LocalFileSystem(), random.Random(0), share, seconds
        self.failed = 0

    def attempt(self) -> fs.FileSystem:
        time.sleep(self.seconds)
        if self.draws.random() < self.share:
            self.failed += 1
            raise OSError(errno.EIO, "Input/output error")
        return self.below

    def get_type_name(self) -> str:
        return "flaky"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> Any:
        return self.attempt().get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        return self.attempt().get_file_info(selector)

    def open_input_stream(self, path: str) -> Any:
        return self.attempt().open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return self.attempt().open_output_stream(path)

    def delete_dir(self, path: str) -> None:
        self.attempt().delete_dir(path)

    def delete_file(self, path: str) -> None:
        self.attempt().delete_file(path)

    def unused(self, *_: Any) -> Any:
        raise NotImplementedError

    create_dir = delete_dir_contents = delete_root_dir_contents = move = copy_file = unused
    open_input_file = open_append_stream = unused


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pauses between attempts."""
    monkeypatch.setattr(checkpoints, "PAUSES", (0.0, 0.0))


@pytest.mark.usefixtures("hasty")
def test_storage_that_fails_a_fifth_of_its_calls_costs_warnings_at_most(tmp_path: Path, whole: Any, shot: Any) -> None:
    handler = Flaky(0.2)
    store = Store(fs.PyFileSystem(handler), str(tmp_path))
    told: list[dict[str, Any]] = []
    assert fit(JOB, tiny_dataset(), Group(), store, told.append, stop_after=7) is None
    outcome = fit(JOB, tiny_dataset(), Group(), store, told.append)
    assert handler.failed > 5
    shot("flaky storage", f"{handler.failed} calls failed", bits(outcome) == whole)


@pytest.mark.usefixtures("hasty")
def test_storage_that_is_away_at_the_start_is_a_sentence_and_no_fresh_start(tmp_path: Path) -> None:
    run_tiny(Group(), JOB, tiny_dataset(), tmp_path, stop_after=5)
    with pytest.raises(InfrastructureError, match=r"cannot be read.*Input/output error.*run the same command again"):
        fit(JOB, tiny_dataset(), Group(), Store(fs.PyFileSystem(Flaky(1.0)), str(tmp_path)), lambda record: None)
    assert open_store(tmp_path).steps() == [5, 4, 3]


@pytest.mark.long
def test_slow_storage_costs_time_alone(tmp_path: Path, whole: Any, shot: Any) -> None:
    store = Store(fs.PyFileSystem(Flaky(0.0, seconds=0.2)), str(tmp_path))
    outcome = fit(JOB, tiny_dataset(), Group(), store, lambda record: None)
    shot("slow storage", "0.2 s a call", bits(outcome) == whole)


def damaged(folder: Path, name: str, content: bytes) -> str | None:
    """What is told of a run whose newest checkpoint holds this; None where it was taken as sound."""
    file = folder / folder_name(5) / name
    before = file.read_bytes()
    file.write_bytes(content)
    told: list[str] = []
    found = newest_valid(open_store(folder), told.append)
    file.write_bytes(before)
    assert found is not None
    return None if found.step == 5 else told[0]


@pytest.mark.long
@pytest.mark.parametrize("name", [TENSORS, STATE, MANIFEST])
def test_every_truncation_of_a_checkpoint_of_a_run(name: str, tmp_path: Path, shot: Any) -> None:
    """At every byte: it is passed over with a sentence, and the one before is good."""
    run_tiny(Group(), JOB, tiny_dataset(), tmp_path, stop_after=5)
    whole = (tmp_path / folder_name(5) / name).read_bytes()
    told = [damaged(tmp_path, name, whole[:length]) for length in range(len(whole))]
    assert all(sentence is not None and "step-0000000005 is passed over" in sentence for sentence in told)
    shot("checkpoint cut off", f"{name} at each byte", times=len(whole))


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path: Path, whole: Any, shot: Any) -> None:
    """Two hundred bits flipped, one at a time: never loaded; a few of them by a whole run."""
    draws = random.Random(0)
    run_tiny(Group(), JOB, tiny_dataset(), tmp_path / "parts", stop_after=5)
    for number in range(200):
        name = draws.choice([TENSORS, STATE, MANIFEST])
        content = bytearray((tmp_path / "parts" / folder_name(5) / name).read_bytes())
        place, bit = draws.randrange(len(content)), draws.randrange(8)
        content[place] ^= 1 << bit
        sentence = damaged(tmp_path / "parts", name, bytes(content))
        # A bit of the manifest's spaces or of its sizes changes nothing that is loaded.
        assert sentence is not None or name == MANIFEST, (name, place, bit)
        if number % 40 == 0:
            shutil.copytree(tmp_path / "parts", tmp_path / f"{number}")
            (tmp_path / f"{number}" / folder_name(5) / name).write_bytes(content)
            outcome = run_tiny(Group(), JOB, tiny_dataset(), tmp_path / f"{number}")
            assert bits(outcome) == whole
    shot("bit of a checkpoint flipped", "at random", times=200)


@pytest.mark.parametrize("change", ["format", "tensor", "shape"])
def test_a_checkpoint_of_another_version_is_a_sentence(change: str, tmp_path: Path) -> None:
    run_tiny(Group(), JOB, tiny_dataset(), tmp_path, stop_after=5)
    store = open_store(tmp_path)
    found = checkpoints.read_checkpoint(store, 5)
    state, tensors = dict(found.state), dict(found.tensors)
    if change == "format":
        state["format"] = 0
    elif change == "tensor":
        del tensors["norms"]
    else:
        tensors["theta"] = tensors["theta"][:-1]
    checkpoints.write_checkpoint(store, found._replace(state=state, tensors=tensors), 5)
    with pytest.raises(RunError, match=r"checkpoints of another version of rws_ray \(.*--restart"):
        run_tiny(Group(), JOB, tiny_dataset(), tmp_path)


@pytest.mark.long
def test_the_second_run_under_one_name_is_refused_and_the_first_is_not_disturbed(
    tmp_path: Path, shot: Any, same_bits: Any
) -> None:
    run = Run(tmp_path, points=[{"phase": "gradients", "step": 8}])
    first = run.start()
    run.met()
    assert run.process is not None
    command, environment = run.process.args, run.environment
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # type: ignore[arg-type]
    assert second.returncode == 2
    assert "another process is running 'run'" in second.stderr
    assert "--name NEW" in second.stderr
    os.kill(first, 9)
    run.finish()
    run.start()
    assert run.finish() == 0, run.text()
    shot("two runs under one name", "the second refused", same_bits(run))


def test_the_second_run_at_one_place_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    """As two machines would: other folders, one store."""
    store, told = open_store(tmp_path / "store"), list[dict[str, Any]]()
    refused = pytest.raises(ConfigError, match="is writing its checkpoints")
    with lease(store, "one", told.append, 0.2), refused, lease(store, "other", told.append, 0.2):
        pass
    assert "seeing whether it still lives" in told[0]["message"]
    with lease(store, "other", told.append, 0.2):  # the first ended, and took its lease with it
        pass
    assert len(told) == 1


def test_a_place_whose_holder_died_is_taken_over(tmp_path: Path) -> None:
    store, told = open_store(tmp_path / "store"), list[dict[str, Any]]()
    for host in ("elsewhere", socket.gethostname()):
        store.write("lease.json", json.dumps({"host": host, "folder": "one", "process": 1, "count": 7}).encode())
        with lease(store, "one", told.append, 0.1):
            assert json.loads(store.read("lease.json"))["count"] == 0
    assert len(told) == 1  # on this machine the folder's lock has told already


@pytest.mark.long
def test_a_full_working_folder_ends_the_run_with_a_sentence(on_a_tmpfs: Any, tmp_path: Path, shot: Any) -> None:
    """Where reports and journal cannot be written there is no run; once there is room it goes on."""
    program = """
        import json, os, subprocess, sys
        from contextlib import suppress
        from pathlib import Path
        os.environ["RWS_HOME"] = PLACE
        command = [sys.executable, "-m", "rws_ray.train", "--name", "run", "--scale.num_workers", "0", "--model.layers",
                   "12,6", "--optim.epochs", "3", "--eval.final_num_samples", "10", "--eval.num_samples", "5",
                   "--scale.storage", ELSEWHERE]
        quiet = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:2])}
        with open(PLACE + "/filler", "wb", buffering=0) as stream, suppress(OSError):
            while stream.write(bytes(4096)):
                pass
        full = subprocess.run(command, env=quiet, capture_output=True, text=True)
        Path(PLACE + "/filler").unlink()
        again = subprocess.run(command, env=quiet, capture_output=True, text=True)
        print(json.dumps([full.returncode, full.stderr, again.returncode, again.stderr]))
    """
    code, told, again, errors = json.loads(
        on_a_tmpfs(program.replace("ELSEWHERE", repr(str(tmp_path / "elsewhere"))), 8192)
    )
    assert code == 1, told
    assert "No space left" in told
    assert "Traceback" not in told
    assert again == 0, errors
    shot("working folder full", "at the start")
