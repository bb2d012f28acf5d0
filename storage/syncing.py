"""Threads that do nothing but wait for the disk: the gate's, so that the loop never does.

A sync is short and there is one for every step of a chain, so the way to the thread and back is a
good part of what it costs. These threads are kept, are handed work through a queue and answer
through a pipe that the loop waits for: half of what a general worker thread costs, which sets up
a context, a limiter and a cancellation that no sync needs.

Only the gate uses this. Threads are started when first needed.

Invariants:
    `sync` returns when every file has been synced or has failed, cancelled or not.
    After `close` no thread is left.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Generator, Iterable
from typing import Final, TypeAlias

import outcome
import trio

from perdure.storage.files import InstanceFile

Failures: TypeAlias = list[tuple[InstanceFile, OSError]]

DONE: Final = b"."
"""One byte in the pipe for each share that a thread has finished."""


class SyncThreads:
    """Up to `threads_max` threads. Used by one task, from inside `open_sync_threads`."""

    def __init__(self, threads_max: int) -> None:
        self._threads_max = threads_max
        self._threads: list[threading.Thread] = []
        self._shares: queue.SimpleQueue[list[InstanceFile] | None] = queue.SimpleQueue()
        self._results: list[outcome.Outcome[Failures]] = []
        self._answers, self._answer = os.pipe2(os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()

    async def sync(self, files: list[InstanceFile]) -> Failures:
        """Sync all files, spread over the threads, and return those that failed, with their errors."""
        shares = [files[start :: self._threads_max] for start in range(min(self._threads_max, len(files)))]
        while len(self._threads) < len(shares):
            self._start()
        for share in shares:
            self._shares.put(share)
        left = len(shares)
        with trio.CancelScope(shield=True):
            while left:
                await trio.lowlevel.wait_readable(self._answers)
                left -= len(os.read(self._answers, left))
        results, self._results = self._results, []
        return [failure for result in results for failure in result.unwrap()]

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"perdure sync {len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while (share := self._shares.get()) is not None:
            self._results.append(outcome.capture(sync_files, share))
            os.write(self._answer, DONE)

    def close(self) -> None:
        """End the threads. They are idle: nobody is inside `sync`."""
        for _ in self._threads:
            self._shares.put(None)
        for thread in self._threads:
            thread.join()
        os.close(self._answers)
        os.close(self._answer)


@contextlib.contextmanager
def open_sync_threads(threads_max: int) -> Generator[SyncThreads]:
    """Give sync threads while inside."""
    threads = SyncThreads(threads_max)
    try:
        yield threads
    finally:
        threads.close()


def sync_files(files: Iterable[InstanceFile]) -> Failures:
    """Sync each file and return those that failed with their errors. Runs in a thread."""
    failed: Failures = []
    for file in files:
        try:
            file.sync()
        except OSError as error:
            failed.append((file, error))
    return failed
