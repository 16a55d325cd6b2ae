"""Checkpoints in an object store: the same run, resumed from there, whatever became of single objects."""

from __future__ import annotations

import warnings

import pytest
from pyarrow import fs
from tiny import bits, run_tiny, tiny_dataset, tiny_job

from rws_ray.config import Job
from rws_ray.errors import ConfigError, InfrastructureError
from rws_ray.training.checkpoint import (
    MANIFEST,
    TENSORS,
    Checkpoint,
    Store,
    check_writable,
    folder_name,
    newest_valid,
    open_store,
    write_checkpoint,
)
from rws_ray.training.folder import RunFolder, checkpoint_place
from rws_ray.training.loop import Outcome, fit
from rws_ray.training.reduction import Group


@pytest.fixture(scope="module")
def endpoint():
    """An S3 server on the loopback device, with a bucket."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        filesystem, bucket = fs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")
        filesystem.create_dir(bucket)
        yield
        server.stop()


@pytest.fixture
def place(endpoint, tmp_path):
    return f"s3://bucket/{tmp_path.name}"


def train(place: str, stop_after: int | None = None, **changes: object) -> Outcome | None:
    job = tiny_job(optim__name="natural", scale__checkpoint_steps=1, **changes)
    return fit(job, tiny_dataset(), Group(), open_store(place), lambda record: None, stop_after=stop_after)


def test_a_run_stops_and_goes_on_from_s3_with_the_bits_of_a_local_one(place, tmp_path):
    whole = run_tiny(Group(), tiny_job(optim__name="natural"), tiny_dataset(), tmp_path)
    assert train(place, stop_after=6) is None
    assert open_store(place).steps() == [6, 5, 4]
    assert bits(train(place)) == bits(whole)


@pytest.mark.parametrize("damage", ["cut", "missing", "without manifest"])
def test_damaged_objects_are_passed_over(place, damage):
    train(place, stop_after=3)
    store = open_store(place)
    if damage == "cut":
        content = store.read(f"{folder_name(3)}/{TENSORS}")
        store.write(f"{folder_name(3)}/{TENSORS}", content[: len(content) // 2])
    else:
        name = TENSORS if damage == "missing" else MANIFEST
        store.filesystem.delete_file(f"{store.path}/{folder_name(3)}/{name}")
    told: list[str] = []
    found = newest_valid(store, told.append)
    assert found is not None
    assert found.step == 2
    assert len(told) == 1
    assert bits(train(place)) == bits(train(f"{place}-whole"))


def test_the_newest_and_the_best_are_kept_and_the_others_objects_are_gone(place):
    store = open_store(place)
    for step in range(10, 70, 10):
        write_checkpoint(store, Checkpoint(step, {}, {}), best_step=20)
    assert store.steps() == [60, 50, 40, 20]
    objects = store.filesystem.get_file_info(fs.FileSelector(store.path, recursive=True))
    assert sorted(info.path for info in objects if info.is_file) == sorted(
        f"{store.path}/{folder_name(step)}/{name}"
        for step in store.steps()
        for name in (MANIFEST, TENSORS, "state.json")
    )


def test_an_object_larger_than_a_part_of_an_upload_comes_back_whole(place):
    store, data = open_store(place), bytes(range(256)) * (48 << 10)  # 12 MiB: three parts
    store.write("large", data)
    assert store.read("large") == data


def test_a_bucket_that_is_not_there_is_a_sentence(endpoint):
    check_writable("s3://bucket/x")
    with pytest.raises(InfrastructureError, match=r"scale\.storage: s3://nowhere/x cannot be written to"):
        check_writable("s3://nowhere/x")


def test_what_another_job_left_under_the_same_name_is_refused(place):
    train(place, stop_after=3)
    with pytest.raises(ConfigError, match=r"seed: 0 → 1.*--name NEW.*--restart"):
        train(place, seed=1)
    with pytest.raises(ConfigError, match=r"optim\.epochs: 3 → 2"):
        train(place, optim__epochs=2)


def test_restart_gives_up_the_checkpoints_in_the_store_too(endpoint, tmp_path):
    def enter(folder: RunFolder, job: Job, restart: bool) -> Store:
        folder.enter(job, {}, restart)
        return open_store(checkpoint_place(folder, job))

    job = tiny_job(name="again", scale__storage="s3://bucket/shared/")
    store = enter(RunFolder(tmp_path / "again"), job, restart=False)
    assert store.path == "bucket/shared/again"
    write_checkpoint(store, Checkpoint(1, {}, {}), best_step=0)
    assert enter(RunFolder(tmp_path / "again"), job, restart=True).steps() == []
