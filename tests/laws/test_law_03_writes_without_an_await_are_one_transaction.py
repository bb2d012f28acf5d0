"""Law 3: writes with no await between them are one transaction, and never cost more than one sync."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from perdure import InstanceFailedError, Sql, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.actors.host import Replay
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate
from perdure.storage.journal import Journal, Step
from perdure.testing import open_test_runtime

Broken = Callable[[type, str, Callable[..., Any]], None]
COMMITS = "SELECT name, started_commit, ended_commit FROM _perdure_steps ORDER BY seq"


def commit_each_write(broken: Broken) -> None:
    """Break the law: whatever the journal completes is a transaction of its own."""
    complete = Journal.complete

    def complete_and_commit(journal: Journal, step: Step, output: Any, *, at_ms: int) -> None:
        complete(journal, step, output, at_ms=at_ms)
        file: InstanceFile = vars(journal)["_file"]
        file.commit()
        file.begin()

    broken(Journal, "complete", complete_and_commit)


# -- one tick, one commit ----------------------------------------------------------------------


async def check_finish_and_next_start(folder: Path) -> None:
    async def work() -> None:
        await trio.lowlevel.checkpoint()

    class Chain(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            for number in range(5):
                await step.do(f"step {number}", work)

    disk = Disk()
    async with open_test_runtime(
        folder, workflows=[Chain], replay="warm", durability="full", disk=disk
    ) as runtime:
        instance = await runtime.create(Chain)
        await instance.result()
        syncs = runtime.statistics().gate.syncs
        rows = [tuple(row) for row in await instance.sql(COMMITS)]

    for (_, _, ended), (_, started, _) in itertools.pairwise(rows):
        assert ended == started
    assert len(rows) + 1 == syncs  # the first start, four borders, the outcome with the last finish


async def test_the_finish_of_a_step_and_the_start_of_the_next_are_one_commit(folder: Path) -> None:
    await check_finish_and_next_start(folder)


async def test_the_border_check_fails_when_each_write_is_committed(folder: Path, broken: Broken) -> None:
    commit_each_write(broken)

    with pytest.raises(AssertionError):
        await check_finish_and_next_start(folder)


async def check_parallel_finishes(folder: Path, replay: Replay) -> None:
    started: list[str] = []
    all_started = trio.Event()

    async def work(name: str) -> None:
        started.append(name)
        if len(started) == 3:
            all_started.set()
        await all_started.wait()

    class Fan(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.map("part", work, ["a", "b", "c"])

    async with open_test_runtime(folder, workflows=[Fan], replay=replay) as runtime:
        instance = await runtime.create(Fan)
        await instance.result()
        rows = await instance.sql(COMMITS)

    assert 3 == len(rows)
    assert 1 == len({row["ended_commit"] for row in rows})


async def test_parallel_steps_that_finish_in_one_tick_are_one_commit(folder: Path, replay: Replay) -> None:
    await check_parallel_finishes(folder, replay)


async def test_the_parallel_check_fails_when_each_write_is_committed(
    folder: Path, replay: Replay, broken: Broken
) -> None:
    commit_each_write(broken)

    with pytest.raises(AssertionError):
        await check_parallel_finishes(folder, replay)


# -- a step.transaction and its record ---------------------------------------------------------


class Declined(Exception):  # noqa: N818 - named for what it says, as users do
    """What a transaction of these tests raises."""


async def check_a_transaction_is_all_or_nothing(folder: Path, replay: Replay) -> None:
    def book(sql: Sql, amount: int) -> int:
        sql.exec("CREATE TABLE IF NOT EXISTS account (balance INTEGER)")
        sql.exec("INSERT INTO account VALUES (?)", amount)
        if amount < 0:
            raise Declined
        return amount

    class Book(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.transaction("in", book, 10)
            await step.transaction("out", book, -10)

    async with open_test_runtime(folder, workflows=[Book], replay=replay) as runtime:
        instance = await runtime.create(Book)
        with pytest.raises(InstanceFailedError) as failed:
            await instance.result()
        balances = await instance.sql("SELECT balance FROM account")
        steps = await instance.sql("SELECT name, status, output FROM steps ORDER BY seq")

    assert isinstance(failed.value.__cause__, Declined)
    assert [(10,)] == [tuple(row) for row in balances]
    assert [("in", "completed", "10"), ("out", "failed", None)] == [tuple(row) for row in steps]


async def test_a_transaction_and_its_record_are_written_together_or_not_at_all(
    folder: Path, replay: Replay
) -> None:
    await check_a_transaction_is_all_or_nothing(folder, replay)


async def test_the_all_or_nothing_check_fails_without_a_rollback(
    folder: Path, replay: Replay, broken: Broken
) -> None:
    execute = InstanceFile.execute

    def never_back(file: InstanceFile, sql: str, values: Any = ()) -> sqlite3.Cursor:
        return execute(file, "SELECT 1" if sql.startswith("ROLLBACK TO") else sql, values)

    broken(InstanceFile, "execute", never_back)

    with pytest.raises(AssertionError):
        await check_a_transaction_is_all_or_nothing(folder, replay)


# -- a failed write resets the actor -----------------------------------------------------------


Break = Callable[[Sql], None]


def rollback_by_conflict(sql: Sql) -> None:
    sql.exec("INSERT OR ROLLBACK INTO seen VALUES (1)")


def rollback_by_trigger(sql: Sql) -> None:
    sql.exec("CREATE TEMP TRIGGER stop BEFORE INSERT ON seen BEGIN SELECT RAISE(ROLLBACK, 'no'); END")
    sql.exec("INSERT INTO seen VALUES (2)")


async def check_a_statement_that_ends_the_transaction(folder: Path, replay: Replay, statement: Break) -> None:
    tries: list[str] = []

    def begin(sql: Sql) -> None:
        sql.exec("CREATE TABLE seen (n INTEGER PRIMARY KEY)")
        sql.exec("INSERT INTO seen VALUES (1)")

    def spoil(sql: Sql) -> str:
        tries.append("spoil")
        sql.exec("INSERT INTO seen VALUES (7)")
        if len(tries) == 1:
            statement(sql)
        return "fine"

    class Spoil(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            await step.transaction("begin", begin)
            try:
                return await step.transaction("spoil", spoil)
            except Exception as error:  # noqa: BLE001 - user code that catches everything
                return f"user code saw {error!r}"

    async with open_test_runtime(folder, workflows=[Spoil], replay=replay) as runtime:
        instance = await runtime.create(Spoil)
        result = await instance.result()
        rows = await instance.sql("SELECT n FROM seen ORDER BY n")

    assert "fine" == result
    assert 2 == len(tries)
    assert [(1,), (7,)] == [tuple(row) for row in rows]


@pytest.mark.parametrize("statement", [rollback_by_conflict, rollback_by_trigger])
async def test_a_statement_that_ends_the_transaction_resets_the_actor(
    folder: Path, replay: Replay, statement: Break
) -> None:
    await check_a_statement_that_ends_the_transaction(folder, replay, statement)


async def test_the_reset_check_fails_when_the_lost_transaction_goes_unnoticed(
    folder: Path, broken: Broken
) -> None:
    def unnoticed(sql: Sql, query: str, *bindings: Any) -> None:
        file: InstanceFile = vars(sql)["_file"]
        file.connection.execute(query, bindings)

    broken(Sql, "exec", unnoticed)
    broken(Sql, "savepoint", lambda *_: contextlib.nullcontext())

    with pytest.raises(AssertionError):
        await check_a_statement_that_ends_the_transaction(folder, "warm", rollback_by_conflict)


class FailingDisk(Disk):
    """A disk on which the second sync of what was committed fails."""

    def __init__(self) -> None:
        super().__init__()
        self.syncs = 0

    def sync_descriptor(self, descriptor: int) -> None:
        self.syncs += 1
        if self.syncs == 4:  # the first are of the log that is begun
            raise OSError(5, "input/output error")
        super().sync_descriptor(descriptor)


async def check_a_failed_sync(folder: Path, replay: Replay) -> None:
    calls: list[str] = []

    async def work(name: str) -> str:
        calls.append(name)
        return name

    class Chain(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> list[str]:
            return [await step.do(name, work, name) for name in ("a", "b", "c")]

    disk = FailingDisk()
    async with open_test_runtime(
        folder, workflows=[Chain], replay=replay, durability="full", disk=disk
    ) as runtime:
        instance = await runtime.create(Chain)
        result = await instance.result()
        attempts = await instance.sql("SELECT outcome FROM attempts ORDER BY step_seq, attempt")

    assert ["a", "b", "c"] == result
    assert ["a", "b", "c"] == calls  # the attempt whose record did not reach the disk was never started
    assert ["completed", "lost", "completed", "completed"] == [row["outcome"] for row in attempts]


async def test_a_sync_that_fails_resets_the_actor_which_goes_on_from_its_last_commit(
    folder: Path, replay: Replay
) -> None:
    await check_a_failed_sync(folder, replay)


async def test_the_sync_check_fails_when_the_actor_is_not_reset(
    folder: Path, replay: Replay, broken: Broken
) -> None:
    failed: list[Exception] = []

    def go_on(_gate: Gate, _file: InstanceFile, error: Exception) -> Exception:
        failed.append(error)
        return error

    broken(Gate, "_fail", go_on)

    with pytest.raises(AssertionError):
        await check_a_failed_sync(folder, replay)
    assert 1 == len(failed)
