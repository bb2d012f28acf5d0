"""Opens and closes instance files in threads, many at a time.

What waits goes to a thread together, as the catalog's writes do: opening a file costs a good part
of a millisecond in system calls and in SQLite's reading of the schema, and none of it is the loop's.

Invariants:
    A request that is made is carried out, cancelled or not; one that comes too late, by whoever makes it.
    Requests of one instance come one after another: its life makes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast

import outcome
import trio

from perdure.storage import journal, lifecycle, mail
from perdure.storage.files import InstanceFile
from perdure.storage.threads import Threads, open_threads

T = TypeVar("T")
STEPS_AHEAD_MAX: Final = 1_000
"""A longer journal is read by its actor, at its own pace."""
ROUND_MAX: Final = 32
"""Jobs of one round: who made them goes on when all of the round are done, and all at once."""


class _Request:
    __slots__ = ("function", "result", "task")

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.task = trio.lowlevel.current_task()
        self.result: outcome.Outcome[Any] | None = None


class FileHost:
    """Carries out jobs on files. `run` serves in a task; `do` may be called by any."""

    def __init__(self, name: str, *, threads_max: int) -> None:
        self._name = name
        self._threads_max = threads_max
        self._waiting: list[_Request] = []
        self._under_way = 0
        self._work = trio.Event()
        self._ended = False

    @property
    def busy(self) -> bool:
        """Whether jobs wait or are under way; the virtual clock waits for them."""
        return bool(self._waiting) or self._under_way > 0

    async def do(self, function: Callable[[], T]) -> T:
        """Call `function` in a thread and return what it returns, or raise what it raises."""
        if self._ended:  # all is coming to an end, and a file that stays open would not
            return function()
        request = _Request(function)
        self._waiting.append(request)
        self._work.set()
        result = await trio.lowlevel.wait_task_rescheduled(_stay)
        return cast("outcome.Outcome[T]", result).unwrap()

    async def run(self) -> None:
        """Serve for ever."""
        with open_threads(self._name, self._threads_max) as threads:
            try:
                while True:
                    await self._work.wait()
                    await self._round(threads)
            finally:
                while self._waiting:
                    await self._round(threads)
                self._ended = True

    async def _round(self, threads: Threads) -> None:
        self._work = trio.Event()
        batch, self._waiting = self._waiting[:ROUND_MAX], self._waiting[ROUND_MAX:]
        if self._waiting:
            self._work.set()
        self._under_way = len(batch)
        await self._carry_out(threads, batch)
        self._under_way = 0

    async def _carry_out(self, threads: Threads, batch: list[_Request]) -> None:
        count = threads.threads_max
        shares = [batch[start::count] for start in range(min(count, len(batch)))]
        await threads.run([functools.partial(_call, share) for share in shares])
        for request in batch:
            trio.lowlevel.reschedule(request.task, outcome.Value(request.result))


def _call(requests: Sequence[_Request]) -> None:
    for request in requests:
        request.result = outcome.capture(request.function)


def _stay(_raise_cancel: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


def read_ahead(file: InstanceFile) -> None:
    """Read what an actor asks of a file that it takes over, so that the loop neither waits nor prepares."""
    file.read_ahead(lifecycle.READ)
    ((steps, _),) = file.read_ahead(journal.LAST)
    if 0 < steps <= STEPS_AHEAD_MAX:
        file.read_ahead(journal.SCAN, (0,))
    ((messages, _),) = file.read_ahead(mail.LAST)
    if messages:
        file.read_ahead(mail.UNDELIVERED)
