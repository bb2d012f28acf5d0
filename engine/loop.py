"""The game loop: one per process, it owns every instance that is warm here.

A tick takes what has arrived (creations, events, commands, due wake-ups) and starts every
instance that can move: sleepers first, oldest wake-up first, then the queue. trio then lets
every ready task run; the gate commits what they wrote, makes it durable, and lets out what
waited for that.

Invariants:
    An instance has at most one life at a time.
    What is not in memory stands in the catalog with the moment at which it can move again.
    No more instances are warm than `warm_max`, and besides those no more than `visits_max` that only
    take a command while memory is full; more work waits in the queue.
"""

from __future__ import annotations

import collections
import contextvars
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from perdure.actors.actor import Actor
from perdure.actors.host import Host, deadline_in, remaining_ms
from perdure.actors.outcome import Outcome
from perdure.engine.access import ElsewhereError, refuse_expired, required
from perdure.engine.app import App
from perdure.engine.claims import Claims
from perdure.engine.flow import Flow
from perdure.engine.folder import StateFolder
from perdure.engine.life import Life
from perdure.engine.statistics import Tally
from perdure.errors import RuntimeClosedError, StateError
from perdure.storage.catalog import Catalog
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile
from perdure.storage.opening import FileHost
from perdure.storage.records import FINISHED, CatalogRow, Deadline, Durability, Key
from perdure.storage.relay import RelayLog
from perdure.storage.unwritten import MemoryFiles
from perdure.storage.writer import CatalogWriter

logger: Final = logging.getLogger("perdure.engine")
OUTCOMES_KEPT: Final = 1_000
"""Outcomes remembered for `result()`, so that it need not open the file that was just closed."""
CLAIM_LOOK_S: Final = 1.0
"""How long a command waits for a claim that is under way before it looks again."""


class GameLoop:
    """All instances of one process. `run` serves in a task; the rest is called by the runtime."""

    def __init__(
        self,
        *,
        folder: StateFolder,
        app: App,
        disk: Disk,
        durability: Durability,
        host: Host,
        catalog: Catalog,
        relay: RelayLog | None,
        memory: MemoryFiles | None,
        writer: CatalogWriter,
        openings: FileHost,
        closings: FileHost,
        writings: FileHost,
        worker: int,
        env: Any,
    ) -> None:
        self.folder = folder
        self.app = app
        self.disk = disk
        self.durability: Durability = durability
        self.host = host
        self.catalog = catalog
        self.relay = relay
        self.memory = memory
        self.writer = writer
        self.openings = openings
        self.closings = closings
        self.writings = writings
        self.worker = worker
        self.workers = 1  # how many share the work, this one included
        self.env = env
        self.flow = Flow(app.rules, catalog)
        self.lives: dict[Key, Life] = {}
        self.ticks = 0
        self.tally = Tally()
        self.on_posted: Callable[[], None] | None = None
        self.on_expiring: Callable[[int], None] | None = None
        self._visits = trio.Semaphore(host.limits.visits_max)
        self.closing = False
        self._outcomes: collections.OrderedDict[Key, Outcome] = collections.OrderedDict()
        self._changes: dict[Key, trio.Event] = {}
        self._turns: dict[Key, trio.Event] = {}
        self._ring = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._context = contextvars.copy_context()
        self._reserved = 0
        self.claims = Claims(self)

    # -- the loop --------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled: one tick after the other."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                while True:
                    self._ring = trio.Event()
                    self.ticks += 1
                    await self.claims.tick()
                    await self._ring.wait()
            finally:
                with trio.CancelScope(shield=True):
                    await self.shut_down()

    def ring(self) -> None:
        """Have the next tick look into the catalog: something there may be able to move."""
        self.claims.look = True
        self._ring.set()

    def room_made(self) -> None:
        """Have the next tick come where a life that has ended may make way for what waits."""
        if self.claims.look:
            self._ring.set()

    @property
    def room(self) -> int:
        """How many more instances may become warm; where none may, parked ones are to make way."""
        limits = self.host.limits
        room = limits.warm_max - len(self.lives)
        if room <= 0:
            self._make_way()
        return min(room, limits.running_max - self.busy)

    @property
    def newborn_room(self) -> int:
        """How many more new ones may become warm, whose files are in memory at first."""
        room = self.room
        return room if self.memory is None else min(room, self.memory.room(self.host.limits.unwritten_max))

    def make_places(self) -> None:
        """Have parked instances leave memory where others wait for their places."""
        if self.flow.rules:
            self.flow.make_places(self.lives.values())

    @property
    def busy(self) -> int:
        """How many warm instances have something to do."""
        return len(self.lives) - self.host.idle

    def _make_way(self) -> None:
        parked = [
            life.actor for life in self.lives.values() if life.actor is not None and life.actor.is_parked
        ]
        parked.sort(key=lambda actor: actor.last_active_ms)
        for actor in parked[: max(1, len(parked) // 8)]:
            actor.hibernate()

    def place_freed(self) -> None:
        """Look at who waits for a place that an instance has left."""
        self.ring()

    # -- lives -----------------------------------------------------------------------------

    def reserve(self, workflow: str) -> bool:
        """Keep a place for a new instance, where there is one and nothing waits for it in the catalog."""
        if self.claims.look or self.claims.under_way or self.closing or workflow not in self.app.definitions:
            return False
        if workflow in self.flow.rules:  # whether there is a place is for the catalog's writer to say
            return False
        if self.newborn_room <= self._reserved:
            return False
        self._reserved += 1
        return True

    async def take_up(self, row: CatalogRow | None) -> None:
        """Start the new instance for which a place was kept; None where it was not created."""
        self._reserved -= 1
        if row is None:
            return
        if self.closing:
            await self.give_back([row])
        else:
            self.begin(row)

    def begin(self, row: CatalogRow) -> Life:
        """Start a life for the instance of `row`, which has been claimed."""
        if self._nursery is None or self.closing:
            raise RuntimeClosedError("the runtime is ending and starts nothing more")
        before = self.lives.get(row.key)  # its row is at rest, and it is about to go
        definition = self.app.definitions.get(row.workflow)
        life = Life(row.key, self, definition, newborn=row.birth is not None)
        self.lives[row.key] = life
        if row.status == "queued" and row.started_at_ms is None:
            self.tally.started(row.workflow)
        self.forget(row.key)
        # Begun from within a step, it would else inherit that step as the one under way.
        self._context.run(self._nursery.start_soon, self._live, life, row, before)
        return life

    async def wake(self, key: Key) -> Life:
        """Return the life of an instance, begun now where it has none.

        Raises `InstanceNotFoundError` and `RuntimeClosedError`, and `ElsewhereError` where another worker
        owns it.
        """
        while True:
            life = self.lives.get(key)
            if life is not None:
                return life
            needs_place = self.flow.needs_place(key)
            visits = needs_place or self.room <= 0
            if visits:  # memory is full: it takes the command and leaves, to move when there is room
                await self._visits.acquire()
            try:
                life = await self._claim_one(key, visits=visits, needs_place=needs_place)
            finally:
                if visits and (life is None or life.moves_later is None):
                    self._visits.release()
            if life is not None:
                return life
            if key not in self.lives:
                claimed = self.require(key)
                refuse_expired(claimed)
                if claimed.open and claimed.owner != self.worker:
                    raise ElsewhereError(f"worker {claimed.owner} owns {key}")
                with trio.move_on_after(CLAIM_LOOK_S):  # a tick has claimed it and is about to begin it
                    await self.claims.begun.wait()

    async def _claim_one(self, key: Key, *, visits: bool, needs_place: bool) -> Life | None:
        """Claim and start one instance, or return None where it is claimed already."""
        life: Life | None = None
        with trio.CancelScope(shield=True):  # what is claimed has to be begun, or nobody ever does
            row = await self.writer.write(
                lambda catalog: catalog.claim(key, self.worker, keep_status=needs_place)
            )
            if row is not None:
                if self.closing:
                    await self.give_back([row])
                life = self.begin(row)
                life.needs_place = needs_place
                if visits:
                    life.moves_later = self._later(row)
        return life

    def _later(self, row: CatalogRow) -> Deadline:
        """Return since when an instance for which there is no room waits: it keeps its place among others."""
        clock = self.host.clock
        if row.started_at_ms is None:
            return Deadline(wall_ms=row.start_at_ms or row.created_at_ms)
        if row.wake_at_ms is not None:
            wake = Deadline(wall_ms=row.wake_at_ms, boot_ms=row.wake_boot_ms, boot=row.boot)
            if remaining_ms(clock, wake) <= 0:
                return wake
        return deadline_in(clock, 0)

    async def give_back(self, rows: list[CatalogRow]) -> None:
        """Undo claims of which nothing was made."""
        await self.writer.write(lambda catalog: catalog.give_back(rows))

    async def _live(self, life: Life, row: CatalogRow, before: Life | None) -> None:
        try:
            # Only `shut_down` ends a life: to steps, a cancellation from elsewhere looks like the user's own.
            with trio.CancelScope(shield=True):
                if before is not None:
                    await before.closed.wait()
                await life.live(row)
        finally:
            if life.actor is not None:
                self.tally.worked(
                    life.key.workflow, steps=life.actor.journal.progress, replays=life.actor.replays
                )
            if self.lives.get(life.key) is life:
                del self.lives[life.key]
            self._turned(life.key)
            if life.moves_later is not None:
                self._visits.release()
            if life.key.workflow in self.flow.rules:
                self.place_freed()
            elif life.will_wake:
                self.ring()
            else:
                self.room_made()

    def quiet(self, actor: Actor) -> None:
        """All of an actor is parked: look again after the grace time whether it may hibernate."""
        life = self.lives.get(actor.key)
        if life is not None and life.crashes and actor.is_parked:
            self.forgive(life)  # it only waits: another instance takes the process down
        if self.flow.counts_active(actor.key.workflow):
            self.flow.make_places(self.lives.values())
        if len(self.lives) >= self.host.limits.warm_max:
            self.room_made()  # there may be somebody to make way for
        if life is None:
            return
        if self.memory is not None and self.newborn_room <= 0:
            life.unwritten.make_way()
        if life.quiet_timer_set:
            return
        life.quiet_timer_set = True
        grace = deadline_in(self.host.clock, self.host.limits.idle_grace_s)
        self.host.timers.at(grace, lambda: self._look_at(life))

    def _look_at(self, life: Life) -> None:
        life.quiet_timer_set = False
        actor = life.actor
        if life.ending or actor is None or not actor.is_idle:
            return
        idle_s = (self.host.clock.boot_ms() - actor.last_active_ms) / 1000
        if idle_s + 0.001 < self.host.limits.idle_grace_s:
            self.quiet(actor)
        elif actor.is_parked:
            actor.hibernate()
        else:
            actor.tell_what_keeps_it_warm()
            self.quiet(actor)

    # -- what changed ----------------------------------------------------------------------

    def announce(self, key: Key, outcome: Outcome) -> None:
        """Remember a durable outcome and tell those who wait for the instance."""
        self._outcomes[key] = outcome
        life = self.lives.get(key)
        if life is not None and life.found not in FINISHED:  # one that had ended is only told again
            self.tally.ended(key.workflow, outcome)
        while len(self._outcomes) > OUTCOMES_KEPT:
            self._outcomes.popitem(last=False)
        self._turned(key)

    def outcome(self, key: Key) -> Outcome | None:
        """Return the last outcome of an instance where it is remembered."""
        return self._outcomes.get(key)

    def forget(self, key: Key) -> None:
        """Forget the last outcome of an instance."""
        self._outcomes.pop(key, None)

    def removed(self, key: Key) -> None:
        """Forget an instance that is deleted, and have those who wait for it look again."""
        self.forget(key)
        self._turned(key)
        self.posted()
        self.expires(0)

    def posted(self) -> None:
        """Have whoever delivers posts between parents and children look: a life has left some."""
        if self.on_posted is not None:
            self.on_posted()

    def expires(self, at_ms: int) -> None:
        """Have the expiry look at that time: an instance has ended that is kept until then."""
        if self.on_expiring is not None:
            self.on_expiring(at_ms)

    def change_of(self, key: Key) -> trio.Event:
        """Return an event that is set at the next commit of the instance, or turn of its life."""
        return self._changes.setdefault(key, trio.Event())

    def turn_of(self, key: Key) -> trio.Event:
        """Return an event that is set when the instance has come to an outcome, or left memory.

        Who waits for a result waits for this, and so is not woken at every commit.
        """
        return self._turns.setdefault(key, trio.Event())

    def _turned(self, key: Key) -> None:
        for waiting in (self._changes, self._turns):
            event = waiting.pop(key, None)
            if event is not None:
                event.set()

    def committed(self, file: InstanceFile) -> None:
        """Have those who follow an instance look again: its file was committed."""
        key = file.owner
        if isinstance(key, Key):
            event = self._changes.pop(key, None)
            if event is not None:
                event.set()
            life = self.lives.get(key)
            if life is not None and life.crashes and life.actor is not None and life.actor.journal.progress:
                self.forgive(life)

    def forgive(self, life: Life) -> None:
        """Take back what deaths of the process counted against an instance: it has got past them."""
        life.crashes = 0
        assert self._nursery is not None
        self._nursery.start_soon(self._forgive, life.key)

    def spawn(self, serve: Callable[[], Awaitable[None]]) -> None:
        """Run a task for as long as the loop serves."""
        if self._nursery is not None and not self.closing:
            self._nursery.start_soon(serve)

    async def _forgive(self, key: Key) -> None:
        try:
            await self.writer.write(lambda catalog: catalog.forgive(key))
        except StateError as error:  # they are then counted until it rests, which is no harm
            logger.warning("the catalog could not be told that %s recovered: %s", key, error)

    def failed(self, file: InstanceFile, _error: Exception) -> None:
        """Reset an actor: its file's commit or sync failed."""
        if isinstance(file.owner, Key):
            life = self.lives.get(file.owner)
            if life is not None and life.actor is not None:
                life.actor.break_off()

    # -- commands --------------------------------------------------------------------------

    async def command(self, key: Key, act: Callable[[Actor], None]) -> None:
        """Have `act` write to an instance, warm or not, and return when that is durable.

        Raises `InstanceNotFoundError`, what `act` raises, and what opening the file raises.
        """
        life = await self.reach(key)
        async with life.use() as actor:
            act(actor)

    async def reach(self, key: Key) -> Life:
        """Return the life of an instance, as `wake` does, once it is not about to end."""
        while (life := await self.wake(key)).ending:
            if life.stuck is not None:
                raise life.stuck
            await life.closed.wait()
        return life

    async def at_rest(self, key: Key) -> None:
        """Return when the catalog knows how the instance's last life ended, where that is ending now.

        Whoever looks at its row before that would wake an instance that has finished.
        """
        while (life := self.lives.get(key)) is not None and life.ending:
            if life.stuck is not None:
                raise life.stuck
            await life.closed.wait()

    async def closed(self, key: Key) -> None:
        """Return when the instance has left memory."""
        life = self.lives.get(key)
        if life is not None:
            await life.closed.wait()

    async def synced(self, key: Key) -> None:
        """Return when all that the instance has written may be seen outside."""
        life = self.lives.get(key)
        if life is not None:
            await life.synced()

    def require(self, key: Key) -> CatalogRow:
        """Return an instance's row. Raises `InstanceNotFoundError`."""
        return required(self.catalog.find(key), key, self.folder)

    # -- the end ---------------------------------------------------------------------------

    async def shut_down(self) -> None:
        """Stop every life and return when all files are closed."""
        self.closing = True
        while self.claims.under_way:
            await self.claims.begun.wait()
        while self._reserved:
            await trio.lowlevel.checkpoint()
        for life in list(self.lives.values()):
            life.shut_down()
        for life in list(self.lives.values()):
            await life.closed.wait()

    @property
    def still_running(self) -> list[str]:
        """What keeps the lives that are left from ending, for people."""
        return [
            f"{key}: {', '.join(life.actor.open_steps) if life.actor else 'opening'}"
            for key, life in self.lives.items()
        ]
