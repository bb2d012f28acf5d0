"""One instance's stretch in memory: claimed, opened, advanced, closed, written down.

Each life is one task. Commands reach the instance through `use`, which keeps the file open
while they write, and after which the life looks again whether there is something to do.

Invariants:
    The catalog marks the row open, durably, before the file is first changed.
    Who waits for an outcome is told after it is durable, and before the file is closed.
    A file is closed off the loop, and the catalog is told after that, however long it cannot be.
    What a file is made from stays in the catalog until the file durably holds it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final, Protocol

import trio

from perdure.actors.actor import Actor
from perdure.actors.host import Host, deadline_in
from perdure.actors.methods import MethodCall, MethodReply
from perdure.actors.outcome import (
    Broken,
    Deleted,
    Interrupted,
    Outcome,
    Parked,
    Terminated,
)
from perdure.actors.workflow import Definition
from perdure.engine.app import App
from perdure.engine.expiry import expires_at_ms
from perdure.engine.folder import StateFolder
from perdure.engine.removal import remove_files
from perdure.engine.resting import ended_under_call, summary, unreachable
from perdure.engine.settlements import settlement_of
from perdure.engine.unwritten import Unwritten
from perdure.errors import (
    InstanceDamagedError,
    PerdureError,
    StateError,
    StateVersionError,
)
from perdure.storage.catalog import Catalog
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile, create_file, open_file, remove_file, storage_error
from perdure.storage.lifecycle import bear, is_born, read_state
from perdure.storage.opening import FileHost, read_ahead
from perdure.storage.records import (
    FINISHED,
    Birth,
    CatalogRow,
    Deadline,
    Durability,
    Key,
    Status,
    decode_birth,
)
from perdure.storage.relay import RelayLog
from perdure.storage.unwritten import MemoryFiles
from perdure.storage.writer import CatalogWriter

logger: Final = logging.getLogger("perdure.engine")


class Owner(Protocol):
    """What a life needs of the game loop that owns it."""

    folder: StateFolder
    disk: Disk
    durability: Durability
    host: Host
    relay: RelayLog | None
    memory: MemoryFiles | None
    writer: CatalogWriter
    openings: FileHost
    closings: FileHost
    writings: FileHost
    worker: int
    env: Any
    app: App

    def posted(self) -> None:
        """Note that there are posts between parents and children."""
        ...

    def removed(self, key: Key) -> None:
        """Forget an instance that is deleted."""
        ...

    def expires(self, at_ms: int) -> None:
        """Look at that time whether the retention of an instance is over."""
        ...

    def quiet(self, actor: Actor) -> None:
        """Note that all of the actor is parked."""
        ...

    def room_made(self) -> None:
        """Note that another instance may have a place."""
        ...

    def spawn(self, serve: Callable[[], Awaitable[None]]) -> None:
        """Run a task for as long as the runtime serves."""
        ...

    def announce(self, key: Key, outcome: Outcome) -> None:
        """Tell those who wait: the outcome is durable."""
        ...


class Life:
    """One instance in memory. `opened` and `closed` are events; `error` says why opening failed,
    `stuck` why the catalog cannot be told that it is at rest. `will_wake` says whether, once at rest,
    the catalog has a moment for it to go on, `found` which status it had there before. With
    `moves_later` it only takes commands and rests until then.
    """

    def __init__(
        self, key: Key, owner: Owner, definition: Definition | None, *, newborn: bool = False
    ) -> None:
        self.key = key
        self.actor: Actor | None = None
        self.file: InstanceFile | None = None
        self.opened = trio.Event()
        self.closed = trio.Event()
        self.error: PerdureError | None = None
        self.ending = False
        self.stuck: StateError | None = None
        self.found: Status = "queued"
        self.moves_later: Deadline | None = None
        self.crashes = 0
        self.quiet_timer_set = False
        self.will_wake = False
        self.needs_place = False  # it only takes a command: whether it may move is decided when it is claimed
        self._owner = owner
        self._definition = definition
        self._users = 0
        self._used = False  # since the last look at its outcome; a run that has parked since does not count
        self._unused = trio.Event()
        self._shutting_down = False
        self.unwritten = Unwritten(self, owner, expected=newborn)
        self._again = trio.Event()
        self._epoch = 0
        self._unsaved = False  # whether the log alone has what the file should have

    # -- from birth to rest ----------------------------------------------------------------

    async def live(self, row: CatalogRow) -> None:
        """Live from the claim, which gave `row`, to the closing of the file."""
        self.found = row.status
        try:
            try:
                await self._open(row)
            except PerdureError as error:
                await self._failed_to_open(error)
                return
            self.opened.set()
            outcome = await self._advance()
            await self._rest(outcome)
        except Exception as error:  # a defect of ours: this instance is parked, the others go on
            logger.exception("%s met an internal error", self.key)
            self.error = PerdureError(f"{self.key} met an internal error: {error!r}")
            with trio.CancelScope(shield=True):
                await self._close()
                await self._bury(f"internal error: {error!r}")
        except KeyboardInterrupt as interrupt:  # raised in the user's code; it may as well have been in ours
            with trio.CancelScope(shield=True):
                await self._close()
                await self._postpone(repr(interrupt), 0)
            raise
        finally:
            self.ending = True
            self.opened.set()
            self.unwritten.give_up()
            if self.file is not None:
                with trio.CancelScope(shield=True):
                    await self._close()
            self.closed.set()

    async def _open(self, row: CatalogRow) -> None:
        owner = self._owner
        epoch = self._epoch = row.epoch
        birth = decode_birth(row.birth)
        in_memory = self.unwritten.make()
        if in_memory is None:
            file, newborn = await owner.openings.do(lambda: self._file(birth))
        else:
            file, newborn = in_memory, True
        self.file = file
        file.owner = self.key
        if owner.relay is not None:
            owner.relay.adopt(
                file, str(self.key), row.incarnation, newborn=newborn,
                unsettled=birth is not None or row.crashes > 0,
            )  # fmt: skip
        if birth is not None and newborn:
            bear(file, owner.host.gate, birth, row.params, epoch=epoch)
        self.actor = Actor(self._definition, file, owner.host, owner.env, on_quiet=owner.quiet)
        self.actor.start_at_ms = row.start_at_ms
        self.actor.moves_later = self.moves_later
        if not newborn:  # an older catalog may count from further back than the file
            self.actor.lifecycle.own(max(epoch, self.actor.lifecycle.state.epoch + 1))
        if birth is not None and birth.event_type is not None and birth.event_payload is not None:
            token = f"birth-{birth.incarnation}"
            self.actor.control.receive(birth.event_type, birth.event_payload, token=token)
        self.crashes = row.crashes
        # One that only waited is most likely innocent; it goes last, should deaths go on without the others.
        crashes_max = owner.host.limits.crashes_max * (2 if self.actor.was_waiting else 1)
        if row.crashes >= crashes_max and self.actor.lifecycle.state.status not in FINISHED:
            self.actor.declare_dead(
                f"its process died {row.crashes} times in a row with nothing recorded between; `resume` tries"
                " it again"
            )
        if file.unwritten is not None:
            self.unwritten.watch()
        if self._shutting_down:
            self.actor.shut_down()

    def _file(self, birth: Birth | None) -> tuple[InstanceFile, bool]:
        """Open the file, made where it is not born yet; say whether it is empty. Runs off the loop.

        Another incarnation's file makes way for it.
        """
        owner = self._owner
        path = owner.folder.instance(self.key)
        if birth is None or path.exists():
            file = open_file(path, disk=owner.disk, durability=owner.durability)
            try:
                born = is_born(file)
                if birth is None or not born or read_state(file).incarnation == birth.incarnation:
                    if born:
                        read_ahead(file)
                    return file, not born
            except BaseException:
                file.abandon()
                raise
            file.close()
            remove_file(path)
        try:
            create_file(path, disk=owner.disk, durable=owner.durability == "full" and owner.relay is None)
        except OSError as error:
            raise storage_error(error, path) from error
        return open_file(path, disk=owner.disk, durability=owner.durability, is_new=True), True

    async def _advance(self) -> Outcome:
        """Advance until the outcome stands and no command has come in the meantime."""
        actor = self.actor
        assert actor is not None
        while True:
            outcome = await actor.advance()
            if isinstance(outcome, Terminated | Deleted):  # nobody waits for a method that may never return
                actor.calls.stop(ended_under_call(self.key, outcome))
            actor.control.touched = self._used = False
            while self._users:
                self._unused = trio.Event()
                await self._unused.wait()
            await actor.calls.none_under_way()
            stays = not (actor.control.touched or self._used) and (
                not isinstance(outcome, Parked) or actor.starts_later is not None
            )
            if stays and actor.calls.waiting:
                actor.calls.refuse(unreachable(self.key, outcome, actor.starts_later))
            if isinstance(outcome, Broken) or not (
                actor.control.touched or self._used or actor.calls.waiting
            ):
                return outcome

    async def _rest(self, outcome: Outcome) -> None:
        """Make the outcome durable, tell it, close the file, write it into the catalog."""
        owner = self._owner
        actor, file = self.actor, self.file
        assert actor is not None
        assert file is not None
        self.ending = True
        if isinstance(outcome, Deleted):
            await self._remove(actor.control.deletion_token)
            return
        with trio.CancelScope(shield=True):
            if not isinstance(outcome, Broken):
                try:
                    await owner.host.gate.passed(file)
                except PerdureError as error:
                    outcome = Broken(error=error)
            if not isinstance(outcome, Broken | Interrupted):
                owner.announce(self.key, outcome)
            family = settlement_of(actor, outcome, had_ended=self.found in FINISHED)
            await self._close()
            if isinstance(outcome, Broken):
                await self._reset(outcome.error)
                return
            key = self.key
            status, reason, wake = summary(
                outcome, actor.lifecycle.state, owner.host.clock, has_class=self._definition is not None,
                needs_place=self.needs_place,
            )  # fmt: skip
            until_ms = outcome.until_ms if isinstance(outcome, Parked) and self._definition else None
            state = actor.lifecycle.state
            expires_ms = expires_at_ms(state, self._definition, owner.app)
            self.will_wake = wake is not None or until_ms is not None

            def settle(catalog: Catalog) -> None:
                catalog.settle(
                    key,
                    status,
                    reason=reason,
                    started_at_ms=state.started_at_ms,
                    ended_at_ms=state.ended_at_ms,
                    wake=wake,
                    until_ms=until_ms,
                    version=state.version,
                    expires_ms=expires_ms,
                )
                if family is not None:
                    family.post(catalog, at_ms=state.ended_at_ms or 0)

            await self._tell(settle)
            if family is not None:
                owner.posted()
            if expires_ms is not None:
                owner.expires(expires_ms)

    async def _remove(self, token: str | None) -> None:
        """Close the file of an instance that somebody deletes, then do as `removal.delete_all` does."""
        owner, key, epoch = self._owner, self.key, self._epoch
        path, marked = owner.folder.instance(key), False

        def mark(catalog: Catalog) -> None:
            nonlocal marked
            marked = catalog.removals.mark_own(key, epoch, token)

        with trio.CancelScope(shield=True):
            await self._close()
            await self._tell(mark)
            if not marked:  # the runtime ends, or the row has another owner: the instance stays
                return
            owner.removed(key)
            try:
                await owner.closings.do(lambda: remove_files([path]))
            except StateError as error:
                logger.error("the file of %s, which is deleted, stays for now: %s", key, error)
                return
            at_ms = owner.host.clock.wall_ms()
            await self._tell(lambda catalog: catalog.removals.drop([key], at_ms=at_ms))

    async def _failed_to_open(self, error: PerdureError) -> None:
        """Report an instance whose file cannot be used; the others go on."""
        self.error = error
        self.ending = True
        self.opened.set()
        with trio.CancelScope(shield=True):
            await self._close()
            await self._reset(error)

    async def _reset(self, error: Exception) -> None:
        """Have the instance go on from its last commit after a rest; never where its file cannot be read."""
        limits, key = self._owner.host.limits, self.key
        if isinstance(error, InstanceDamagedError | StateVersionError):
            logger.error("%s is parked: %s", key, error)
            await self._bury(str(error))
            return
        logger.error(
            "%s goes back to its last commit and rests for %g s: %s", key, limits.reset_delay_s, error
        )
        await self._postpone(str(error), limits.reset_delay_s)

    async def _postpone(self, reason: str, delay_s: float) -> None:
        key, wake = self.key, deadline_in(self._owner.host.clock, delay_s)
        self.will_wake = True
        await self._tell(lambda catalog: catalog.postpone(key, reason=reason, wake=wake))

    async def _bury(self, reason: str) -> None:
        key = self.key
        await self._tell(lambda catalog: catalog.bury(key, reason=reason))

    async def _tell(self, operation: Callable[[Catalog], None]) -> None:
        """Write to the catalog; where that fails, again after a rest, until done or the runtime ends."""
        while not self._unsaved:
            try:
                await self._owner.writer.write(operation)
            except StateError as error:
                if self.stuck is None:
                    logger.error("%s is at rest, and the catalog cannot be told yet: %s", self.key, error)
                self.stuck = error
            else:
                self.stuck = None
                return
            if self._shutting_down:  # the row stays marked open, so that the next start looks at the file
                return
            await self._wait_a_while()

    async def _wait_a_while(self) -> None:
        host = self._owner.host
        timer = host.timers.at(deadline_in(host.clock, host.limits.reset_delay_s), self._again.set)
        await self._again.wait()
        self._again = trio.Event()
        timer.cancel()

    async def _close(self) -> None:
        file, self.file = self.file, None
        if file is None:
            return
        gate = self._owner.host.gate
        in_order = await gate.retire(file)
        file.give_memory_back()
        self._owner.room_made()
        host = self._owner.closings if file.unwritten is None else self._owner.writings
        while True:
            try:
                await host.do(file.close if in_order else file.abandon)
            except Exception as error:  # noqa: BLE001 - a failed checkpoint leaves the WAL to the next owner
                logger.error("%s was not closed cleanly: %s", self.key, error)
                if file.unwritten is not None and not self._shutting_down:
                    await self._wait_a_while()  # there is nothing but memory and the log that has it
                    continue
                self._unsaved = file.unwritten is not None
            break
        gate.retired(file, in_order=in_order and not self._unsaved)

    # -- commands --------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncGenerator[Actor]:
        """Yield the actor with its file open; what is written inside is durable on leaving.

        Raises the error with which opening failed. Only while not `ending`.
        """
        self._users += 1
        try:
            await self.opened.wait()
            if self.error is not None:
                raise self.error
            actor, file = self.actor, self.file
            assert actor is not None
            assert file is not None
            actor.control.touched = True
            yield actor
            await self._owner.host.gate.passed(file)
        finally:
            self._used = True
            self._users -= 1
            if self._users == 0:
                self._unused.set()

    async def call(self, call: MethodCall) -> MethodReply:
        """Carry a call out and return its reply, once what it wrote may be seen outside.

        Raises why it cannot be carried out. Only while not `ending`.
        """
        async with self.use() as actor:
            actor.moves_later = None  # it is to run, though there is hardly room for it
            pending = actor.calls.post(call)
        try:
            await actor.calls.turn(pending)
        except trio.Cancelled:
            actor.calls.withdraw(pending)
            raise
        return await actor.calls.perform(pending)

    async def synced(self) -> None:
        """Return when all that the instance has written so far is where others may see it (law 2)."""
        file = self.file
        if file is not None:
            await self._owner.host.gate.passed(file)
            await self.unwritten.written_out()

    def shut_down(self) -> None:
        """End this life because the runtime is ending."""
        self._shutting_down = True
        self._again.set()
        if self.actor is not None:
            self.actor.shut_down()
