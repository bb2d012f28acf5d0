"""Law 9: the truth is the instance's file from its first need on, and one process owns it at a time."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import perdure.engine.local
from perdure import (
    InstanceNotFoundError,
    Runtime,
    StateLockedError,
    StorageWriteError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.actor import Actor
from perdure.actors.host import Replay
from perdure.actors.outcome import Completed
from perdure.engine.repair import RepairReport, repair_state
from perdure.storage.catalog import Catalog
from perdure.storage.files import InstanceFile
from perdure.storage.lifecycle import Lifecycle
from perdure.storage.locks import FolderLock
from perdure.testing import VirtualClock, open_test_runtime

Broken = Callable[[Any, str, Callable[..., Any]], None]
Reached = Callable[..., Awaitable[None]]
Settled = Callable[[Runtime], Awaitable[None]]


async def work(number: int) -> int:
    return number * 2


class Counter(WorkflowEntrypoint):
    """Doubles its params and waits to be told to end."""

    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        doubled = await step.do("double", work, event.payload)
        more = await step.wait_for_event("go", type="go", timeout=None)
        return doubled + int(more.payload)


# -- one owner at a time -----------------------------------------------------------------------


async def check_a_second_owner(folder: Path, replay: Replay) -> None:
    async with open_test_runtime(folder, workflows=[Counter], replay=replay):
        with pytest.raises(StateLockedError):
            async with open_test_runtime(folder, workflows=[Counter], replay=replay):
                pass
    async with open_test_runtime(folder, workflows=[Counter], replay=replay):
        pass


async def test_a_second_owner_of_a_folder_is_refused(folder: Path, replay: Replay) -> None:
    await check_a_second_owner(folder, replay)


async def test_the_owner_check_fails_without_the_lock(folder: Path, broken: Broken) -> None:
    broken(FolderLock, "acquire", lambda *_: contextlib.nullcontext())

    with pytest.raises(pytest.fail.Exception):
        await check_a_second_owner(folder, "warm")


async def check_a_file_taken_over(folder: Path, replay: Replay, reached: Reached) -> None:
    """Take the file over behind the owner's back, as a new owner would, and have the old one write."""
    path = folder / "Counter" / "a.sqlite"
    async with open_test_runtime(folder, workflows=[Counter], replay=replay) as runtime:
        instance = await runtime.create(Counter, params=1, id="a")
        await reached(instance, "event started")
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE _perdure_instance SET epoch = 100")
            connection.commit()
        with pytest.raises(StorageWriteError, match="taken over by another owner"):
            await instance.send_event("go", 1)
    with closing(sqlite3.connect(path)) as connection:
        assert [] == connection.execute("SELECT * FROM _perdure_messages").fetchall()
        (status,) = connection.execute("SELECT status FROM instance").fetchone()
    assert "complete" != status


async def test_a_file_that_was_taken_over_is_not_written_by_its_old_owner(
    folder: Path, replay: Replay, reached: Reached
) -> None:
    await check_a_file_taken_over(folder, replay, reached)


async def test_the_epoch_check_fails_when_no_transaction_asks_for_it(
    folder: Path, reached: Reached, broken: Broken
) -> None:
    def begin(file: InstanceFile) -> None:
        file.connection.execute("BEGIN IMMEDIATE")
        vars(InstanceFile)["_in_transaction"].__set__(file, True)

    broken(InstanceFile, "begin", begin)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await check_a_file_taken_over(folder, "warm", reached)


async def check_epochs_grow(folder: Path, replay: Replay, reached: Reached) -> None:
    """Open the file under a catalog that is older than it: the epochs in the file grow all the same."""
    epochs: list[int] = []
    for turn in range(3):
        async with open_test_runtime(folder, workflows=[Counter], replay=replay) as runtime:
            instance = await runtime.create(Counter, params=1, id="a", if_exists="attach")
            if turn == 0:
                await reached(instance, "event started")
            await instance.send_event("other")
        with closing(sqlite3.connect(folder / "Counter" / "a.sqlite")) as connection:
            epochs.append(connection.execute("SELECT epoch FROM _perdure_instance").fetchone()[0])
        with closing(sqlite3.connect(folder / "catalog.sqlite")) as connection:
            connection.execute("UPDATE _perdure_instances SET epoch = 0")
            connection.commit()
    assert sorted(set(epochs)) == epochs


async def test_each_owner_has_a_higher_epoch_even_under_an_older_catalog(
    folder: Path, replay: Replay, reached: Reached
) -> None:
    await check_epochs_grow(folder, replay, reached)


async def test_the_growth_check_fails_when_the_catalog_is_believed(
    folder: Path, reached: Reached, broken: Broken
) -> None:
    own = Lifecycle.own

    def believe(lifecycle: Lifecycle, _epoch: int) -> None:
        own(lifecycle, 1)

    broken(Lifecycle, "own", believe)

    with pytest.raises(AssertionError):
        await check_epochs_grow(folder, "warm", reached)


# -- the file is the truth ---------------------------------------------------------------------


def lose_the_catalog(folder: Path) -> RepairReport:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{folder / 'catalog.sqlite'}{suffix}").unlink(missing_ok=True)
    return repair_state(folder)


async def check_the_catalog_is_an_index(folder: Path, replay: Replay, reached: Reached) -> None:
    """Lose the catalog: what the files say is rebuilt from them, and what they cannot say is told."""
    async with open_test_runtime(folder, workflows=[Counter], replay=replay) as runtime:
        waiting = await runtime.create(Counter, params=1, id="waits")
        done = await runtime.create(Counter, params=2, id="done", event=("go", 1))
        tomorrow = datetime(2030, 1, 2, tzinfo=UTC) + timedelta(days=1000)
        await runtime.create(Counter, params=3, id="queued", at=tomorrow)
        assert 5 == await done.result()
        await reached(waiting, "event started")
    report = lose_the_catalog(folder)

    async with open_test_runtime(folder, workflows=[Counter], replay=replay) as runtime:
        assert 5 == await (await runtime.get(Counter, "done")).result()
        waiting = await runtime.get(Counter, "waits")
        await waiting.send_event("go", 7)
        assert 9 == await waiting.result()
        with pytest.raises(InstanceNotFoundError):
            await runtime.get(Counter, "queued")
    assert ["Counter/done", "Counter/waits"] == sorted(report.restored)
    assert "instances that were created and had not started" in report.lost


async def check_the_result_comes_from_the_file(folder: Path, replay: Replay) -> None:
    async with open_test_runtime(folder, workflows=[Counter], replay=replay) as runtime:
        done = await runtime.create(Counter, params=2, id="done", event=("go", 1))
        assert 5 == await done.result()
    with closing(sqlite3.connect(folder / "Counter" / "done.sqlite")) as connection:
        connection.execute("UPDATE _perdure_instance SET output = '77'")
        connection.commit()
    async with open_test_runtime(folder, workflows=[Counter], replay=replay) as runtime:
        assert 77 == await (await runtime.get(Counter, "done")).result()


async def test_a_lost_catalog_is_rebuilt_from_the_files(
    folder: Path, replay: Replay, reached: Reached
) -> None:
    await check_the_catalog_is_an_index(folder, replay, reached)


async def test_the_index_check_fails_when_rows_are_not_rebuilt(
    folder: Path, reached: Reached, broken: Broken
) -> None:
    broken(Catalog, "restore", lambda *_: None)

    with pytest.raises(InstanceNotFoundError):
        await check_the_catalog_is_an_index(folder, "warm", reached)


async def test_a_result_comes_from_the_file(folder: Path, replay: Replay) -> None:
    await check_the_result_comes_from_the_file(folder, replay)


async def test_the_result_check_fails_when_the_result_is_remembered_elsewhere(
    folder: Path, broken: Broken
) -> None:
    async def remember(_access: object, _row: object) -> Completed:
        return Completed(output="5")

    broken(perdure.engine.local, "stored_outcome", remember)

    with pytest.raises(AssertionError):
        await check_the_result_comes_from_the_file(folder, "warm")


# -- before the first need ---------------------------------------------------------------------


async def check_a_queued_instance(
    folder: Path, replay: Replay, clock: VirtualClock, settled: Settled
) -> None:
    """Until its first need an instance is a row of the catalog; an event is one, and not yet its start."""
    path = folder / "Counter" / "a.sqlite"
    start = datetime.fromtimestamp(clock.wall_ms() / 1000, UTC) + timedelta(hours=1)
    async with open_test_runtime(folder, workflows=[Counter], replay=replay, clock=clock) as runtime:
        await runtime.create(Counter, params=4, id="a", at=start)
        await settled(runtime)
        assert not path.exists()
    async with open_test_runtime(folder, workflows=[Counter], replay=replay, clock=clock) as runtime:
        instance = await runtime.get(Counter, "a")
        assert ("queued", start) == ((await instance.status()).status, (await instance.status()).wake_at)
        await instance.send_event("go", 1)
        await settled(runtime)
        assert path.exists()
        assert (None, start) == ((await instance.status()).started_at, (await instance.status()).wake_at)
    clock.advance(3599)
    async with open_test_runtime(folder, workflows=[Counter], replay=replay, clock=clock) as runtime:
        instance = await runtime.get(Counter, "a")
        await settled(runtime)
        assert (await instance.status()).started_at is None
        clock.advance(1)
        await settled(runtime)
        assert (await instance.status()).started_at == start
        assert 9 == await instance.result()


async def test_an_instance_is_a_row_until_its_first_need_and_starts_when_it_should(
    folder: Path, replay: Replay, clock: VirtualClock, settled: Settled
) -> None:
    await check_a_queued_instance(folder, replay, clock, settled)


async def test_the_queue_check_fails_when_an_event_starts_the_instance(
    folder: Path, clock: VirtualClock, settled: Settled, broken: Broken
) -> None:
    broken(Actor, "_is_early", lambda *_: False)

    with pytest.raises(AssertionError):
        await check_a_queued_instance(folder, "warm", clock, settled)
