"""Threads kept for one task's short jobs that wait for the disk, so that the loop never does.

A sync, an opening or a catalog's transaction is short and there are many of them, so the way to
the thread and back is a good part of what it costs. These threads are kept, are handed work
through a queue and answer through a pipe that the task waits for: half of what a general worker
thread costs, which sets up a context, a limiter and a cancellation that no such job needs.

The gate, the catalog's writer and the file host each open their own. Threads are started when
first needed.

Invariants:
    `run` returns when every job has ended, cancelled or not. One task calls it, never twice at a time.
    After `close` no thread is left.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, TypeVar

import outcome
import trio

T = TypeVar("T")

DONE: Final = b"."
"""One byte in the pipe for each job that has ended."""


class _Job:
    __slots__ = ("function", "result")

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.result: outcome.Outcome[Any] | None = None


class Threads:
    """Up to `threads_max` threads. Used by one task, from inside `open_threads`."""

    def __init__(self, name: str, threads_max: int) -> None:
        self.threads_max = threads_max
        self._name = name
        self._threads: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._answers, self._answer = os.pipe2(os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()

    async def run_one(self, function: Callable[[], T]) -> T:
        """Call `function` in a thread; return what it returns or raise what it raises."""
        (result,) = await self.run([function])
        return result.unwrap()

    async def run(self, functions: Sequence[Callable[[], T]]) -> list[outcome.Outcome[T]]:
        """Call all `functions` in the threads and return how each ended, in their order."""
        jobs = [_Job(function) for function in functions]
        while len(self._threads) < min(self.threads_max, len(jobs)):
            self._start()
        for job in jobs:
            self._jobs.put(job)
        left = len(jobs)
        with trio.CancelScope(shield=True):
            while left:
                await trio.lowlevel.wait_readable(self._answers)
                left -= len(os.read(self._answers, left))
        return [job.result for job in jobs if job.result is not None]

    def _start(self) -> None:
        name = f"{self._name} {len(self._threads)}"
        thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.result = outcome.capture(job.function)
            os.write(self._answer, DONE)

    def close(self) -> None:
        """End the threads. They are idle: nobody is inside `run`."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        os.close(self._answers)
        os.close(self._answer)


@contextlib.contextmanager
def open_threads(name: str, threads_max: int) -> Generator[Threads]:
    """Give threads while inside; `name` is what debuggers show."""
    threads = Threads(name, threads_max)
    try:
        yield threads
    finally:
        threads.close()
