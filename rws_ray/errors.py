"""Errors that a user can meet: each message is a sentence that says what is wrong, where, and how to mend it.

Exit codes: 1 a run failed, 2 the input is wrong (configuration, data, model name), 3 the infrastructure is away.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable

FULL = (errno.ENOSPC, errno.EDQUOT)  # the store of a file has no room


class RwsError(Exception):
    """Root of the project's errors. `exit_code` is the status that a command ends with."""

    exit_code = 1


class RunError(RwsError):
    """A run that was well specified did not finish."""


class ConfigError(RwsError):
    """The job, a search space or a command line asks for something that cannot be."""

    exit_code = 2


class DataError(RwsError):
    """A data set is missing, damaged or not what the job says."""

    exit_code = 2


class ModelError(RwsError):
    """No such model, version or alias, or a stored model that is damaged."""

    exit_code = 2


class InfrastructureError(RwsError):
    """A service that the command cannot do without does not answer."""

    exit_code = 3


def debugging() -> bool:
    """Whether RWS_DEBUG asks for tracebacks."""
    return os.environ.get("RWS_DEBUG", "") not in ("", "0")


def run_command(command: Callable[[list[str]], None], arguments: list[str] | None = None) -> None:
    """Run a command's body and end the process with its exit code, errors told as one sentence on stderr."""
    try:
        command(sys.argv[1:] if arguments is None else arguments)
    except RwsError as error:
        if debugging():
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; the rest of it has no reader to be lost to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if debugging():
            traceback.print_exc()
        reason = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        if error.errno in FULL:
            reason += "; make room there, then run the same command again"
        print(f"error: {' '.join(reason.split())[:600]} (RWS_DEBUG=1 shows where it happened)", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if debugging():
            traceback.print_exc()
        reason = " ".join(str(error).split()) or "no message"
        print(
            f"error: {type(error).__name__}: {reason[:600]} (RWS_DEBUG=1 shows where it happened)",
            file=sys.stderr,
        )
        sys.exit(1)
