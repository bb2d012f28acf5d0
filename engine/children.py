"""Children, as the engine sees them: how they are created, and how news of their ends gets about.

`ChildMaker` does what an instance asks for. `News` delivers the posts that settling leaves in the
catalog: to parents whose children have ended, and to children that are to end. It runs in the process that
owns the folder, and takes what there is when it is told that there is something; nobody polls.

Invariants:
    A child is created under the incarnation that its parent has on record, or not at all.
    A post is dropped once what it says stands durably in its receiver's file, or nobody is there for it.
    Many ends of one parent's children are one command to it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import trio

from perdure.actors.child_host import ChildRequest
from perdure.actors.workflow import Definition
from perdure.engine.access import Access, Command, stored_outcome
from perdure.engine.births import prepare_birth
from perdure.engine.settlements import end_of
from perdure.errors import (
    InstanceExistsError,
    InstanceFinishedError,
    InstanceNotFoundError,
    PerdureError,
    RuntimeClosedError,
    StateError,
)
from perdure.storage.family import CHILD_ENDED, ChildEnd, ChildRef, How, child_end
from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate
from perdure.storage.moves import Newborn
from perdure.storage.records import FINISHED, CatalogRow, Key, Message

logger: Final = logging.getLogger("perdure.engine")
AGAIN_S: Final = 1.0
"""How soon a post that could not be delivered is tried again, at first; each time it is twice as long."""
AGAIN_MAX_S: Final = 60.0
TAKEN_MAX: Final = 5_000
"""Posts in memory; what is beyond stays in the catalog."""
ENDS_MAX: Final = 1_000
"""Ends that one command brings."""
ENDS_CHARS_MAX: Final = 1024 * 1024
"""What they may hold together: a command may have to cross to another process."""
RECEIVERS_MAX: Final = 64
"""Instances that posts are delivered to at one time."""


class ChildMaker:
    """Creates and ends children for the instances that are reached by `access` and write through `gate`.

    `spawn` runs a task for as long as the runtime serves.
    """

    def __init__(
        self, access: Access, gate: Gate, spawn: Callable[[Callable[[], Awaitable[None]]], None]
    ) -> None:
        self._access = access
        self._gate = gate
        self._spawn = spawn

    def definition(self, workflow: type | str) -> Definition:
        """Return what is known of a workflow. Raises `UnknownWorkflowError`."""
        return self._access.app.definition(workflow)

    async def start(
        self, requests: Sequence[ChildRequest]
    ) -> tuple[list[ChildEnd], list[tuple[int, InstanceExistsError]]]:
        """Create the children that are not there; tell which have ended, and which cannot be."""
        ended: list[ChildEnd] = []
        missing: list[tuple[int, Newborn]] = []
        for place, request in enumerate(requests):
            row = None if request.is_new else self._row(request.ref)
            if row is not None and row.status in FINISHED and not row.open:
                ended.append(await outcome_of(self._access, row))
            elif row is None and (request.is_new or not self._is_over(request.ref)):
                missing.append((place, self._newborn(request)))
        refused: list[tuple[int, InstanceExistsError]] = []
        for place, newborn in await self._add(missing):
            try:
                await self._replace(newborn)
            except InstanceExistsError as error:
                refused.append((place, error))
        return ended, refused

    def _row(self, ref: ChildRef) -> CatalogRow | None:
        row = self._access.catalog.find(ref.key)
        return row if row is not None and row.incarnation == ref.incarnation else None

    def _is_over(self, ref: ChildRef) -> bool:
        """Whether a child that has no row was deleted, and the news of it is still on its way."""
        return self._access.catalog.family.on_its_way(ref.incarnation)

    def _newborn(self, request: ChildRequest) -> Newborn:
        birth, _ = prepare_birth(
            self._access, request.definition, request.params, id_=request.ref.key.id, event=None,
            tags=request.tags, timeout=request.timeout_s, retention=None, token=None,
        )  # fmt: skip
        birth = msgspec.structs.replace(
            birth, incarnation=request.ref.incarnation, parent=str(request.parent)
        )
        return Newborn(birth=birth, params=request.stored)

    async def _add(self, missing: list[tuple[int, Newborn]]) -> list[tuple[int, Newborn]]:
        """Create what is missing; return those whose id is in use by another."""
        if len(missing) == 1:
            _, newborn = missing[0]
            try:
                await self._access.add(newborn.birth, newborn.params, start_at_ms=None, replace=False)
            except InstanceExistsError:
                return missing
            return []
        if not missing:
            return []
        newborns = [newborn for _, newborn in missing]
        stand = await self._access.writer.write(lambda catalog: catalog.moves.add_all(newborns))
        for newborn in newborns:
            self._access.forget(Key(newborn.birth.workflow, newborn.birth.id))
        self._access.ring()
        return [each for each, is_there in zip(missing, stand, strict=True) if not is_there]

    async def _replace(self, newborn: Newborn) -> None:
        """Put a child in the place of one that the same parent had before. Raises `InstanceExistsError`."""
        birth = newborn.birth
        row = self._access.catalog.find(Key(birth.workflow, birth.id))
        if row is not None and row.incarnation == birth.incarnation:
            return
        if row is not None and (row.parent != birth.parent or row.status not in FINISHED or row.open):
            whose = f"a child of {row.parent}" if row.parent else "an instance of its own"
            raise InstanceExistsError(
                f"{birth.workflow}/{birth.id} exists already ({row.status}) as {whose}, so it cannot be this"
                " child: give the child another id",
                workflow=birth.workflow,
                instance_id=birth.id,
            )
        await self._access.add(birth, newborn.params, start_at_ms=None, replace=True)

    async def end(self, children: Sequence[ChildRef]) -> None:
        """Have those terminated that have not ended."""
        at_ms = self._access.clock.wall_ms()
        await self._access.writer.write(
            lambda catalog: catalog.family.end(children, parent="parent", at_ms=at_ms)
        )
        self._access.posted()

    def end_soon(self, children: Sequence[ChildRef], file: InstanceFile) -> None:
        """As `end`, once what the file says of them is durable."""

        def lives(ref: ChildRef) -> bool:
            row = self._row(ref)
            return row is not None and row.status not in FINISHED

        left = [ref for ref in children if lives(ref)]
        if not left:
            return

        async def end() -> None:
            try:
                await self._gate.passed(file)
                await self.end(left)
            except PerdureError as error:  # the end of their parent will tell them
                logger.warning("children cannot be told to end now: %s", error)

        self._spawn(end)


async def outcome_of(access: Access, row: CatalogRow) -> ChildEnd:
    """Return how a child at rest has ended, with its result, as its file has it."""
    try:
        return end_of(row.key, row.incarnation, await stored_outcome(access, row)) or _gone(row)
    except PerdureError as error:  # no file, or none that can be read
        logger.error("the outcome of child %s cannot be read: %s", row.key, error)
        return _gone(row)


def _gone(row: CatalogRow) -> ChildEnd:
    how: How = "complete" if row.status == "complete" else "errored"
    return child_end(row.key, row.incarnation, how, None)


async def with_outcomes(access: Access, command: Command) -> Command:
    """Return a `child-ended` command with the results that were too large for its post."""
    ends = msgspec.json.decode(command.payload, type=list[ChildEnd])
    whole: list[ChildEnd] = []
    for end in ends:
        if end.stored is None and end.how in ("complete", "errored"):
            row = access.catalog.find(end.key)
            is_it = row is not None and row.incarnation == end.incarnation and row.status in FINISHED
            whole.append(await outcome_of(access, row) if row is not None and is_it else end)
        else:
            whole.append(end)
    return msgspec.structs.replace(command, payload=msgspec.json.encode(whole).decode())


class News:
    """Delivers the posts of families. `run` serves in a task; `ring` says that there are some."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._rung = trio.Event()
        self._rung.set()
        self._queues: dict[Key, list[Message]] = {}
        self._turns = trio.Semaphore(RECEIVERS_MAX)
        self._seen = 0
        self.waiting = 0
        """Posts taken and not delivered yet."""

    def ring(self) -> None:
        """Have it look into the catalog."""
        self._rung.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._rung.wait()
                self._rung = trio.Event()
                self._take(nursery)

    def _take(self, nursery: trio.Nursery) -> None:
        room = TAKEN_MAX - self.waiting
        if room <= 0:
            return  # whoever makes room rings
        for post in self._access.catalog.family.pending(after=self._seen, limit=room):
            self._seen = post.seq
            self.waiting += 1
            key = Key(post.workflow, post.id)
            queue = self._queues.get(key)
            if queue is None:
                self._queues[key] = [post]
                nursery.start_soon(self._serve, key)
            else:
                queue.append(post)
        if self.waiting >= TAKEN_MAX:
            logger.debug("%d posts between parents and children wait", self.waiting)

    async def _serve(self, key: Key) -> None:
        """Deliver what there is for one instance, in as few commands as it takes."""
        queue = self._queues[key]
        again_s = AGAIN_S
        while queue:
            batch = _fitting(queue)
            async with self._turns:
                is_done = await self._deliver(key, batch)
            if not is_done:
                await trio.sleep(again_s)
                again_s = min(2 * again_s, AGAIN_MAX_S)
                continue
            again_s = AGAIN_S
            del queue[: len(batch)]
            was_full = self.waiting >= TAKEN_MAX
            self.waiting -= len(batch)
            if was_full:
                self.ring()
        del self._queues[key]

    async def _deliver(self, key: Key, posts: Sequence[Message]) -> bool:
        """Deliver posts and drop them; False where they have to be tried again."""
        ends = [post for post in posts if post.command == CHILD_ENDED]
        row = self._access.catalog.find(key)
        if row is None or (row.status in FINISHED and not row.open):  # nobody waits any more
            return await self._drop([post.seq for post in posts])
        try:
            for post in posts:
                if post.command != CHILD_ENDED:
                    await self._end(key, post)
            if ends:
                payload = f"[{','.join(post.body or '' for post in ends)}]"
                await self._access.command(key, Command(name=CHILD_ENDED, payload=payload))
        except (InstanceFinishedError, InstanceNotFoundError):
            pass  # nobody waits for it any more
        except RuntimeClosedError:
            await trio.sleep_forever()  # the next process delivers them
        except PerdureError as error:
            logger.error("%s cannot be told of its family, and is tried again: %s", key, error)
            return False
        except Exception:
            logger.exception("%s cannot be told of its family", key)
            return False
        return await self._drop([post.seq for post in posts])

    async def _drop(self, seqs: list[int]) -> bool:
        try:
            await self._access.writer.write(lambda catalog: catalog.family.drop(seqs))
        except StateError as error:
            logger.error("posts that are delivered cannot be dropped yet: %s", error)
            return False
        return True

    async def _end(self, key: Key, post: Message) -> None:
        """Terminate a child that its parent is done with, where it is still the same one."""
        row = self._access.catalog.find(key)
        if row is None or str(row.incarnation) != post.body or row.status in FINISHED:
            return
        command = Command(name="terminate", who=post.actor, token=post.token)
        with contextlib.suppress(InstanceFinishedError, InstanceNotFoundError):
            await self._access.command(key, command)


def _fitting(queue: Sequence[Message]) -> list[Message]:
    """Return as much of a queue as one command may bring; at least its first post."""
    batch: list[Message] = []
    chars = 0
    for post in queue[:ENDS_MAX]:
        chars += len(post.body or "")
        if batch and chars > ENDS_CHARS_MAX:
            break
        batch.append(post)
    return batch
