"""What the doctor finds on this machine: libraries, memory, GPUs, and the working folder."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rws_ray.report.findings import Finding

FLOORS = {"ray": "2.60", "mlflow": "3.17", "torch": "2.10"}  # older ones have known holes, or lack what is used
GIB = 2**30
MIN_MEMORY, MIN_SHARED_MEMORY, MIN_DISK = 2 * GIB, GIB // 4, GIB
SHARED_MEMORY = "/dev/shm"  # noqa: S108 (its size is asked, nothing is put there)


def python() -> Finding:
    """Python and the machine."""
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    return Finding("ok" if sys.version_info >= (3, 11) else "FAULT", text)


def libraries(found: dict[str, str]) -> Finding:
    """Those that have a floor, by their versions."""
    low = {name: floor for name, floor in FLOORS.items() if _numbers(found[name]) < _numbers(floor)}
    if low:
        old = ", ".join(f"{name} {found[name]} (at least {floor} is needed)" for name, floor in low.items())
        return Finding("FAULT", f'{old}: pip install -c constraints.txt -e "."')
    return Finding("ok", ", ".join(f"{name} {found[name]} (≥ {floor})" for name, floor in FLOORS.items()))


def installed(library: str) -> str:
    """A library's version without the part that tells its build, or `none`."""
    try:
        return version(library).partition("+")[0]
    except PackageNotFoundError:
        return "none"


def _numbers(version: str) -> tuple[int, ...]:
    """2.13.0 as (2, 13, 0); () where it is no such thing."""
    parts = version.split(".")
    return tuple(int(part) for part in parts if part.isdecimal())


def memory(available: int, shared: int) -> Finding:
    """Memory for workers, and /dev/shm, in which Ray keeps its objects."""
    text = f"{available / GIB:.1f} GiB available, {shared / GIB:.1f} GiB in /dev/shm"
    if available < MIN_MEMORY:
        return Finding(
            "FAULT", f"{text}: Ray and one worker want {MIN_MEMORY // GIB} GiB; free some, or raise the limit."
        )
    if shared < MIN_SHARED_MEMORY:
        return Finding("note", f"{text}: Ray moves its objects to /tmp; give a container --shm-size=2g.")
    return Finding("ok", text)


def available_memory() -> int:
    """Bytes that this process may still take: the machine's, or what its container is given."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = ("".join(_lines(f"/sys/fs/cgroup/memory.{name}")).strip() for name in ("max", "current"))
    return min(available, int(limit) - int(used)) if limit.isdecimal() and used.isdecimal() else available


def shared_memory() -> int:
    """Bytes that /dev/shm may hold."""
    return shutil.disk_usage(SHARED_MEMORY).total if Path(SHARED_MEMORY).is_dir() else 0


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text().splitlines()
    except OSError:
        return []


def gpus() -> Finding:
    """GPUs that torch can use, and those that it cannot."""
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    if found:
        return Finding("ok", ", ".join(f"{each.name} ({each.total_memory / GIB:.0f} GiB)" for each in found))
    if Path("/dev/nvidia0").exists():
        return Finding(
            "FAULT",
            f"there is one, but torch {torch.__version__} (CUDA {torch.version.cuda or 'not built in'}) cannot use it: "
            "install torch's CUDA build, and a driver that is new enough for it.",
        )
    return Finding("ok", "none: training runs on CPUs (scale.use_gpu = false)")


def folder_finding(folder: Path) -> Finding:
    """The working folder: writable, with renames, with room, and nobody else's to write."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / f".doctor-{os.getpid()}"
        write_and_rename(probe)
        probe.unlink()
        free, mode = shutil.disk_usage(folder).free, folder.stat().st_mode
    except OSError as error:
        return Finding(
            "FAULT", f"RWS_HOME = {folder} cannot be used ({error.strerror}): set RWS_HOME to another folder."
        )
    text = f"RWS_HOME = {folder}, {free / GIB:.0f} GiB free"
    if free < MIN_DISK:
        return Finding("FAULT", f"{text}: checkpoints need more; python -m rws_ray.runs clean frees some.")
    if mode & 0o002:
        return Finding("FAULT", f"{text}: everybody may write there, and so decide what is loaded; chmod o-w {folder}")
    return Finding("ok", f"{text}; writes and renames")


def write_and_rename(file: Path) -> None:
    """Put a file in place as checkpoints are: written whole under another name, flushed, renamed."""
    partial = file.with_name(file.name + ".partial")
    with partial.open("w") as stream:
        stream.write("here")
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)
