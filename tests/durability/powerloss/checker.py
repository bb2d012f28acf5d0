"""Opens what a power failure has left, in another boot, and compares it with what had been told.

Invariants:
    Nothing is looked at but through the shipped code, and afterwards through plain SQLite.
    What is found wrong is returned as sentences; an empty list is the proof for one crash.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
import traceback
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

import trio

import perdure
from perdure.engine.runtime import Runtime
from perdure.testing import VirtualClock, open_test_runtime
from powerloss.oracle import Known, Oracle
from powerloss.scripts import BYSTANDER, Script, Stage
from powerloss.work import Fact, Job, Order, Witness, digest, flaw, short

REAL_S_MAX: Final = 20.0
UNPROMISED_S_MAX: Final = 2.0
"""What has lost pages may wait for ever for what they held."""
OTHER_BOOT: Final = 77
FOREIGN: Final = "was changed by another program"
"""What is logged where it is true."""
STEPS: Final = "SELECT name, status, attempts, output FROM steps WHERE kind = 'do'"


def check(state: Path, script: Script, facts: list[Fact]) -> list[str]:
    """Return what is wrong with the state folder `state`, given what had been told before the crash."""
    oracle = Oracle(facts)
    with errors_logged() as logged:
        flaws = trio.run(_open_and_check, state, script, oracle)
    if all(known.promised for known in oracle.instances.values()):
        edited = any(known.notes for known in oracle.instances.values())
        flaws += [f"logged: {line}" for line in logged if not (edited and FOREIGN in line)]
    flaws += [f"{path} does not hold together: {verdict}" for path, verdict in damage(state, oracle)]
    if oracle.bystander is not None:
        path = state / BYSTANDER
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != oracle.bystander:
            flaws.append("a file of the user's own is not as it was")
    return flaws


async def _open_and_check(state: Path, script: Script, oracle: Oracle) -> list[str]:
    told: list[Fact] = []
    flaws: list[str] = []
    life = script.lives[-1]
    clock = VirtualClock(start=datetime(2031, 1, 1, tzinfo=UTC), boot=OTHER_BOOT)
    try:
        with trio.fail_after(2 * REAL_S_MAX):
            async with open_test_runtime(
                state, workflows=[Job], env=Witness(told.append), replay="warm", durability=life.durability,
                clock=clock, limits=life.limits,
            ) as runtime:  # fmt: skip
                for id_, known in oracle.instances.items():
                    flaws += [f"{id_}: {text}" for text in await compare(runtime, id_, known)]
                if not flaws:
                    stage = Stage(runtime, script, told.append, _never)
                    for order in script.orders:
                        known = oracle.instances.get(order.id, Known())
                        flaws += [f"{order.id}: {text}" for text in await finish(stage, order, known)]
    except Exception as error:  # noqa: BLE001 - whatever the runtime raises is the finding
        flaws.append(f"the runtime raised {error!r}{_parts(error)}")
    for id_, known in oracle.instances.items():
        flaws += [f"{id_}: {text}" for text in repeated(id_, known, told)]
    return flaws


def _parts(error: BaseException) -> str:
    """Return where an error, or each of a group, was raised."""
    if isinstance(error, BaseExceptionGroup):
        parts: Sequence[BaseException] = cast("BaseExceptionGroup[BaseException]", error).exceptions
        return "".join(f"; {part!r}{_parts(part)}" for part in parts)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f" in {Path(frame.filename).name}:{frame.lineno}"


async def _never(id_: str, n: int) -> None:
    """Stand for the wait of a driver: nobody drives here."""


async def compare(runtime: Runtime, id_: str, known: Known) -> list[str]:
    """Compare one instance, as it is found, with what was told about it."""
    if known.generation == 0:
        return []
    try:
        instance = await runtime.get(Job, id_)
    except perdure.InstanceNotFoundError:
        return ["it was created, and is not there"]
    if not known.promised:
        return []
    status = (await instance.status()).status
    flaws: list[str] = []
    if known.status is not None and status != known.status:
        flaws.append(f"it was {known.status}, and is {status}")
    if known.asked > known.generation:  # another incarnation may be in its place
        return flaws
    if known.result is not None and not flaws and digest(await instance.result()) != known.result:
        flaws.append("another result than was told")
    return flaws + await _compare_rows(instance, known)


async def _compare_rows(instance: perdure.Instance[Any], known: Known) -> list[str]:
    flaws: list[str] = []
    steps = {row.name: row for row in await instance.sql(STEPS)}
    for n, attempt in known.attempts.items():
        row = steps.get(f"step {n}")
        if row is None or row.attempts < attempt:
            flaws.append(f"attempt {attempt} of step {n} had begun, and is not on record")
    for name, output in known.shown.items():
        if name not in steps or steps[name].output is None or short(steps[name].output) != output:
            flaws.append(f"the result of {name} was shown, and is not the same")
    payloads = [row.payload for row in await instance.sql("SELECT payload FROM events")]
    flaws += [
        f"event {n} was acknowledged, and the events are {payloads}"
        for n in known.events
        if sum(f"is told {n}" in payload for payload in payloads) != 1
    ]
    if known.notes:
        with contextlib.suppress(perdure.QueryError):
            notes = {row.note for row in await instance.sql("SELECT note FROM notes")}
            return flaws + [f"the edit {note!r} is undone" for note in known.notes if note not in notes]
        flaws.append("the table that somebody had made is gone")
    return flaws


async def finish(stage: Stage, order: Order, known: Known) -> list[str]:
    """Have an instance run to its end and look at the result.

    Of one that was not promised, a refusal that says what is wrong with its file is enough.
    """
    try:
        with trio.move_on_after(REAL_S_MAX if known.promised else UNPROMISED_S_MAX):
            return await _finish(stage, order, known)
        return ["it does not come to its end"] if known.promised else []
    except (perdure.PerdureError, TypeError):  # rows of a page that was never synced may hold anything
        if known.promised:
            raise
        return []


async def _finish(stage: Stage, order: Order, known: Known) -> list[str]:
    try:
        instance = await stage.create(order)
    except perdure.InstanceExistsError:  # the other incarnation is there; below it is seen whether it may be
        instance = await stage.runtime.get(Job, order.id)
    if (await instance.status()).status == "paused":
        await instance.resume()
    for n in order.waits:
        if n not in known.events or not known.promised or known.asked > known.generation:
            await stage.send(order, n)
    values = await stage.finish(order)
    if values is None or not known.promised:
        return []
    generation = next(int(value.split(".")[1]) for value in values if value.startswith(f"{order.id}."))
    if not known.generation <= generation <= max(known.asked, order.generation):
        return [f"the incarnation is {generation}, not {known.generation} to {known.asked}"]
    wrong = flaw(order, values, generation)
    if wrong is not None:
        return [wrong]
    if generation != known.generation:
        return []
    return [
        f"step {n} was called with {before!r}, and the value before it is now {short(values[n - 1])!r}"
        for n, before in known.befores.items()
        if n > 0 and short(values[n - 1]) != before
    ]


def repeated(id_: str, known: Known, told: list[Fact]) -> list[str]:
    """Return which steps ran although they were on record, and which attempts ran twice."""
    flaws: list[str] = []
    for fact in told:
        if fact["what"] != "began" or fact["id"] != id_ or not known.promised:
            continue
        n, attempt, generation = fact["n"], fact["attempt"], fact["generation"]
        if generation < known.generation:
            flaws.append(f"the old incarnation {generation} ran again")
        elif generation == known.generation and n < known.recorded():
            flaws.append(f"step {n} ran again, after step {known.recorded()} had begun")
        elif generation == known.generation and attempt <= known.attempts.get(n, 0):
            flaws.append(f"attempt {attempt} of step {n} ran twice")
    return flaws


def damage(state: Path, oracle: Oracle) -> list[tuple[str, str]]:
    """Return the databases that do not hold together, with SQLite's verdict."""
    promised = {f"{id_}.sqlite" for id_, known in oracle.instances.items() if known.promised}
    found: list[tuple[str, str]] = []
    for path in sorted(state.rglob("*.sqlite")):
        try:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
        except sqlite3.DatabaseError as error:
            verdict = str(error)
        if verdict != "ok" and path.name in {*promised, "catalog.sqlite"}:
            found.append((path.name, verdict))
    return found


@contextlib.contextmanager
def errors_logged() -> Generator[list[str]]:
    """Collect what the runtime logs as an error."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("perdure"), Collector(logging.ERROR)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
