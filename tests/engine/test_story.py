"""Following an instance from a cursor: broken off behind any fact, none is left out and none comes twice."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType

import pytest
import trio

from perdure import (
    HistoryEntry,
    Instance,
    InstanceNotFoundError,
    InvalidArgumentError,
    NonRetryableError,
    RollbackContext,
    Runtime,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.host import Replay
from perdure.engine.story import PAGE, Cursor, Story
from perdure.testing import open_test_runtime

OpenShared = Callable[..., AbstractAsyncContextManager[Runtime]]
Ends = Instance[object]
REPLAYS: list[Replay] = ["warm", "always"]


def value(number: int) -> int:
    return number


def undo(_context: RollbackContext[int]) -> None:
    pass


def refuse() -> None:
    raise NonRetryableError("no stock")


class Leaf(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        return await step.do("leaf", value, event.payload)


class Busy(WorkflowEntrypoint):
    """Several facts in one commit: parallel steps, a child, a wait, an event, and a rollback at the end."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        await step.do("reserve", value, 1, rollback=undo)
        await step.map("part", value, [1, 2, 3])
        await step.child(Leaf, 7, name="leaf")
        await step.wait_for_event("go", type="go")
        await step.sleep("rest", "1 hour")
        await step.do("ship", refuse)


WORKFLOWS: list[type[WorkflowEntrypoint]] = [Busy, Leaf]


async def one_by_one(instance: Ends, after: int | str = 0) -> list[HistoryEntry]:
    """Break off behind every fact, and go on from its cursor with a new subscription."""
    told: list[HistoryEntry] = []
    while True:
        async with contextlib.aclosing(instance.subscribe(after=after)) as story:
            entry = await anext(story, None)
        if entry is None:
            return told
        told.append(entry)
        after = entry.cursor


@pytest.mark.parametrize("replay", REPLAYS)
async def test_a_subscriber_that_breaks_off_behind_each_fact_gets_all_of_them_once(
    tmp_path: Path, replay: Replay
) -> None:
    async with open_test_runtime(tmp_path, workflows=WORKFLOWS, replay=replay) as runtime:
        busy = await runtime.create(Busy, id="busy", event=("go", None))

        told = await one_by_one(busy)

        assert told == await busy.history()
        assert len(told) > len({entry.commit for entry in told})  # some commits have several
        assert len(told) == len({entry.cursor for entry in told})
        assert ["instance created", "instance errored"] == [told[0].what, told[-1].what]
        assert {"child completed", "rollback completed", "event received"} <= {entry.what for entry in told}


@pytest.mark.parametrize("replay", REPLAYS)
async def test_every_cursor_goes_on_behind_its_own_fact_after_a_restart_of_the_runtime(
    tmp_path: Path, replay: Replay
) -> None:
    async with open_test_runtime(tmp_path, workflows=WORKFLOWS, replay=replay) as runtime:
        busy = await runtime.create(Busy, id="busy", event=("go", None))
        told = await one_by_one(busy)
    async with open_test_runtime(tmp_path, workflows=WORKFLOWS, replay=replay) as runtime:
        again = await runtime.get(Busy, "busy")

        for place, entry in enumerate(told, 1):
            assert told[place:] == [fact async for fact in again.subscribe(after=entry.cursor)]
            assert told[place:] == await again.history(after=entry.cursor)


@pytest.mark.parametrize("replay", REPLAYS)
@pytest.mark.parametrize("from_step", [None, "part[1]"])
async def test_a_restart_of_the_instance_moves_no_cursor(
    tmp_path: Path, replay: Replay, from_step: str | None
) -> None:
    async with open_test_runtime(tmp_path, workflows=WORKFLOWS, replay=replay) as runtime:
        busy = await runtime.create(Busy, id="busy", event=("go", None))
        before = await one_by_one(busy)
        await busy.restart(from_step)
        after = await one_by_one(busy, before[-1].cursor)
        whole = await busy.history()

        assert whole == before + after
        for place, entry in enumerate(whole, 1):
            assert whole[place:] == await busy.history(after=entry.cursor)


async def test_terminations_and_restarts_of_one_commit_keep_their_places(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path, workflows=WORKFLOWS) as runtime:
        leaf = await runtime.create(Leaf, params=1, id="leaf")
        await leaf.result()
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(leaf.restart)
                nursery.start_soon(leaf.restart)
        await leaf.result()

        whole = await leaf.history()

        assert len(whole) == len({entry.cursor for entry in whole})
        for place, entry in enumerate(whole, 1):
            assert whole[place:] == await leaf.history(after=entry.cursor)


async def test_a_commits_number_leaves_out_all_that_it_wrote(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path, workflows=WORKFLOWS) as runtime:
        busy = await runtime.create(Busy, id="busy", event=("go", None))
        told = await one_by_one(busy)

        for commit in {entry.commit for entry in told}:
            assert [entry for entry in told if entry.commit > commit] == await busy.history(after=commit)
        assert [] == await busy.history(after=10**15)


async def test_a_cursor_of_a_deleted_instance_is_refused_by_the_next_one_of_its_id(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path, workflows=WORKFLOWS) as runtime:
        leaf = await runtime.create(Leaf, params=1, id="leaf")
        told = await one_by_one(leaf)
        followers = [leaf.subscribe(), leaf.subscribe(after=told[-1].cursor)]
        await anext(followers[0])
        await leaf.delete()
        await (await runtime.create(Leaf, params=2, id="leaf")).result()

        with pytest.raises(InstanceNotFoundError, match="was deleted, and another one has its id"):
            await leaf.history(after=told[0].cursor)
        with pytest.raises(InstanceNotFoundError, match="was deleted"):
            await anext(followers[1])
        for entry in told[1:]:  # the page that it had read is told to its end
            assert entry == await anext(followers[0])
        with pytest.raises(InstanceNotFoundError, match="was deleted"):
            await anext(followers[0])


@pytest.mark.parametrize(
    "after", [-1, True, 1.5, None, "", "-1", "1.2", "x", "1.20300101000000000.5.xyz", "٣", b"1", "9" * 40]
)
async def test_what_is_no_cursor_is_refused_at_the_call(tmp_path: Path, after: int) -> None:
    async with open_test_runtime(tmp_path, workflows=WORKFLOWS) as runtime:
        leaf = await runtime.create(Leaf, params=1)

        with pytest.raises(InvalidArgumentError, match="must be the cursor of an entry"):
            leaf.subscribe(after=after)
        with pytest.raises(InvalidArgumentError, match="must be the cursor of an entry"):
            await leaf.history(after=after)


async def test_a_story_is_read_in_pages_that_begin_in_the_middle_of_a_commit(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path, workflows=WORKFLOWS) as runtime:
        busy = await runtime.create(Busy, id="busy", event=("go", None))
        told = await one_by_one(busy)
        story = Story(str(busy.key))

        async def fetch(query: str, *bindings: object) -> list[object]:
            return list(await busy.sql(query, *bindings))

        pages: list[HistoryEntry] = []
        while page := await story.take(fetch, page=2):
            assert 2 >= len(page)
            pages += page

        assert told == pages
        assert len(told) < PAGE


def test_a_cursor_is_read_as_it_was_written() -> None:
    cursor = Cursor(12, "2030-01-01T00:00:00.123Z", -5, 0xABC)

    assert "12.20300101000000123.-5.abc" == cursor.text
    assert cursor == Cursor.of(cursor.text)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
async def test_cursors_hold_across_workers_and_on_the_command_line(
    tmp_path: Path, open_shared: OpenShared, shared: ModuleType, workers: int
) -> None:
    async with open_shared(workers=workers) as runtime:
        approval = await runtime.create(shared.Approval, id="a")
        for number in (1, 2):
            await approval.send_event("go", number)
        told = await one_by_one(approval)

        assert told == await approval.history()
    for place in (1, len(told) // 2, len(told) - 1):
        seen = await trio.to_thread.run_sync(_watched, tmp_path / "state", told[place - 1].cursor)
        assert [entry.cursor for entry in told[place:]] == [fact["cursor"] for fact in seen]


def _watched(state: Path, after: str) -> list[dict[str, str]]:
    words = ["watch", "Approval/a", "--json", "--after", after, "--state", os.fspath(state)]
    done = subprocess.run(
        [sys.executable, "-c", "from perdure.cli.main import main; main()", *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
