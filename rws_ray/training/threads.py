"""Work side by side in the threads that a worker has.

What is shared out is whole micro-shards and whole blocks of rows: each is computed by one thread as it would be alone,
so the number of threads leaves no trace in its bits. Compiled kernels and torch's operations let go of Python's lock.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def start(threads: int, work: Callable[..., Result], *arguments: object) -> Future[Result]:
    """Begin `work(*arguments)` in one of so many threads, under this thread's context (kernels, precision)."""
    return _pool(threads).submit(copy_context().run, work, *arguments)


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The results in order, worked out in as many threads as torch may use here."""
    threads = min(torch.get_num_threads(), len(items))
    if threads < 2:
        yield from map(work, items)
        return
    begun = [start(threads, work, item) for item in items]
    try:
        for each in begun:
            yield each.result()
    finally:
        for each in begun:
            each.cancel()


@contextmanager
def alone() -> Iterator[None]:
    """Within the block, this thread's torch operations keep to this thread: the others are at work."""
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "shards", initializer=torch.set_num_threads, initargs=(1,))
