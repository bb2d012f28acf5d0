"""Who reads the files of instances at rest, so that nobody changes or removes one under a reader.

A finished instance's file is read as immutable: without locks, and without leaving anything beside it.
A restart writes to it again, so it waits until such readers have left, and those who come meanwhile
read in the ordinary way.

Invariants:
    No file is written to while somebody reads it as immutable.
    A file that somebody reads, or has just asked for, is not expired.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Final

import trio

from perdure.errors import CommandError
from perdure.storage.records import Key

LEASE_S: Final = 60.0
"""How long a file is kept that another process has asked for: it reads without saying when it is done."""
WAIT_S_MAX: Final = 60.0
"""How long a restart waits for readers; their queries have a time limit of their own."""


class Readers:
    """The readers of one process. Used by its access alone."""

    def __init__(self) -> None:
        self._reading: collections.Counter[Key] = collections.Counter()
        self._immutable: collections.Counter[Key] = collections.Counter()
        self._kept_out: collections.Counter[Key] = collections.Counter()
        self._leases: dict[Key, float] = {}
        self._left = trio.Event()

    @contextlib.contextmanager
    def reading(self, key: Key) -> Generator[Callable[[], bool]]:
        """Count a reader while inside; what is yielded asks for leave to read as immutable."""
        immutable = False

        def may_be_immutable() -> bool:
            nonlocal immutable
            if not immutable and not self._kept_out[key]:
                immutable = True
                self._immutable[key] += 1
            return immutable

        self._reading[key] += 1
        try:
            yield may_be_immutable
        finally:
            _less(self._reading, key)
            if immutable:
                _less(self._immutable, key)
            self._left.set()
            self._left = trio.Event()

    def lease(self, key: Key) -> None:
        """Keep a file for a while that another process is about to read."""
        now = trio.current_time()
        self._leases = {known: until for known, until in self._leases.items() if until > now}
        self._leases[key] = now + LEASE_S

    def has(self, key: Key) -> bool:
        """Whether somebody reads the instance's file, or is about to."""
        return self._reading[key] > 0 or self._leases.get(key, 0.0) > trio.current_time()

    @contextlib.asynccontextmanager
    async def kept_out(self, key: Key) -> AsyncGenerator[None]:
        """Have nobody read the file as immutable while inside. Raises `CommandError` after a long wait."""
        self._kept_out[key] += 1
        try:
            with trio.move_on_after(WAIT_S_MAX) as waited:
                while self._immutable[key]:
                    await self._left.wait()
            if waited.cancelled_caught:
                raise CommandError(
                    f"{key} cannot be restarted: queries have been reading its file for {WAIT_S_MAX:g} s; let"
                    " them end first"
                )
            yield
        finally:
            _less(self._kept_out, key)


def _less(counts: collections.Counter[Key], key: Key) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
