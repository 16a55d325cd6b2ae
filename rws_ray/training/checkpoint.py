"""Checkpoints: complete or absent, and found by looking.

A checkpoint is a folder step-NNN with tensors.safetensors, state.json and, put in place last, manifest.json with the
size and sha256 of both. Without a manifest that fits it does not count, so a kill, a full disk or a flipped bit costs
one interval at most. The store is a local folder or an object store (s3://bucket/prefix).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
from pyarrow import fs
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rws_ray.errors import ConfigError, InfrastructureError, RunError

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
KEEP_NEWEST = 3
FORMAT = 1  # of state.json and of what the tensors mean; a change of either raises it
PAUSES = (0.1, 1.0)  # seconds before storage that failed is tried again
LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
T = TypeVar("T")


class Checkpoint(NamedTuple):
    """What a run goes on from."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Store(NamedTuple):
    """A folder of files, local or in an object store."""

    filesystem: fs.FileSystem
    path: str

    @property
    def is_local(self) -> bool:
        """Whether files can be synced and renamed."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole, or leave the old one: aside, synced, renamed (an object store's put is atomic)."""
        patiently(lambda: self._write(name, data))

    def _write(self, name: str, data: bytes) -> None:
        target = f"{self.path}/{name}"
        if not self.is_local:
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(data)
            return
        file = Path(target)
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            with aside.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(file)
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(file.parent)

    def read(self, name: str) -> bytes:
        """A file's bytes; FileNotFoundError where there is none."""
        return patiently(lambda: self._read(name))

    def _read(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return stream.read()

    def has(self, name: str) -> bool:
        """Whether there is such a file; False where the store does not answer."""
        try:
            return self.filesystem.get_file_info(f"{self.path}/{name}").type == fs.FileType.File
        except OSError:
            return False

    def steps(self) -> list[int]:
        """Steps of the checkpoints that there are, complete or not, newest first."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        listing = patiently(lambda: self.filesystem.get_file_info(selector))
        found = (re.fullmatch(r"step-(\d+)", info.base_name) for info in listing)
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def remove(self, name: str) -> None:
        """Remove a folder and all in it."""
        self.filesystem.delete_dir(f"{self.path}/{name}")


def patiently(call: Callable[[], T]) -> T:
    """Call it again, after a pause, where storage fails in a way that may pass (an I/O error, a lost connection)."""
    for pause in PAUSES:
        try:
            return call()
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in LASTING:
                raise
            time.sleep(pause)
    return call()


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_store(place: str | Path) -> Store:
    """The store at a local path or at a URI such as s3://bucket/prefix (AWS_* variables name endpoint and keys).

    Raises:
        ConfigError: the URI is none that files can be stored at.
        InfrastructureError: its store does not answer.
    """
    if "://" not in str(place):
        return Store(fs.LocalFileSystem(), str(Path(place).resolve()))
    try:
        filesystem, path = fs.FileSystem.from_uri(str(place))
    except (pa.ArrowInvalid, ValueError) as error:
        raise ConfigError(f"{place}: not a place to store checkpoints in: {error}.") from None
    except OSError as error:
        raise _away(place, error) from None
    return Store(filesystem, path)


def check_writable(place: str | Path) -> None:
    """InfrastructureError unless files can be stored there: one is written, and removed."""
    store = open_store(place)
    try:
        store.write("writable", b"")
        store.filesystem.delete_file(f"{store.path}/writable")
    except OSError as error:
        raise _away(place, error) from None


def _away(place: str | Path, error: OSError) -> InfrastructureError:
    reason = " ".join(str(error).split()).rstrip(".")[:400]
    return InfrastructureError(
        f"scale.storage: {place} cannot be written to ({reason}). For a bucket, see that it is there, and to "
        "AWS_ENDPOINT_URL and the AWS_* keys."
    )


def folder_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step-{step:010d}"


def pack(tensors: dict[str, Tensor]) -> bytes:
    """Tensors as the bytes of a safetensors file."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def write_checkpoint(store: Store, checkpoint: Checkpoint, best_step: int) -> None:
    """Store a checkpoint, then remove all but the newest and the one with the best weights.

    Raises:
        OSError: it could not be written; the ones before are as they were.
    """
    folder = folder_name(checkpoint.step)
    files = {TENSORS: pack(checkpoint.tensors), STATE: json.dumps(checkpoint.state, indent=1).encode()}
    manifest = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    files[MANIFEST] = json.dumps({"step": checkpoint.step, "files": manifest}, indent=1).encode()
    try:
        for name, data in files.items():
            store.write(f"{folder}/{name}", data)
    except OSError:
        with suppress(OSError):
            store.remove(folder)
        raise
    with suppress(OSError):  # what cannot be removed now goes with the next
        _remove_old(store, checkpoint.step, best_step)


def _remove_old(store: Store, newest: int, best_step: int) -> None:
    steps = store.steps()
    # Later ones were passed over when the run went on from an earlier one: damaged, or of an end that moved.
    stale = [step for step in steps if step > newest]
    kept = steps[len(stale) :][:KEEP_NEWEST]
    for step in steps:
        if step not in kept and step != best_step:
            store.remove(folder_name(step))


def check_format(
    where: str, state: Mapping[str, Any], found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    """RunError unless a checkpoint is one that this version wrote: its format, and its tensors' names and shapes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    differing = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
    written = state.get("format", FORMAT)  # the first checkpoints did not say
    if written != FORMAT or differing:
        reason = f"format {written} in place of {FORMAT}" if written != FORMAT else f"other {', '.join(differing[:5])}"
        raise RunError(
            f"{where} holds checkpoints of another version of rws_ray ({reason}): go on with that version, or begin "
            "anew with --restart or another --name."
        )


def newest_valid(
    store: Store, warn: Callable[[str], None], is_usable: Callable[[Checkpoint], bool] = lambda found: True
) -> Checkpoint | None:
    """The newest complete and usable checkpoint, verified; `warn` is told of each that is incomplete or damaged."""
    for step in store.steps():
        try:
            found = read_checkpoint(store, step)
        except ValueError as error:
            warn(f"checkpoint {folder_name(step)} is passed over: {error}.")
            continue
        if is_usable(found):
            return found
    return None


def read_checkpoint(store: Store, step: int) -> Checkpoint:
    """One checkpoint, verified; ValueError (a sentence) where it is incomplete or damaged."""
    folder = folder_name(step)
    text = _part(store, folder, MANIFEST)
    contents = {name: _part(store, folder, name) for name in (TENSORS, STATE)}
    try:
        manifest = json.loads(text)
        expected = {name: manifest["files"][name]["sha256"] for name in contents}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"its {MANIFEST} is damaged ({error})") from None
    for name, data in contents.items():
        if hashlib.sha256(data).hexdigest() != expected[name]:
            raise ValueError(f"its {name} is damaged (sha256 differs from the manifest's)")
    try:
        return Checkpoint(step, load(contents[TENSORS]), json.loads(contents[STATE]))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"it cannot be read ({error})") from None


def _part(store: Store, folder: str, name: str) -> bytes:
    try:
        return store.read(f"{folder}/{name}")
    except FileNotFoundError:
        raise ValueError(f"it is incomplete ({name} is missing)") from None
