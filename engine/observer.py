"""How a runtime's statistics come about, and reach another process that looks (`perdure top`).

Who looks touches a file of the state folder; the runtime sees that within a tenth of a second and
writes its statistics beside it, again and again, for as long as somebody has looked within
`LOOKED_S`. So a look costs the catalog nothing, and works while the catalog is what is stuck.

Invariants:
    Nothing is written while nobody looks.
    A reader sees whole statistics: a file takes the place of the one before.
    Nothing here is synced: it is for looking, and gone with the runtime.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import trio

from perdure.actors.actor import Actor
from perdure.engine.clock import SystemClock
from perdure.engine.folder import StateFolder
from perdure.engine.inbox import Inbox
from perdure.engine.loop import GameLoop
from perdure.engine.statistics import (
    QUEUE_COUNTED_MAX,
    QUEUE_LOOKED_MAX,
    LoopLag,
    QueueStatistics,
    RuntimeStatistics,
    united,
)
from perdure.engine.timers import TimerQueue
from perdure.errors import StateError
from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.query import QueryHost

LOOKED_S: Final = 10.0
"""Statistics are written for this long after a look."""
WRITE_S: Final = 0.5
"""How often they are written then."""
LATE_S: Final = 3.0
"""Statistics older than this come from a process that is stuck, or was killed."""
LOOK: Final = "statistics.look"
ANSWERS: Final = "statistics.*.json"


class Observer:
    """The statistics of one runtime. `run` serves in a task, until it is cancelled."""

    def __init__(self, loop: GameLoop, timers: TimerQueue, queries: QueryHost) -> None:
        self._loop = loop
        self._timers = timers
        self._queries = queries
        self._inbox: Inbox | None = None
        self._lag = LoopLag()
        self._opened_s = trio.current_time()
        self._look = loop.folder.root / LOOK
        self._answer = loop.folder.root / ANSWERS.replace("*", str(loop.worker))
        self._looked = _touched(self._look)

    def counts_inbox(self, inbox: Inbox) -> None:
        """Say which inbox the commands of other processes wait in."""
        self._inbox = inbox

    def statistics(self, waiting: tuple[int, int] | None = None) -> RuntimeStatistics:
        """Return the figures as they are now; `waiting`: to be started and woken, where counted already."""
        loop, host, now_s = self._loop, self._loop.host, trio.current_time()
        queries = self._queries.statistics()
        oldest_s = queries.oldest_started_s
        lives = list(loop.lives.values())
        parked = {life.key for life in lives if life.actor is not None and life.actor.is_parked}
        return RuntimeStatistics(
            at=datetime.fromtimestamp(host.clock.wall_ms() / 1000, UTC),
            uptime_s=round(now_s - self._opened_s, 3),
            worker=loop.worker,
            pid=os.getpid(),
            warm=len(lives),
            busy=loop.busy,
            parked=len(parked),
            files_open=sum(life.file is not None for life in lives),
            ticks=loop.ticks,
            timers=self._timers.waiting,
            queries=queries.running,
            oldest_query_s=None if oldest_s is None else round(now_s - oldest_s, 3),
            lag=self._lag.statistics(),
            queues=self._queues(waiting or self._count(loop.catalog, QUEUE_COUNTED_MAX)),
            workflows=loop.tally.statistics(
                ((life.key.workflow, life.key in parked, *_work_of(life.actor)) for life in lives),
                self._queued_of_each(),
            ),
            gate=host.gate.statistics(),
            catalog=loop.writer.statistics(),
            disk=loop.disk.statistics(),
            functions=host.functions.statistics(),
        )

    def _queues(self, waiting: tuple[int, int]) -> QueueStatistics:
        unstarted, due = waiting
        return QueueStatistics(
            unstarted=unstarted, due=due, inbox=0 if self._inbox is None else self._inbox.waiting,
            catalog_writes=self._loop.writer.statistics().waiting,
        )  # fmt: skip

    def _count(self, catalog: Catalog, limit: int) -> tuple[int, int]:
        if self._loop.closing:  # its catalog may be closed by now
            return 0, 0
        clock = self._loop.host.clock
        return catalog.moves.count(boot_ms=clock.boot_ms(), wall_ms=clock.wall_ms(), limit=limit)

    def _queued_of_each(self) -> dict[str, int]:
        if self._loop.closing:
            return {}
        return self._loop.catalog.moves.count_queued(self._loop.app.definitions, QUEUE_COUNTED_MAX)

    def _count_long(self) -> tuple[int, int]:
        """Count long queues, in a thread and over a connection of its own."""
        connection = open_catalog(self._loop.folder.catalog, checkpointer=False, create=False)
        with contextlib.closing(connection):
            return self._count(Catalog(connection), QUEUE_LOOKED_MAX)

    async def run(self) -> None:
        """Measure the loop's lag, and write the statistics while somebody looks."""
        until_s = next_s = -1.0
        try:
            while True:
                await self._lag.wake()
                now_s = trio.current_time()
                looked = _touched(self._look)
                if looked != self._looked:
                    self._looked = looked
                    until_s = now_s + LOOKED_S
                if next_s <= now_s < until_s:
                    next_s = now_s + WRITE_S
                    await self._show()
        finally:
            with contextlib.suppress(OSError):
                self._answer.unlink(missing_ok=True)

    async def _show(self) -> None:
        waiting: tuple[int, int] | None = None
        with contextlib.suppress(StateError):
            waiting = await trio.to_thread.run_sync(self._count_long)
        text = msgspec.json.encode(self.statistics(waiting))
        await trio.to_thread.run_sync(self._write, text)

    def _write(self, text: bytes) -> None:
        whole = self._answer.with_suffix(".new")
        with contextlib.suppress(OSError):  # on a full disk there is nothing to see
            whole.write_bytes(text)
            whole.replace(self._answer)


def _work_of(actor: Actor | None) -> tuple[int, int]:
    """Return the steps an actor has recorded in this life, and how often `run()` was called again in it."""
    return (0, 0) if actor is None else (actor.journal.progress, actor.replays)


def _touched(path: Path) -> int | None:
    """Return what differs once somebody has looked."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


class Look:
    """Looks at the runtime of a state folder from another process.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as state:
    ...     look = Look(StateFolder(state))
    ...     look.begin()
    ...     [each.warm for each in look.seen()]
    []
    """

    def __init__(self, folder: StateFolder) -> None:
        self._root = folder.root
        self._clock = SystemClock()
        self._before: dict[Path, int | None] = {}

    def begin(self) -> None:
        """Say that somebody looks; the first statistics come about a tenth of a second later.

        They go on for `LOOKED_S`. Raises `OSError` where the folder cannot be written to.
        """
        if not self._before:
            self._before = {path: _touched(path) for path in self._root.glob(ANSWERS)}
        path = self._root / LOOK
        path.touch()
        os.utime(path)

    def seen(self) -> list[RuntimeStatistics]:
        """Return what each worker has written since the first look. One that was killed is left out."""
        return [statistics for _, statistics in self._answers()]

    def late(self) -> list[RuntimeStatistics]:
        """Return what those workers have written last that have not written for `LATE_S`."""
        since_ns = (self._clock.wall_ms() - round(LATE_S * 1000)) * 1_000_000
        return [statistics for touched, statistics in self._answers() if touched < since_ns]

    def total(self) -> RuntimeStatistics | None:
        """Return the sum over all workers, or None while none has answered."""
        seen = self.seen()
        return united(seen) if seen else None

    def _answers(self) -> Iterator[tuple[int, RuntimeStatistics]]:
        for path in sorted(self._root.glob(ANSWERS)):
            touched = _touched(path)
            if touched is None or touched == self._before.get(path):
                continue
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                statistics = msgspec.json.decode(path.read_bytes(), type=RuntimeStatistics)
                if statistics.pid is None or _is_there(statistics.pid):
                    yield touched, statistics


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
