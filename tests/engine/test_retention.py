"""Retention: what has ended long enough ago loses its file, and its row says so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from perdure import (
    App,
    Instance,
    InstanceExistsError,
    InstanceExpiredError,
    InstanceFailedError,
    InstanceFinishedError,
    InstanceTerminatedError,
    InvalidArgumentError,
    Retention,
    Runtime,
    StateError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.engine import expiry
from perdure.engine.repair import repair_state
from perdure.storage.files import storage_error
from perdure.testing import VirtualClock, open_test_runtime

LOOK_S = 0.001


class Greet(WorkflowEntrypoint):
    retention = Retention(complete="30 days", errored="1 year")

    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> str:
        if event.payload == "fail":
            raise ValueError("as asked")
        if event.payload == "wait":
            await step.wait_for_event("word", type="word", timeout="100 years")
        return await step.do("greet", lambda: f"hello {event.payload}")


class Plain(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        return await step.do("greet", lambda: "hello")


class HeldClock(VirtualClock):
    """A virtual clock that never jumps."""

    async def wait(self, delay_ms: float | None, changed: trio.Event) -> None:
        await super().wait(None, changed)


DAY_S = 86_400


def access_of(handle: object) -> Any:
    """Return how a handle reaches its instance."""
    return vars(handle)["_access"]


@pytest.fixture
def clock() -> VirtualClock:
    return HeldClock()


@pytest.fixture
def open_it(tmp_path: Path, clock: VirtualClock) -> Callable[..., Any]:
    def open_(**options: Any) -> Any:
        options.setdefault("workflows", [Greet, Plain])
        return open_test_runtime(tmp_path / "s", clock=clock, **options)

    return open_


def path_of(runtime: Runtime, instance: Instance[Any]) -> Path:
    return runtime.path / instance.workflow / f"{instance.id}.sqlite"


async def finished(runtime: Runtime, cls: Any, **options: Any) -> Instance[Any]:
    """Create an instance, and return it once it has ended and left memory."""
    instance: Instance[Any] = await runtime.create(cls, **options)
    if options.get("params") == "wait":
        await instance.terminate()
    else:
        with contextlib.suppress(InstanceFailedError):
            await instance.result()
    await access_of(instance).closed(instance.key)
    return instance


async def settled(runtime: Runtime) -> None:
    while True:
        await trio.testing.wait_all_tasks_blocked()
        if runtime.is_idle:
            return
        await trio.sleep(LOOK_S)


async def gone(path: Path) -> None:
    with trio.fail_after(20):
        while path.exists():  # noqa: ASYNC240 - a local file
            await trio.testing.wait_all_tasks_blocked(LOOK_S)


async def told(runtime: Runtime, instance: Instance[Any]) -> str:
    with trio.fail_after(20):
        while not (reason := runtime.rows(workflow=instance.workflow)[0].reason):
            await trio.testing.wait_all_tasks_blocked(LOOK_S)
    return reason


async def test_a_file_is_removed_when_its_retention_is_over_and_not_before(
    open_it: Any, clock: VirtualClock
) -> None:
    async with open_it() as runtime:
        instance = await finished(runtime, Greet, params="Ada", id="g")
        expires = (await instance.status()).expires_at
        ended = (await instance.status()).ended_at
        assert expires is not None
        assert ended is not None
        assert 30 == (expires - ended).days
        clock.advance(30 * DAY_S - 1)
        await settled(runtime)
        assert path_of(runtime, instance).exists()

        clock.advance(2)
        await gone(path_of(runtime, instance))

        assert (await told(runtime, instance)).startswith("expired: file removed at 2030-01-31T00:00:01")
        status = await instance.status()
        assert "complete" == status.status
        assert ended == status.ended_at


async def test_an_expired_instance_says_so_and_keeps_its_id_until_it_is_deleted(
    open_it: Any, clock: VirtualClock
) -> None:
    async with open_it() as runtime:
        await finished(runtime, Greet, params="Ada", id="g")
        clock.advance(31 * DAY_S)
        instance = await runtime.get(Greet, "g")
        await told(runtime, instance)
        access_of(runtime).forget(instance.key)

        for ask in (instance.result, instance.history, instance.restart):
            with pytest.raises(InstanceExpiredError, match="file removed at"):
                await ask()
        with pytest.raises(InstanceExpiredError):
            await instance.sql("SELECT 1")
        with pytest.raises(InstanceFinishedError):
            await instance.pause()
        with pytest.raises(InstanceExistsError):
            await runtime.create(Greet, params="Ada", id="g")

        await instance.delete()
        assert "hello Bea" == await (await runtime.create(Greet, params="Bea", id="g")).result()


async def test_each_outcome_has_its_own_time(open_it: Any, clock: VirtualClock) -> None:
    async with open_it() as runtime:
        failed = await finished(runtime, Greet, params="fail", id="f")
        ended = await finished(runtime, Greet, params="wait", id="t")
        clock.advance(364 * DAY_S)
        await settled(runtime)
        assert path_of(runtime, failed).exists()

        clock.advance(2 * DAY_S)
        await gone(path_of(runtime, failed))

        clock.advance(10_000 * DAY_S)
        await settled(runtime)
        assert path_of(runtime, ended).exists()
        with pytest.raises(InstanceTerminatedError):
            await ended.result()


async def test_an_instance_may_have_a_retention_of_its_own(open_it: Any, clock: VirtualClock) -> None:
    async with open_it() as runtime:
        short = await finished(runtime, Greet, params="Ada", id="short", retention="1 hour")
        ever = await finished(runtime, Greet, params="Ada", id="ever", retention=Retention())
        (batched,) = await runtime.create_batch(Plain, [{"id": "b", "retention": "1 hour"}])
        await batched.result()
        await access_of(batched).closed(batched.key)

        clock.advance(100 * DAY_S)
        await gone(path_of(runtime, short))
        await gone(path_of(runtime, batched))

        assert path_of(runtime, ever).exists()


async def test_an_app_may_have_a_retention_for_all(open_it: Any, clock: VirtualClock) -> None:
    app = App([Greet, Plain], retention="1 day")
    async with open_it(app=app, workflows=()) as runtime:
        plain = await finished(runtime, Plain, id="p")
        own = await finished(runtime, Greet, params="Ada", id="g")
        clock.advance(2 * DAY_S)

        await gone(path_of(runtime, plain))
        assert path_of(runtime, own).exists()


async def test_a_file_is_moved_to_the_archive_whole(open_it: Any, clock: VirtualClock) -> None:
    keep = Retention(complete="1 day", archive=True)
    async with open_it() as runtime:
        instance = await finished(runtime, Plain, id="p", retention=keep)
        clock.advance(2 * DAY_S)
        await gone(path_of(runtime, instance))

        archived = runtime.path / "archive" / "Plain" / "p.sqlite"
        assert "moved to archive/Plain/p.sqlite" in await told(runtime, instance)
        query = "SELECT output FROM steps"
        rows = await runtime.queries.fetch(archived, query, (), timeout_s=10, immutable=True)
        assert ['"hello"'] == [row.output for row in rows]

        await instance.delete()
        assert not archived.exists()


async def test_an_instance_that_somebody_reads_or_has_restarted_is_left_alone(
    open_it: Any, clock: VirtualClock
) -> None:
    async with open_it() as runtime:
        read = await finished(runtime, Plain, id="r", retention="1 day")
        async with read.sql_stream("SELECT name FROM steps") as rows:
            clock.advance(2 * DAY_S)
            await settled(runtime)
            assert path_of(runtime, read).exists()
            assert ["greet"] == [row.name async for row in rows]

        again = await finished(runtime, Greet, params="Ada", id="g")
        clock.advance(29 * DAY_S)
        await again.restart()
        await again.result()
        clock.advance(2 * DAY_S)
        await settled(runtime)
        assert "hello Ada" == await again.result()
        assert path_of(runtime, again).exists()


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("moved", [True, False])
async def test_an_expiry_that_a_death_interrupted_is_finished_by_the_next_process(
    open_it: Any, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, archive: bool, moved: bool
) -> None:
    carry_out = vars(expiry)["_carry_out"]
    died = trio.Event()

    def die(folder: Any, moves: Any) -> None:
        if moved:
            carry_out(folder, moves)
        trio.from_thread.run_sync(died.set)
        raise storage_error(OSError(5, "the process died here"), folder.root)

    retention = Retention(complete="1 day", archive=archive)
    with monkeypatch.context() as patch:
        patch.setattr(expiry, "_carry_out", die)
        async with open_it() as runtime:
            instance = await finished(runtime, Plain, id="p", retention=retention)
            clock.advance(2 * DAY_S)
            with trio.fail_after(20):
                await died.wait()

    async with open_it() as runtime:
        await gone(path_of(runtime, instance))
        assert (await told(runtime, instance)).startswith("expired: file ")
        assert archive == (runtime.path / "archive" / "Plain" / "p.sqlite").exists()


@pytest.mark.parametrize("wrong", ["soon", "30d", -1, {"complete": 1}, True])
def test_what_is_no_retention_is_refused_where_it_is_written(wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="App"):
        App([Plain], retention=wrong)
    with pytest.raises(InvalidArgumentError):
        Retention(complete=wrong)
    with pytest.raises(InvalidArgumentError):
        Retention(archive=cast("bool", "yes"))


async def test_what_is_no_retention_is_refused_before_anything_is_created(open_it: Any) -> None:
    async with open_it() as runtime:
        with pytest.raises(InvalidArgumentError, match="retention"):
            await runtime.create(Plain, id="p", retention="for ever")

        assert [] == runtime.rows()


async def test_repair_keeps_what_has_expired_and_finishes_what_was_being_deleted(
    open_it: Any, clock: VirtualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(paths: Any) -> None:
        raise storage_error(OSError(5, "the process died here"), paths[0])

    async with open_it() as runtime:
        await finished(runtime, Plain, id="old", retention="1 day")
        clock.advance(2 * DAY_S)
        await told(runtime, await runtime.get(Plain, "old"))
        await finished(runtime, Plain, id="kept", retention="1 day")
        gone_soon = await finished(runtime, Plain, id="deleted")
        for module in ("removal", "expiry"):
            monkeypatch.setattr(f"perdure.engine.{module}.remove_files", die)
        with contextlib.suppress(StateError):
            await gone_soon.delete()

    report = repair_state(tmp_path / "s", clock=clock)

    assert ([], [], []) == (report.restored, report.corrected, report.dropped)
    assert ["kept.sqlite"] == [path.name for path in (tmp_path / "s" / "Plain").iterdir()]
    (tmp_path / "s" / "catalog.sqlite").unlink()
    repair_state(tmp_path / "s", clock=clock)
    async with open_it() as runtime:
        (row,) = runtime.rows()
        assert ("kept", "complete") == (row.id, row.status)
        assert row.expires_at_ms is not None
