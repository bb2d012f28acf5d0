"""Children and their parents, as the engine sees them: restarts, deletions, pauses, what is told of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from perdure import (
    ChildTerminatedError,
    Instance,
    InstanceFailedError,
    Limits,
    Runtime,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    open_runtime,
)
from perdure.actors.host import Replay
from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.testing import VirtualClock, open_test_runtime


@pytest.fixture(params=["warm", "always"])
def replay(request: pytest.FixtureRequest) -> Replay:
    return cast("Replay", request.param)


class Word(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
        return str((await step.wait_for_event("word", type="word", timeout=None)).payload)


class Parent(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
        before = await step.do("before", lambda: "said: ")
        try:
            return before + await step.child(Word, name="word")
        except ChildTerminatedError as error:
            return f"none: {error}"


def open_family(folder: Path, replay: Replay, **options: Any) -> Any:
    return open_test_runtime(folder, workflows=[Word, Parent], replay=replay, **options)


async def child_of(runtime: Runtime, id_: str = "p.word") -> Instance[Any]:
    """Return the handle of a child, once it is there and waits."""
    with trio.fail_after(30):
        while not runtime.rows(workflow="Word"):
            await trio.lowlevel.checkpoint()
    child = await runtime.get("Word", id_)
    await child.status()
    return child


async def test_a_parent_waits_through_restarts_of_the_runtime(tmp_path: Path, replay: Replay) -> None:
    async with open_family(tmp_path, replay) as runtime:
        await runtime.create(Parent, id="p")
        await child_of(runtime)
    async with open_family(tmp_path, replay) as runtime:
        await (await child_of(runtime)).send_event("word", "hello")
        assert "said: hello" == await (await runtime.get(Parent, "p")).result()
    async with open_family(tmp_path, replay) as runtime:
        assert 1 == len(runtime.rows(workflow="Word"))
        assert "Parent/p" == runtime.rows(workflow="Word")[0].parent
        assert [] == runtime_posts(tmp_path)


def runtime_posts(folder: Path) -> list[Any]:
    catalog = Catalog(open_catalog(folder / "catalog.sqlite", checkpointer=False))
    try:
        return catalog.family.pending(after=0, limit=10)
    finally:
        catalog.close()


async def test_a_waiting_parent_leaves_memory_and_says_for_whom_it_waits(
    tmp_path: Path, replay: Replay
) -> None:
    clock = VirtualClock()
    async with open_family(tmp_path, replay, clock=clock) as runtime:
        parent = await runtime.create(Parent, id="p")
        child = await child_of(runtime)
        with trio.fail_after(30):
            while any(row.open for row in runtime.rows()):
                clock.advance(10)
                await trio.testing.wait_all_tasks_blocked()
        status = await parent.status()
        assert ("waiting", "child 'word' (Word/p.word)") == (status.status, status.reason)
        await child.send_event("word", "late")
        assert "said: late" == await parent.result()


async def test_a_paused_parent_is_told_and_goes_on_when_it_is_resumed(tmp_path: Path, replay: Replay) -> None:
    async with open_family(tmp_path, replay) as runtime:
        parent = await runtime.create(Parent, id="p")
        child = await child_of(runtime)
        await parent.pause()
        await child.send_event("word", "hello")
        await child.result()
        await until_told(runtime, tmp_path)
        assert "paused" == (await parent.status()).status
        assert "completed" == (await parent.sql("SELECT status FROM steps WHERE kind = 'child'"))[0].status
        await parent.resume()
        assert "said: hello" == await parent.result()


async def until_told(runtime: Runtime, folder: Path) -> None:
    """Return once every post between parents and children is delivered."""
    with trio.fail_after(30):
        while any(
            row.open or row.status == "running" for row in runtime.rows(workflow="Word")
        ) or runtime_posts(folder):
            await trio.lowlevel.checkpoint()


async def test_the_runtime_may_end_between_the_childs_end_and_the_news_of_it(
    tmp_path: Path, replay: Replay
) -> None:
    """A process without the parent's class runs the child to its end, and tells the parent's file."""
    async with open_family(tmp_path, replay) as runtime:
        await runtime.create(Parent, id="p")
        await child_of(runtime)
    async with open_test_runtime(tmp_path, workflows=[Word], replay=replay) as runtime:
        await (await child_of(runtime)).send_event("word", "hello")
        await (await child_of(runtime)).result()
        await until_told(runtime, tmp_path)
        parent = await runtime.get("Parent", "p")
        assert "completed" == (await parent.sql("SELECT status FROM steps WHERE kind = 'child'"))[0].status
    async with open_family(tmp_path, replay) as runtime:
        assert "said: hello" == await (await runtime.get(Parent, "p")).result()


async def test_a_child_that_is_deleted_before_its_end_fails_the_step(tmp_path: Path, replay: Replay) -> None:
    async with open_family(tmp_path, replay) as runtime:
        parent = await runtime.create(Parent, id="p")
        await (await child_of(runtime)).delete()

        assert "none: child Word/p.word was deleted before it had ended" == await parent.result()
        assert [] == runtime.rows(workflow="Word")


async def test_terminating_the_parent_terminates_the_child_also_after_a_restart(
    tmp_path: Path, replay: Replay
) -> None:
    async with open_family(tmp_path, replay) as runtime:
        await runtime.create(Parent, id="p")
        await child_of(runtime)
    async with open_family(tmp_path, replay) as runtime:  # it sleeps on disk
        await (await runtime.get(Parent, "p")).terminate()
        child = await child_of(runtime)
        await ended(child)
        assert "terminated" == (await child.status()).status
        assert ["terminate"] == [
            row.what for row in await child.sql("SELECT what FROM history WHERE actor = 'Parent/p'")
        ]


async def ended(child: Instance[Any]) -> None:
    """Return when the instance has ended, however."""
    with pytest.raises(Exception, match="terminated"):
        await child.result()


async def test_a_restart_of_the_parent_ends_the_child_and_starts_another(
    tmp_path: Path, replay: Replay
) -> None:
    async with open_family(tmp_path, replay) as runtime:
        parent = await runtime.create(Parent, id="p")
        child = await child_of(runtime)
        await parent.restart()
        await ended(child)
        with trio.fail_after(30):
            while len(runtime.rows(workflow="Word")) < 2:
                await trio.lowlevel.checkpoint()
        await (await child_of(runtime, "p.word~2")).send_event("word", "again")

        assert "said: again" == await parent.result()


async def test_a_restart_behind_the_child_step_keeps_the_child(tmp_path: Path, replay: Replay) -> None:
    class Later(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            word = await step.child(Word, name="word")
            await step.do("after", lambda: None)
            return word

    async with open_test_runtime(tmp_path, workflows=[Word, Later], replay=replay) as runtime:
        later = await runtime.create(Later, id="p")
        await (await child_of(runtime)).send_event("word", "once")
        assert "once" == await later.result()
        await later.restart(from_step="after")
        assert "once" == await later.result()
        assert 1 == len(runtime.rows(workflow="Word"))


class Fixed(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
        return await step.child(Word, id="fixed")


async def test_a_child_with_an_id_of_its_own_is_made_anew_for_a_parent_that_is_restarted(
    tmp_path: Path, replay: Replay
) -> None:
    async with open_test_runtime(tmp_path, workflows=[Word, Fixed], replay=replay) as runtime:
        parent = await runtime.create(Fixed, id="p")
        for word in ("one", "two"):
            with trio.fail_after(30):
                while [row.status for row in runtime.rows(workflow="Word")] not in (["running"], ["waiting"]):
                    await trio.lowlevel.checkpoint()
            await (await runtime.get(Word, "fixed")).send_event("word", word)
            assert word == await parent.result()
            if word == "one":
                await parent.restart()


class Many(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        return sum(await step.children("one", One, range(event.payload), limit=80))


class One(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        return await step.do("one", lambda: 1)


async def test_many_children_end_in_few_commands(tmp_path: Path) -> None:
    """And with room for a few in memory, their parent makes way for them."""
    limits = Limits(warm_max=8, running_max=4)
    async with open_runtime(tmp_path, workflows=[Many, One], limits=limits, durability="process") as runtime:
        many = await runtime.create(Many, params=240, id="m")
        assert 240 == await many.result()
        rows = await many.sql("SELECT count(DISTINCT ended_commit) AS commits FROM _perdure_steps")
    assert rows[0].commits < 240


async def test_a_child_that_never_started_is_terminated_with_its_parent(tmp_path: Path) -> None:
    class Slow(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.children("w", Word, [None] * 20, limit=15)

    limits = Limits(warm_max=4, running_max=2)
    async with open_runtime(tmp_path, workflows=[Slow, Word], limits=limits, durability="process") as runtime:
        slow = await runtime.create(Slow, id="s", timeout=0.5)
        with pytest.raises(InstanceFailedError):
            await slow.result()
        rows = runtime.rows(workflow="Word")
        for row in rows:
            await ended(await runtime.get(Word, row.id))
        assert 15 >= len(rows)
