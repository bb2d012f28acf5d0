"""When the file of a warm instance is written that is in memory only so far (`storage/unwritten.py`).

An instance just created begins in memory. Its file is written when it rests, which is the cheap way:
in a thread, without being opened. One that goes on is written in the loop once it has had its time,
and at once where somebody wants to read it. Each life has one of these.

Invariants:
    Whoever awaits `written_out` finds all that is safe of the instance in its file.
    A place in memory that was promised to a life is taken, or given up when the life ends.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from perdure.actors.actor import Actor
from perdure.actors.host import Host, deadline_in, remaining_ms
from perdure.engine.folder import StateFolder
from perdure.errors import StateError
from perdure.storage.files import InstanceFile
from perdure.storage.records import Key
from perdure.storage.unwritten import MemoryFiles, is_long

logger: Final = logging.getLogger("perdure.engine")
LOOKS_MAX: Final = 10
"""How often a file in memory is given its time again, as long as its instance goes from step to step."""


class Keeper(Protocol):
    """What is needed of the game loop."""

    folder: StateFolder
    host: Host
    memory: MemoryFiles | None

    def room_made(self) -> None:
        """Note that another instance may have a place."""
        ...

    def spawn(self, serve: Callable[[], Awaitable[None]]) -> None:
        """Run a task for as long as the runtime serves."""
        ...


class Warm(Protocol):
    """What is needed of the life."""

    key: Key
    actor: Actor | None
    file: InstanceFile | None
    ending: bool


class Unwritten:
    """Sees to it that a life's file gets written. With `expected` it keeps a place for one in memory."""

    def __init__(self, life: Warm, keeper: Keeper, *, expected: bool) -> None:
        self._life = life
        self._keeper = keeper
        self._memory = keeper.memory if expected else None
        self._looks = 0
        if self._memory is not None:
            self._memory.expected.add(self)

    def make(self) -> InstanceFile | None:
        """Return an empty file that is not written yet, or None where there is to be one on disk at once."""
        memory = self._memory
        if memory is None:
            return None
        path = self._keeper.folder.instance(self._life.key)
        file = None if os.path.exists(path) else memory.make(path)  # noqa: PTH110 - each start asks
        self.give_up()
        return file

    def give_up(self) -> None:
        """Let another have the place that was kept, where it was not taken."""
        if self._memory is not None:
            self._memory.expected.discard(self)

    def watch(self) -> None:
        """Look again when the file has been in memory for its time."""
        host = self._keeper.host
        host.timers.at(deadline_in(host.clock, host.limits.unwritten_s), self._outlived)

    def _outlived(self) -> None:
        """See to it that a file gets written that has been in memory for its time."""
        life, host = self._life, self._keeper.host
        file, actor = life.file, life.actor
        if file is None or file.unwritten is None or life.ending or actor is None:
            return
        if self._looks < LOOKS_MAX and not host.gate.is_open(file) and not is_long(file):
            # It waits for the disk and not for its own work: most likely it has ended before the next look.
            self._looks += 1
            self.watch()
            return
        if not self.make_way():
            self._keeper.spawn(self._write_out)

    def make_way(self) -> bool:
        """Have the instance leave memory at once, where it only waits, and long: then nothing opens its file.

        Called early where others wait for the room that it takes.
        """
        life, host = self._life, self._keeper.host
        file, actor = life.file, life.actor
        if file is None or file.unwritten is None or actor is None or not actor.is_parked:
            return False
        wake = actor.waits().wake
        if wake is None or remaining_ms(host.clock, wake) <= host.limits.idle_grace_s * 1000:
            return False
        actor.hibernate()
        return True

    async def _write_out(self) -> None:
        host = self._keeper.host
        try:
            await self.written_out()
        except StateError as error:
            logger.error("%s stays in memory for now: %s", self._life.key, error)
            host.timers.at(deadline_in(host.clock, host.limits.reset_delay_s), self._outlived)

    async def written_out(self) -> None:
        """Return when the file is on disk, so that others can open it. Raises `StateError`."""
        gate = self._keeper.host.gate
        while (file := self._life.file) is not None and not gate.try_write_out(file):
            file.wanted_on_disk = True  # the gate does it where it finds the file at rest
            await gate.passed(file)
            await trio.lowlevel.checkpoint()
        self._keeper.room_made()
