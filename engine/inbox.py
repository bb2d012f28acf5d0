"""How other processes reach the owner of a state folder: the inbox and the doorbell.

A command is a row of the catalog; the doorbell, a datagram socket, only says that there is one.
A row that nobody rang for is found within a second. Its sender waits for the reply, which is
written after the command's effect is durable.

Invariants:
    Commands for one instance are carried out in the order they were sent.
    A command whose owner died before replying is carried out by the next one, once: it is known
    in the instance's file by its token.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from perdure.actors.methods import MethodCall
from perdure.actors.retention import restored_retention
from perdure.engine.access import Access
from perdure.engine.bulk import PLAIN, BulkCommand, BulkOptions, give_all
from perdure.engine.instance import Instance
from perdure.engine.scheduler import as_time
from perdure.engine.schedules import BackfillBody, ScheduleBody
from perdure.errors import CommandError, PerdureError, RuntimeClosedError, StateError, UnknownWorkflowError
from perdure.storage.failure import failure_summary
from perdure.storage.records import Key, Message, Reply

logger: Final = logging.getLogger("perdure.engine")
LOOK_S: Final = 1.0
"""How late a command without a ring may be noticed."""


class EventBody(msgspec.Struct, frozen=True, kw_only=True):
    """What `send-event` is sent with. `payload` is JSON text."""

    type: str
    payload: str = "null"


class CreateBody(msgspec.Struct, frozen=True, kw_only=True):
    """What `create` is sent with. `params` is JSON text."""

    params: str | None = None
    if_exists: str = "fail"
    priority: int = 0
    at_ms: int | None = None
    timeout_s: float | None = None
    tags: list[str] | None = None
    event: EventBody | None = None
    retention: str | None = None


class BulkBody(msgspec.Struct, frozen=True, kw_only=True):
    """What `bulk` is sent with: a command, and the instances, as workflow and id, that are to get it."""

    command: BulkCommand
    instances: list[tuple[str, str]]
    options: BulkOptions = PLAIN


class BatchLine(msgspec.Struct, frozen=True, kw_only=True):
    """One instance of `create-batch`. `params` is JSON; without an id it gets a random one."""

    params: msgspec.Raw = msgspec.Raw(b"null")
    id: str | None = None
    priority: int = 0


class BatchBody(msgspec.Struct, frozen=True, kw_only=True):
    """What `create-batch` is sent with."""

    entries: list[BatchLine]


class TerminateBody(msgspec.Struct, frozen=True, kw_only=True):
    """What `terminate` is sent with."""

    rollback: bool = False


class CallBody(msgspec.Struct, frozen=True, kw_only=True):
    """What `call` is sent with: the method and its arguments, each as JSON."""

    method: str
    args: list[msgspec.Raw] = []
    kwargs: dict[str, msgspec.Raw] = {}


class Doorbell:
    """A datagram socket in the state folder. Any datagram means: look into the inbox."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.unlink(missing_ok=True)
        self._socket = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    async def open(self) -> None:
        """Listen."""
        await self._socket.bind(os.fspath(self._path))

    async def wait(self) -> None:
        """Return when somebody has rung."""
        await self._socket.recv(64)

    def close(self) -> None:
        """Stop listening and remove the socket."""
        self._socket.close()
        self._path.unlink(missing_ok=True)


def ring(path: Path) -> None:
    """Ring the doorbell at `path`; nothing happens where nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.setblocking(False)
        sender.sendto(b"!", os.fspath(path))


class Inbox:
    """Carries out the commands that other processes have left. `run` serves in a task."""

    def __init__(self, runtime: Any, access: Access, doorbell: Doorbell) -> None:
        self._runtime = runtime
        self._access = access
        self._doorbell = doorbell
        self._queues: dict[Key, list[Message]] = {}
        self._seen = 0
        self._drained = trio.Event()
        self.waiting = 0
        """Commands taken and not carried out yet; what is beyond `inbox_waiting_max` stays in the catalog."""

    async def run(self) -> None:
        """Serve until cancelled."""
        with contextlib.suppress(OSError):  # without a socket, once a second has to do
            await self._doorbell.open()
        async with trio.open_nursery() as nursery:
            while True:
                self._take(nursery)
                if self.waiting >= self._waiting_max:
                    await self._drained.wait()
                    continue
                with trio.move_on_after(LOOK_S):
                    try:
                        await self._doorbell.wait()
                    except (OSError, trio.ClosedResourceError):
                        await trio.sleep(LOOK_S)

    def close(self) -> None:
        """Stop listening."""
        self._doorbell.close()

    @property
    def _waiting_max(self) -> int:
        return self._access.app.limits.inbox_waiting_max

    def _take(self, nursery: trio.Nursery) -> None:
        self._drained = trio.Event()
        room = self._waiting_max - self.waiting
        for message in self._access.catalog.posts.pending(after=self._seen, limit=room):
            self._seen = message.seq
            self.waiting += 1
            if message.command == "sync":  # a reader need not wait for a command that takes its time
                nursery.start_soon(self._serve_one, message)
                continue
            key = Key(message.workflow, message.id)
            queue = self._queues.get(key)
            if queue is None:
                self._queues[key] = [message]
                nursery.start_soon(self._serve, key)
            else:
                queue.append(message)

    async def _serve(self, key: Key) -> None:
        queue = self._queues[key]
        while queue:
            await self._serve_one(queue[0])
            queue.pop(0)
        del self._queues[key]

    async def _serve_one(self, message: Message) -> None:
        try:
            reply = await self._carry_out(message)
            if reply is not None:
                await self._reply(message, reply)
        finally:
            self.waiting -= 1
            if self.waiting < self._waiting_max:
                self._drained.set()

    async def _reply(self, message: Message, reply: Reply) -> None:
        """Write the reply; its sender waits for it, so a disk that is full is waited for too."""
        at_ms = self._access.clock.wall_ms()
        while True:
            try:
                await self._access.writer.write(
                    lambda catalog: catalog.posts.done(message.seq, reply, at_ms=at_ms)
                )
            except StateError as error:
                logger.error("the reply to %s cannot be written: %s", message.command, error)
                await trio.sleep(LOOK_S)
            else:
                return

    async def _carry_out(self, message: Message) -> Reply | None:
        """Carry a command out; None where it is left for the folder's next owner."""
        try:
            value = await self._act(message)
        except RuntimeClosedError:
            return None
        except UnknownWorkflowError as error:
            if not self._access.app.definitions:  # an owner for a moment, which runs nothing itself
                return None
            return Reply(ok=False, error=type(error).__name__, message=str(error))
        except PerdureError as error:
            return Reply(ok=False, error=type(error).__name__, message=str(error))
        except Exception as error:
            logger.exception("command %s for %s/%s failed", message.command, message.workflow, message.id)
            return Reply(ok=False, error="CommandError", message=f"{message.command} failed: {error!r}")
        return Reply(ok=True, value=value)

    async def _act(self, message: Message) -> str | None:
        key = Key(message.workflow, message.id)
        who, token = message.actor, message.token
        instance: Instance[Any] = Instance(key, self._access, self._runtime.queries, None)
        match message.command:
            case "create":
                return await self._create(message)
            case "backfill" | "schedule-pause" | "schedule-resume":
                return await self._schedule(message)
            case "create-batch":
                return await self._create_batch(message)
            case "send-event":
                event = msgspec.json.decode(message.body or "{}", type=EventBody)
                await instance.send_event(event.type, msgspec.json.decode(event.payload), token=token)
            case "pause":
                await instance.pause(who=who, token=token)
            case "resume":
                await instance.resume(who=who, token=token)
            case "terminate":
                body = msgspec.json.decode(message.body or "{}", type=TerminateBody)
                await instance.terminate(rollback=body.rollback, who=who, token=token)
            case "restart":
                origin = msgspec.json.decode(message.body or "{}", type=BulkOptions)
                await instance.restart(
                    origin.from_step, count=origin.count, kind=origin.kind, who=who, token=token
                )
            case "delete":
                await instance.delete(who=who, token=token)
                return "deleted"
            case "bulk":
                return await self._give_all(message)
            case "call":
                return await self._call(key, message)
            case "sync" if not message.id:
                await self._access.synced_all(message.workflow)
                return None
            case "sync":
                self._access.readers.lease(key)
                return msgspec.json.encode(await instance.status()).decode()
            case "open":  # one that is not started gets its file
                await instance.sql("SELECT 1")
            case other:
                raise CommandError(
                    f"this runtime does not know the command {other!r}: it is of another version"
                )
        return (await instance.status()).status

    async def _call(self, key: Key, message: Message) -> str:
        """Call a method; answers with the JSON of its result. What it raises is told with its class."""
        body = msgspec.json.decode(message.body or "{}", type=CallBody)
        call = MethodCall(
            body.method,
            [bytes(each).decode() for each in body.args],
            {name: bytes(each).decode() for name, each in body.kwargs.items()},
            message.actor,
            message.token,
        )
        reply = await self._access.call(key, call)
        if reply.error is not None:
            kind, text = failure_summary(reply.error)
            raise CommandError(f"{body.method}() raised {kind}: {text}")
        if isinstance(reply.value, bytes):
            raise CommandError(f"{body.method}() returned bytes, which cannot be shown as JSON")
        return reply.value or "null"

    async def _create(self, message: Message) -> str:
        body = msgspec.json.decode(message.body or "{}", type=CreateBody)
        params = None if body.params is None else msgspec.json.decode(body.params)
        event = body.event
        instance = await self._runtime.create(
            message.workflow, params=params, id=message.id, if_exists=body.if_exists, token=message.token,
            priority=body.priority,
            at=None if body.at_ms is None else datetime.fromtimestamp(body.at_ms / 1000, UTC),
            timeout=body.timeout_s, tags=body.tags, retention=restored_retention(body.retention),
            event=None if event is None else (event.type, msgspec.json.decode(event.payload)),
        )  # fmt: skip
        return str(instance.id)

    async def _give_all(self, message: Message) -> str:
        """Give a command to many instances; answers with a `BulkReport`, as JSON."""
        body = msgspec.json.decode(message.body or "{}", type=BulkBody)
        body.options.origin.check()
        keys = [Key(workflow, id_) for workflow, id_ in body.instances]
        report = await give_all(
            self._access, keys, body.command, body.options, who=message.actor, token=message.token
        )
        return msgspec.json.encode(report).decode()

    async def _schedule(self, message: Message) -> str:
        """Carry out a command to a schedule; answers with its status, or the ids created, as JSON."""
        text = message.body or "{}"
        if message.command == "backfill":
            asked = msgspec.json.decode(text, type=BackfillBody)
            stretch = as_time(asked.from_ms), as_time(asked.to_ms)
            created = await self._runtime.backfill(asked.schedule, *stretch)
            return msgspec.json.encode([instance.id for instance in created]).decode()
        name = msgspec.json.decode(text, type=ScheduleBody).schedule
        runtime = self._runtime
        act = runtime.pause_schedule if message.command == "schedule-pause" else runtime.resume_schedule
        return msgspec.json.encode(await act(name)).decode()

    async def _create_batch(self, message: Message) -> str:
        """Create what does not exist yet; answers with the ids, as JSON."""
        body = msgspec.json.decode(message.body or "{}", type=BatchBody)
        created = await self._runtime.create_batch(
            message.workflow,
            [
                {"id": line.id, "params": msgspec.json.decode(line.params), "priority": line.priority}
                for line in body.entries
            ],
            token=message.token,
        )
        return msgspec.json.encode([instance.id for instance in created]).decode()
