"""Deletion: an instance is there, or nothing of it is; its id is free once `delete` returns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from perdure import (
    DeletedBatch,
    Instance,
    InstanceNotFoundError,
    InvalidArgumentError,
    InvalidIdError,
    Runtime,
    StateError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    open_runtime,
)
from perdure.actors.host import Replay
from perdure.engine import expiry, life, removal
from perdure.storage.files import storage_error
from perdure.storage.records import Key
from perdure.testing import open_test_runtime

ran: list[str] = []


class Greet(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> str:
        return await step.do("greet", lambda: f"hello {event.payload}")


class Waits(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        await step.wait_for_event("word", type="word", timeout="1 year")


class Vanishes(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        await step.do("vanish", self.vanish)
        ran.append("after the step")

    async def vanish(self) -> None:
        instance = await self.ctx.runtime.get("Vanishes", self.ctx.instance_id)
        ran.append("before")
        await instance.delete()
        ran.append("behind")


def access_of(handle: object) -> Any:
    """Return how a handle reaches its instance."""
    return vars(handle)["_access"]


@pytest.fixture(params=["warm", "always"])
def replay(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def open_it(tmp_path: Path) -> Callable[..., Any]:
    def open_(**options: Any) -> Any:
        return open_test_runtime(tmp_path / "s", workflows=[Greet, Waits, Vanishes], **options)

    return open_


def files(runtime: Runtime, workflow: str) -> list[str]:
    folder = runtime.path / workflow
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


async def require_gone(runtime: Runtime, instance: Instance[Any]) -> None:
    assert [] == [name for name in files(runtime, instance.workflow) if name.startswith(instance.id)]
    assert [] == runtime.rows(workflow=instance.workflow)
    with pytest.raises(InstanceNotFoundError):
        await runtime.get(instance.workflow, instance.id)
    for ask in (instance.status, instance.result, instance.delete, instance.pause, instance.restart):
        with pytest.raises(InstanceNotFoundError):
            await ask()


async def test_a_finished_instance_is_gone_with_its_file(open_it: Any, replay: Replay) -> None:
    async with open_it(replay=replay) as runtime:
        instance = await runtime.create(Greet, params="Ada", id="g")
        await instance.result()

        await instance.delete(who="Ada")

        await require_gone(runtime, instance)


@pytest.mark.parametrize("durability", ["full", "process"])
async def test_a_warm_and_a_queued_instance_are_gone_with_their_files(open_it: Any, durability: str) -> None:
    async with open_it(durability=durability) as runtime:
        warm = await runtime.create(Waits, id="w")
        await warm.sql("SELECT 1")
        await warm.delete()
        await require_gone(runtime, warm)

        queued = await runtime.create(Waits, id="q", at=datetime(2035, 1, 1, tzinfo=UTC))
        await queued.delete()
        await require_gone(runtime, queued)


async def test_an_instance_that_deletes_itself_stops_at_that_await(open_it: Any, replay: Replay) -> None:
    ran.clear()
    async with open_it(replay=replay) as runtime:
        instance = await runtime.create(Vanishes, id="v")

        with pytest.raises(InstanceNotFoundError):
            await instance.result()

        assert ["before"] == ran
        await require_gone(runtime, instance)


async def test_who_waits_for_the_result_of_a_deleted_instance_is_told(open_it: Any) -> None:
    async with open_it() as runtime:
        instance = await runtime.create(Waits, id="w")

        async def wait() -> None:
            with pytest.raises(InstanceNotFoundError):
                await instance.result()

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                await instance.delete()


async def test_the_id_can_be_created_again_at_once(open_it: Any, replay: Replay) -> None:
    async with open_it(replay=replay) as runtime:
        for name in ("Ada", "Bea", "Cem"):
            instance = await runtime.create(Greet, params=name, id="g")
            assert f"hello {name}" == await instance.result()
            await instance.delete()


async def test_many_are_deleted_and_each_given_id_is_reported(open_it: Any) -> None:
    async with open_it() as runtime:
        for number in range(5):
            await (await runtime.create(Greet, params="x", id=f"g{number}")).result()
        await runtime.create(Waits, id="g9")

        done = await runtime.delete_batch(Greet, ["g1", "g9", "g0", "g1"])

        assert ["g1", "g0", "g1"] == done.deleted
        assert [("g9", "not_found")] == [(error.id, error.code) for error in done.errors]
        assert ["g2", "g3", "g4"] == sorted(row.id for row in runtime.rows(workflow="Greet"))


async def test_a_batch_has_no_upper_bound(open_it: Any) -> None:
    async with open_it() as runtime:
        created = await runtime.create_batch(Greet, [{"params": "x"} for _ in range(1_200)])
        done = await runtime.delete_batch(Greet, [instance.id for instance in created])

        assert 1_200 == len(done.deleted)
        assert [] == runtime.rows()
        assert [] == files(runtime, "Greet")


@pytest.mark.parametrize(("ids", "error"), [([], InvalidArgumentError), (["g", "a\nb"], InvalidIdError)])
async def test_a_batch_with_one_id_that_can_be_none_deletes_nothing(
    open_it: Any, ids: list[str], error: type[Exception]
) -> None:
    async with open_it() as runtime:
        instance = await runtime.create(Greet, params="x", id="g")
        await instance.result()

        with pytest.raises(error):
            await runtime.delete_batch(Greet, ids)

        assert "hello x" == await instance.result()


async def test_an_unexpected_error_is_told_by_its_code_alone(
    open_it: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: Path) -> None:
        raise PermissionError(13, "a secret of the machine")

    async with open_it() as runtime:
        instance = await runtime.create(Greet, params="x", id="g")
        await instance.result()
        await access_of(instance).closed(instance.key)
        with monkeypatch.context() as patch:
            patch.setattr(removal, "remove_file", fail)
            done = await runtime.delete_batch(Greet, ["g"])

    assert isinstance(done, DeletedBatch)
    ((error,), deleted) = done.errors, done.deleted
    assert ("g", "internal", []) == (error.id, error.code, deleted)
    assert "secret" not in error.message


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("point", ["before the file", "after the file"])
async def test_a_deletion_that_a_death_interrupted_is_finished_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, warm: bool
) -> None:
    """The removal never comes back, as if the process had died in it; its row says what was begun."""
    done = removal.remove_files

    def die(paths: Any) -> None:
        if point == "after the file":
            done(paths)
        raise storage_error(OSError(5, "the process died here"), paths[0])

    workflow, params = (Waits, None) if warm else (Greet, "x")
    async with open_runtime(tmp_path / "s", workflows=[Greet, Waits]) as runtime:
        instance = await runtime.create(workflow.__name__, params=params, id="g")
        if not warm:
            await instance.result()
            await access_of(instance).closed(instance.key)
        with monkeypatch.context() as patch:
            for module in (removal, life, expiry):
                patch.setattr(module, "remove_files", die)
            with contextlib.suppress(StateError):
                await instance.delete()
        with pytest.raises(InstanceNotFoundError):
            await runtime.get(workflow.__name__, "g")
        catalog = access_of(runtime).catalog
        assert 2 == catalog.find(Key(workflow.__name__, "g")).open

    async with open_runtime(tmp_path / "s", workflows=[Greet, Waits]) as runtime:
        catalog = access_of(runtime).catalog
        with trio.fail_after(20):
            while catalog.find(Key(workflow.__name__, "g")) is not None:
                await trio.testing.wait_all_tasks_blocked(0.001)
        assert [] == files(runtime, workflow.__name__)
        again = await runtime.create(workflow.__name__, params=params, id="g")
        await again.delete()


async def test_a_deletion_with_a_token_is_acknowledged_again(open_it: Any) -> None:
    async with open_it() as runtime:
        instance = await runtime.create(Greet, params="x", id="g")
        await instance.result()
        for _ in range(2):
            await instance.delete(token="once")  # noqa: S106 - of a command
