"""A container's file system on this machine: everything read-only but the folders that its manifest mounts.

A root folder of its own in a mount namespace of its own: this machine's folders read-only, the manifest's volumes
empty and writable, the checkout at /opt/rws. The command runs as the manifest's user, without capabilities.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from manifests import ROOT

HIDDEN = {"tmp", "home", "opt", "proc", "dev", "sys", "mnt", "media", "root", "run"}
USER = 1000  # runAsUser in every manifest


def is_possible() -> bool:
    """Whether this process may make mounts and become that user."""
    try:
        done = subprocess.run(
            ["unshare", "--mount", "setpriv", f"--reuid={USER}", "--clear-groups", "true"],
            capture_output=True, check=False,
        )  # fmt: skip
    except OSError:
        return False
    return done.returncode == 0


def run(
    words: Sequence[str], settings: Mapping[str, str], writable: Sequence[str], root: Path
) -> subprocess.CompletedProcess[str]:
    """Run a command in such a file system, made at `root`, an empty folder.

    Args:
        writable: the folders that the manifest mounts.
    """
    lines = ["set -e", f"mount -t tmpfs -o mode=755 tmpfs {root}", f"cd {root}"]
    for each in sorted(Path("/").iterdir()):
        if each.is_symlink():
            lines.append(f"ln -s {each.readlink()} {each.name}")
        elif each.is_dir() and each.name not in HIDDEN:
            lines += [
                f"mkdir {each.name}",
                f"mount --rbind {each} {each.name}",
                f"mount -o remount,bind,ro {each.name}",
            ]
    for each in (Path(sys.base_prefix), Path(sys.prefix)):
        if each.parts[1] in HIDDEN:  # an interpreter in a home: it alone, not its neighbours
            place = shlex.quote(str(each).lstrip("/"))
            lines += [
                f"mkdir -p {place}",
                f"mount --bind {shlex.quote(str(each))} {place}",
                f"mount -o remount,bind,ro {place}",
            ]
    for name in ("proc", "dev", "sys"):
        lines += [f"mkdir {name}", f"mount --rbind /{name} {name}"]
    lines += ["mkdir -p opt/rws", f"mount --bind {shlex.quote(str(ROOT))} opt/rws", "mount -o remount,bind,ro opt/rws"]
    for path in writable:
        place = path.lstrip("/")
        lines += [f"mkdir -p {place}", f"mount -t tmpfs -o uid={USER},gid={USER},mode=700 tmpfs {place}"]
    lines.append(f"mount -o remount,ro {root}")
    told = " ".join(shlex.quote(f"{name}={value}") for name, value in settings.items())
    user = f"setpriv --reuid={USER} --regid={USER} --clear-groups --bounding-set=-all --no-new-privs"
    inside = f"cd {writable[0]} && exec env -i {told} {user} {shlex.join(words)}"
    lines.append(f"exec chroot . sh -c {shlex.quote(inside)}")
    return subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", "\n".join(lines)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
