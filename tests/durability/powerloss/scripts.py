"""What the recorded programs do: for each kind of work its orders, and the lives of its process.

Invariants:
    A fact is told once the runtime has acknowledged it, never before; what is only asked for
    is told as `asks` before the call.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
import trio

import perdure
from perdure.engine.runtime import Runtime
from powerloss.work import Fact, Job, Order, digest, event_of, short

Tell: TypeAlias = Callable[[Fact], None]
Drive: TypeAlias = "Callable[[Stage], Awaitable[None]]"
BYSTANDER: Final = "mine/notes.txt"
"""A file of the user's own in the state folder."""


WORKERS: Final = "SELECT pid FROM _perdure_workers WHERE doorbell IS NULL AND stopped_at IS NULL"
VISITED: Final = (1, 5)


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """One life of the process: what it does, and how it ends if not by itself."""

    drive: Drive
    durability: Any = "full"
    limits: perdure.Limits = perdure.Limits(crashes_max=1_000)
    killed: bool = False
    workers: int = 1
    visited: bool = False
    """Whether somebody edits the files while steps are under way."""
    small_log: bool = False
    """Whether the relay log's segments are small and settled after milliseconds, so that many come and go."""


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of work: the orders it carries out, and the lives of its process one after another."""

    name: str
    orders: tuple[Order, ...]
    lives: tuple[Life, ...]


class Stage:
    """What a driver has: the runtime, its orders, and where to tell facts."""

    def __init__(
        self, runtime: Runtime, script: Script, tell: Tell, began: Callable[[str, int], Any]
    ) -> None:
        self.runtime = runtime
        self.orders = script.orders
        self.tell = tell
        self.began = began

    async def create(self, order: Order, if_exists: Any = "attach") -> perdure.Instance[list[str]]:
        """Create the instance of an order and tell so."""
        self.tell({"what": "asks", "id": order.id, "generation": order.generation})
        instance = await self.runtime.create(Job, params=order, id=order.id, if_exists=if_exists)
        self.tell({"what": "created", "id": order.id, "generation": order.generation})
        return instance

    async def send(self, order: Order, n: int) -> None:
        """Send the event that is the nth value; sent again, it changes nothing."""
        instance = await self.runtime.get(Job, order.id)
        with contextlib.suppress(perdure.InstanceFinishedError):
            await instance.send_event("go", event_of(order, n), token=event_of(order, n))
            self.tell({"what": "event", "id": order.id, "n": n})

    async def show(self, order: Order) -> None:
        """Look at the instance as users do, and tell what was shown."""
        instance = await self.runtime.get(Job, order.id)
        status = (await instance.status()).status
        self.tell({"what": "status", "id": order.id, "status": status})
        rows = await instance.sql("SELECT name, output FROM steps WHERE status = 'completed' AND kind = 'do'")
        steps = {row.name: short(row.output) for row in rows}
        self.tell({"what": "shown", "id": order.id, "steps": steps})

    async def finish(self, order: Order) -> list[str] | None:
        """Wait for the result and tell it; None where it was terminated."""
        instance = await self.runtime.get(Job, order.id)
        try:
            values: list[str] = await instance.result()
        except perdure.InstanceTerminatedError:
            self.tell({"what": "status", "id": order.id, "status": "terminated"})
            return None
        self.tell({"what": "result", "id": order.id, "digest": digest(values)})
        return values

    async def command(self, order: Order, command: str) -> None:
        """Give a command and tell once it is acknowledged."""
        instance = await self.runtime.get(Job, order.id)
        self.tell({"what": "asks", "id": order.id, "command": command})
        await getattr(instance, command)()
        done = {"pause": "paused", "resume": "resumed", "terminate": "terminated"}[command]
        self.tell({"what": "commanded", "id": order.id, "status": done})


# -- drivers -------------------------------------------------------------------------------


async def all_at_once(stage: Stage) -> None:
    """Create all, send their events, look at them and wait for the results, all at the same time."""
    place_bystander(stage)

    async def one(order: Order) -> None:
        await stage.create(order)
        for n in order.waits:
            await stage.send(order, n)
            await stage.show(order)
        await stage.finish(order)

    async with trio.open_nursery() as nursery:
        for order in stage.orders:
            nursery.start_soon(one, order)


async def in_turns(stage: Stage) -> None:
    """Give each instance one event after another, in turns, with time for each to come to rest in between."""
    for order in stage.orders:
        await stage.create(order)
    for turn in range(len(stage.orders[0].waits)):
        for order in stage.orders:
            await stage.send(order, order.waits[turn])
            await stage.began(order.id, order.waits[turn] + 1)
            await trio.sleep(0.002)
    for order in stage.orders:
        await stage.finish(order)


async def take_up(stage: Stage) -> None:
    """Go on with whatever is left of the orders, one after another."""
    for order in stage.orders:
        instance = await stage.create(order)
        if (await instance.status()).status == "paused":
            await stage.command(order, "resume")
        for n in order.waits:
            await stage.send(order, n)
        await stage.finish(order)


async def shared(stage: Stage) -> None:
    """Share the orders between workers, and have one of these die while they are under way."""
    for order in stage.orders:
        await stage.create(order)
    pids = [row.pid for row in await stage.runtime.sql(WORKERS)]
    for turn in range(len(stage.orders[0].waits)):
        for order in stage.orders:
            await stage.send(order, order.waits[turn])
        if turn == 0:
            os.kill(pids[0], signal.SIGKILL)
        for order in stage.orders:
            await stage.show(order)
    for order in stage.orders:
        await stage.finish(order)


def place_bystander(stage: Stage) -> None:
    """Put a file of the user's own into the state folder, durably."""
    path = stage.runtime.path / BYSTANDER
    if path.exists():
        return
    path.parent.mkdir()
    path.write_bytes(b"not yours")
    for synced in (path, path.parent, path.parent.parent):
        sync_folder(synced)
    stage.tell({"what": "bystander", "digest": hashlib.sha256(b"not yours").hexdigest()})


def sync_folder(path: Path) -> None:
    """Sync a folder, or a file."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def as_far_as(share: int) -> Drive:
    """Return a driver that sends each instance its first `share` events, sees it go on, and leaves."""

    async def drive(stage: Stage) -> None:
        for order in stage.orders:
            await stage.create(order)
            for n in order.waits[:share]:
                await stage.send(order, n)
            await stage.began(order.id, order.waits[share - 1] + 1)
            await stage.show(order)

    return drive


async def change_hands(stage: Stage) -> None:
    """Restart one instance as another incarnation, twice; terminate one; pause one and resume it."""
    first, ended, held = stage.orders
    for order in stage.orders:
        await stage.create(order)
    for order in stage.orders:
        await stage.began(order.id, 1)
    await stage.create(msgspec.structs.replace(first, generation=2), if_exists="restart")
    await stage.command(ended, "terminate")
    await stage.command(held, "pause")
    for n in first.waits:
        await stage.send(first, n)
    await stage.finish(first)
    await stage.create(msgspec.structs.replace(first, generation=3), if_exists="restart")
    await stage.command(held, "resume")
    for order in (held, first):
        for n in order.waits:
            await stage.send(order, n)
        await stage.finish(order)


async def foreign_hand(stage: Stage) -> None:
    """Have somebody edit the files with a tool of SQLite, while they are at rest."""
    *edited, pulse = stage.orders
    for order in stage.orders:
        await stage.create(order)
    for number, order in enumerate(edited):
        path = stage.runtime.path / "Job" / f"{order.id}.sqlite"
        await stage.began(order.id, order.waits[0] - 1)
        for turn, n in enumerate(order.waits):
            await at_rest(path)
            # That a file was closed gets into the relay log with whatever is written next.
            await stage.send(pulse, pulse.waits[len(order.waits) * number + turn])
            await edit(stage.tell, order, path, f"before {n}")
            await edit(stage.tell, order, path, f"again before {n}")
            await stage.send(order, n)
    for order in stage.orders:
        await stage.finish(order)


class Visitor:
    """Edits an instance's file with a tool of SQLite while a step of the instance is under way."""

    def __init__(self) -> None:
        self.stage: Stage | None = None

    async def visit(self, order: Order, n: int) -> None:
        """Come by while step `n` is under way."""
        if n not in VISITED or self.stage is None:
            return
        runtime = self.stage.runtime
        instance = await runtime.get(Job, order.id)
        await instance.sql("SELECT 1")  # what is shown lies in the file: from here on there is one
        await edit(self.stage.tell, order, runtime.path / "Job" / f"{order.id}.sqlite", f"during {n}")


async def at_rest(path: Path) -> None:
    """Return when a file is there and nobody has it open."""
    file, wal = trio.Path(path), trio.Path(f"{path}-wal")
    while await wal.exists() or not await file.exists():  # noqa: ASYNC110 - SQLite does not tell
        await trio.sleep(0.001)


async def edit(tell: Tell, order: Order, path: Path, note: str) -> None:
    """Edit an instance's file as `sqlite3` does: what it has committed is durable before it closes the file.

    Where the WAL was there already SQLite leaves it to the file system that its name is on disk, and
    that of its folder.
    """

    def in_thread() -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS notes (note TEXT)")
            connection.execute("INSERT INTO notes VALUES (?)", (note,))
            sync_folder(path.parent)
            sync_folder(path.parent.parent)
            fact = {"what": "edited", "id": order.id, "note": note}
            trio.from_thread.run_sync(tell, fact)

    await trio.to_thread.run_sync(in_thread)


# -- scripts -------------------------------------------------------------------------------

HASTY: Final = perdure.Limits(crashes_max=1_000, idle_grace_s=0.01)
SHORT_WAL: Final = perdure.Limits(crashes_max=1_000, wal_pages_max=20)


def orders(*names: str, **options: Any) -> tuple[Order, ...]:
    """Return one order for each name."""
    return tuple(Order(id=name, **options) for name in names)


SCRIPTS: Final[dict[str, Script]] = {
    script.name: script
    for script in (
        Script(
            name="chains", orders=orders("a", "b", "c", steps=7, waits=(1, 4)),
            lives=(Life(drive=all_at_once),),
        ),
        Script(
            name="hot", orders=orders("hot", steps=60), lives=(Life(drive=all_at_once, limits=SHORT_WAL),)
        ),
        Script(
            name="naps", orders=orders("a", "b", steps=5, naps=(1, 2, 4), waits=(3,)),
            lives=(Life(drive=all_at_once, limits=HASTY),),
        ),
        Script(
            name="killed", orders=orders("a", "b", steps=9, waits=(2, 5)),
            lives=(
                Life(drive=all_at_once, killed=True), Life(drive=all_at_once, killed=True),
                Life(drive=all_at_once),
            ),
        ),
        Script(
            name="hands",
            orders=orders("again", "ended", "held", steps=4, waits=(2,)),
            lives=(Life(drive=change_hands),),
        ),
        Script(
            name="large", orders=orders("large", steps=4, waits=(2,), chars=300_000),
            lives=(Life(drive=all_at_once, limits=SHORT_WAL),),
        ),
        Script(
            name="classes", orders=orders("a", "b", steps=9, waits=(1, 3, 5, 7)),
            lives=(
                Life(drive=as_far_as(1)), Life(drive=as_far_as(2), durability="process"),
                Life(drive=as_far_as(3)),
                Life(drive=as_far_as(4), durability="process", killed=True), Life(drive=all_at_once),
            ),
        ),
        Script(
            name="foreign",
            orders=(*orders("a", "b", steps=6, waits=(2, 4)), *orders("pulse", steps=5, waits=(0, 1, 2, 3))),
            lives=(Life(drive=foreign_hand, limits=HASTY),),
        ),
        Script(
            name="visitor", orders=orders("a", "b", steps=6, waits=(2, 4)),
            lives=(Life(drive=all_at_once, visited=True),),
        ),
        Script(
            name="workers", orders=orders("a", "b", "c", "d", steps=6, waits=(1, 3)),
            lives=(Life(drive=shared, workers=2),),
        ),
        Script(
            name="worker segments", orders=orders("a", "b", "c", "d", steps=10, waits=(1, 4, 7), chars=4_000),
            lives=(Life(drive=shared, workers=2, small_log=True),),
        ),
        Script(
            name="segments", orders=orders("a", "b", "c", "d", steps=14, waits=(3, 7, 11), chars=4_000),
            lives=(Life(drive=in_turns, limits=HASTY, small_log=True),),
        ),
        Script(
            name="process", orders=orders("a", "b", steps=5, waits=(1, 3)),
            lives=(Life(drive=all_at_once, durability="process"),),
        ),
    )
}  # fmt: skip
