"""What the game loop takes out of the catalog: when it looks there, how much it claims, and when again.

Sleepers are opened a little ahead of their time, a few at a time, so that what takes long (opening the
file, reading the journal, running up to the sleep) is over when it comes; they then wait for it in memory
like any that is warm. The loop owns the one object of this kind; nobody else claims more than one instance.

Invariants:
    What was claimed is begun or given back.
    Nothing is opened ahead that would not wait for its time by itself, nor where memory is half full.
    Newborns that find no room in memory keep no sleeper from waking.
"""

from __future__ import annotations

import logging
from collections.abc import Sized
from typing import Any, Final, Protocol

import trio

from perdure.actors.host import Host, deadline_in
from perdure.engine.app import App
from perdure.engine.flow import Flow
from perdure.engine.life import Life
from perdure.engine.timers import Together
from perdure.errors import StateError
from perdure.storage.catalog import Catalog
from perdure.storage.records import CatalogRow, Deadline
from perdure.storage.writer import CatalogWriter

logger: Final = logging.getLogger("perdure.engine")
DUE_MAX: Final = 200
"""Wake-ups taken from the catalog in one write: who is next is not to wait for a thousand others to open."""
AHEAD_MS: Final = 1_000
"""How long before their time sleepers are opened at most: they cost memory from then on."""
ROOM_AHEAD_MIN: Final = 8
"""Sleepers are opened early only where there is room for as many."""
AHEAD_MS_MIN: Final = 100
"""Less than this is not worth a write of the catalog."""
AHEAD_MAX: Final = 50
"""Sleepers opened ahead in one write: whoever is due meanwhile waits until all of them have been begun."""

Moves = tuple[int | None, int | None]
"""When the next instance can move, on the boot clock and on the wall clock."""


class Claimant(Protocol):
    """What is needed of the game loop."""

    app: App
    catalog: Catalog
    closing: bool
    flow: Flow
    host: Host
    worker: int
    workers: int
    writer: CatalogWriter

    @property
    def lives(self) -> Sized:
        """What is warm."""
        ...

    @property
    def room(self) -> int:
        """How many more instances may become warm."""
        ...

    @property
    def newborn_room(self) -> int:
        """How many more new ones may."""
        ...

    def make_places(self) -> None:
        """Have parked instances leave memory where others wait for their places."""
        ...

    def begin(self, row: CatalogRow) -> Life:
        """Start a life for the instance of `row`, which has been claimed."""
        ...

    async def give_back(self, rows: list[CatalogRow]) -> None:
        """Undo claims of which nothing was made."""
        ...

    def ring(self) -> None:
        """Have the next tick look into the catalog."""
        ...


class Claims:
    """Claims what can move. `look` says that something in the catalog may be able to.

    `under_way` is set while a claim is; `begun` is set, and made anew, when one has ended.
    """

    def __init__(self, loop: Claimant) -> None:
        self.look = True
        self.under_way = False
        self.begun = trio.Event()
        self._loop = loop
        self._next: Any = None

    async def tick(self) -> None:
        """Claim what can move, as far as there is room, and start it; then wait for what moves next."""
        loop = self._loop
        while self.look and loop.app.definitions and not loop.closing and loop.room > 0:
            self.look = False
            moves = self._next_moves()
            loop.make_places()
            if self._can_move(moves):
                self.look = await self._claim() or self.look
                continue
            ahead_ms = self._ahead_ms()
            if ahead_ms and self._can_move(moves, ahead_ms // 2):
                if await self._claim(ahead_ms=ahead_ms):
                    self.look = True
                    continue
                ahead_ms = 0  # what moves next is of another kind
            self._schedule(moves, ahead_ms // 2)
            return
        if not loop.closing and loop.app.definitions:
            self._schedule(None)

    def _next_moves(self) -> Moves:
        """Return when the next instance can move for which there may be room."""
        loop = self._loop
        if loop.newborn_room > 0:
            return loop.catalog.next_moves(loop.app.definitions, loop.host.clock.wall_ms())
        return loop.catalog.ahead.next_wakes(loop.app.definitions)

    def _can_move(self, moves: Moves, ahead_ms: int = 0) -> bool:
        boot_ms, wall_ms = moves
        clock = self._loop.host.clock
        return (boot_ms is not None and boot_ms - ahead_ms <= clock.boot_ms()) or (
            wall_ms is not None and wall_ms - ahead_ms <= clock.wall_ms()
        )

    def _ahead_ms(self) -> int:
        """Return how long ahead sleepers may be opened now; 0 for not at all."""
        loop = self._loop
        limits = loop.host.limits
        # With little room one opened early would make way for others, and be opened early again.
        if loop.room < max(ROOM_AHEAD_MIN, limits.running_max // 2) or len(loop.lives) > limits.warm_max // 2:
            return 0
        ahead_ms = min(AHEAD_MS, int(limits.idle_grace_s * 500))  # else they would hibernate once more
        return ahead_ms if ahead_ms >= AHEAD_MS_MIN else 0

    async def _claim(self, *, ahead_ms: int = 0) -> bool:
        """Claim and start as many as there is room for, in one write; returns whether any could move."""
        loop, known = self._loop, list(self._loop.app.definitions)
        clock, room, newborns = loop.host.clock, loop.room, max(0, loop.newborn_room)
        boot_ms, wall_ms = clock.boot_ms() + ahead_ms, clock.wall_ms() + ahead_ms

        def claim(catalog: Catalog) -> list[CatalogRow]:
            if ahead_ms:
                plain = [name for name in known if name not in loop.flow.rules]
                rows = catalog.ahead.asleep(
                    boot_ms=boot_ms, wall_ms=wall_ms, workflows=plain, limit=min(room, AHEAD_MAX)
                )
                return catalog.claim_all(rows, loop.worker)
            return catalog.claim_movable(
                loop.worker, boot_ms=boot_ms, wall_ms=wall_ms, workflows=known, due_max=min(room, DUE_MAX),
                queued_max=min(newborns, loop.host.limits.claim_batch_max), workers=loop.workers,
            )  # fmt: skip

        self.under_way = True
        rows: list[CatalogRow] = []
        try:
            with trio.CancelScope(shield=True):
                rows = await loop.writer.write(claim)
                if loop.closing:
                    await loop.give_back(rows)
                    return False
        except StateError as error:
            logger.error("what can move cannot be claimed, and is tried again: %s", error)
            loop.host.timers.at(deadline_in(clock, loop.host.limits.reset_delay_s), loop.ring)
            return False
        finally:
            self.under_way = False
            self.begun.set()
            self.begun = trio.Event()
        for row in rows:
            loop.begin(row)
        return bool(rows)

    def _schedule(self, moves: Moves | None, ahead_ms: int = 0) -> None:
        """Set the timer for the next instance in the catalog that can move: at `moves`, where known."""
        loop = self._loop
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if loop.room <= 0 or loop.newborn_room <= 0:
            self.look = True  # the end of a life rings
        if loop.room <= 0:
            return
        clock = loop.host.clock
        boot_ms, wall_ms = moves or self._next_moves()
        timers: list[Deadline] = []
        if boot_ms is not None:
            timers.append(Deadline(wall_ms=0, boot_ms=boot_ms - ahead_ms, boot=clock.boot))
        if wall_ms is not None:
            timers.append(Deadline(wall_ms=wall_ms - ahead_ms))
        self._next = Together([loop.host.timers.at(timer, loop.ring) for timer in timers])
