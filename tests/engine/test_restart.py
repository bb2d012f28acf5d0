"""Restart: an instance runs again, from the beginning or from one of its steps, whatever its status."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from perdure import (
    EventTimeoutError,
    Instance,
    InstanceFailedError,
    InvalidArgumentError,
    NonRetryableError,
    StepNotFoundError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.host import Replay
from perdure.limits import Limits
from perdure.testing import open_test_runtime

ran: list[str] = []
broken: list[bool] = [False]


def note(name: str) -> str:
    ran.append(name)
    return f"{name} {ran.count(name)}"


def break_sometimes(name: str) -> str:
    ran.append(name)
    if broken[0]:
        raise NonRetryableError("not today")
    return f"{name} {ran.count(name)}"


class Three(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> list[str]:
        first = await step.do("first", note, event.payload + "1")
        await step.sleep("pause", "1 hour")
        second = await step.do("second", break_sometimes, event.payload + "2")
        third = await step.do("third", note, event.payload + "3")
        return [first, second, third]


class Waits(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        await step.do("before", note, "before")
        got = await step.wait_for_event("word", type="word", timeout="1 day")
        return str(got.payload)


class Hangs(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> int:
        await step.do("before", note, "before")
        return await step.do("hang", self.hang)

    async def hang(self) -> int:
        ran.append("hang")
        if ran.count("hang") == 1:
            try:
                await trio.sleep_forever()
            finally:
                ran.append("cancelled")
        return ran.count("hang")


class Beside(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> list[str]:
        async def branch(name: str, seconds: int) -> None:
            await step.sleep(f"{name} sleeps", seconds)
            results.append(await step.do(name, break_sometimes if name == "b" else note, name))

        results: list[str] = []
        await step.do("a", note, "a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(branch, "slow", 100)
            nursery.start_soon(branch, "b", 10)
        return sorted(results)


def access_of(handle: object) -> Any:
    """Return how a handle reaches its instance."""
    return vars(handle)["_access"]


@pytest.fixture(autouse=True)
def clean() -> None:
    ran.clear()
    broken[0] = False


@pytest.fixture(params=["warm", "always"])
def replay(request: pytest.FixtureRequest) -> Any:
    return request.param


async def story(instance: Instance[Any]) -> list[str]:
    return [entry.what for entry in await instance.history()]


async def reached(instance: Instance[Any], status: str) -> None:
    while (await instance.status()).status != status:
        change = access_of(instance).change_of(instance.key)
        if (await instance.status()).status == status:
            return
        await change.wait()


async def test_a_finished_instance_runs_again_from_the_beginning(tmp_path: Path, replay: Replay) -> None:
    async with open_test_runtime(tmp_path / "s", workflows=[Three], replay=replay) as runtime:
        instance = await runtime.create(Three, params="x", id="t")
        assert ["x1 1", "x2 1", "x3 1"] == await instance.result()

        await instance.restart(who="Ada")

        assert ["x1 2", "x2 2", "x3 2"] == await instance.result()
        rows = await instance.sql("SELECT name, output FROM steps WHERE kind = 'do'")
        assert [("first", '"x1 2"'), ("second", '"x2 2"'), ("third", '"x3 2"')] == [
            (row.name, row.output) for row in rows
        ]
        (own,) = await instance.sql("SELECT generation, status FROM instance")
        assert (2, "complete") == (own.generation, own.status)


async def test_the_history_keeps_what_was_before_a_restart_and_says_who_gave_it(
    tmp_path: Path, replay: Replay
) -> None:
    async with open_test_runtime(tmp_path / "s", workflows=[Three], replay=replay) as runtime:
        instance = await runtime.create(Three, params="x", id="t")
        await instance.result()
        before = await instance.history()
        await instance.restart("third", who="Ada")
        await instance.result()

        after = await instance.history()

    assert before == after[: len(before)]
    (restart,) = [entry for entry in after if entry.what == "restart"]
    assert "Ada" == restart.actor
    assert restart.detail is not None
    assert '"from_step":"third"' in restart.detail
    assert '"status":"complete"' in restart.detail
    assert ["instance started", "do started", "do completed", "instance complete"] == [
        entry.what for entry in after[-4:]
    ]


async def test_a_restart_from_a_step_keeps_what_started_before_it(tmp_path: Path, replay: Replay) -> None:
    async with open_test_runtime(tmp_path / "s", workflows=[Three], replay=replay) as runtime:
        instance = await runtime.create(Three, params="x", id="t")
        await instance.result()

        await instance.restart("second")

        assert ["x1 1", "x2 2", "x3 2"] == await instance.result()


async def test_a_failed_instance_goes_on_from_the_step_that_failed(tmp_path: Path, replay: Replay) -> None:
    async with open_test_runtime(tmp_path / "s", workflows=[Three], replay=replay) as runtime:
        broken[0] = True
        instance = await runtime.create(Three, params="x", id="t")
        with pytest.raises(InstanceFailedError):
            await instance.result()
        broken[0] = False

        await instance.restart(from_step="second")

        assert ["x1 1", "x2 2", "x3 1"] == await instance.result()
        assert (await instance.status()).error is None


async def test_a_restart_from_a_sleep_sleeps_again(tmp_path: Path, replay: Replay) -> None:
    async with open_test_runtime(tmp_path / "s", workflows=[Three], replay=replay) as runtime:
        instance = await runtime.create(Three, params="x", id="t")
        await instance.result()
        ended = (await instance.status()).ended_at

        await instance.restart("pause", kind="sleep")
        await instance.result()

        again = (await instance.status()).ended_at
        assert ended is not None
        assert again is not None
        assert 3600 == (again - ended).total_seconds()


async def test_a_running_attempt_is_cancelled_and_has_ended_before_the_new_run(
    tmp_path: Path, replay: Replay
) -> None:
    async with open_test_runtime(tmp_path / "s", workflows=[Hangs], replay=replay) as runtime:
        instance = await runtime.create(Hangs, id="h")
        async with contextlib.aclosing(instance.subscribe()) as entries:
            async for entry in entries:
                if entry.step == "hang":
                    break

        await instance.restart()

        assert 2 == await instance.result()
        assert ["before", "hang", "cancelled", "before", "hang"] == ran


async def test_a_paused_a_terminated_and_a_waiting_instance_run_again(tmp_path: Path, replay: Replay) -> None:
    async with open_test_runtime(tmp_path / "s", workflows=[Waits], replay=replay) as runtime:
        for command in ("pause", "terminate", "nothing"):
            instance = await runtime.create(Waits, id=command)
            await reached(instance, "waiting")
            if command != "nothing":
                await getattr(instance, command)()

            await instance.restart()
            await instance.send_event("word", command)

            assert command == await instance.result()


async def test_a_queued_instance_that_starts_later_keeps_its_time(tmp_path: Path, replay: Replay) -> None:
    async with open_test_runtime(
        tmp_path / "s", workflows=[Waits], replay=replay, limits=Limits(running_max=1)
    ) as runtime:
        instance = await runtime.create(Waits, id="q", event=("word", "hello"))
        await instance.restart()

        assert "hello" == await instance.result()
        assert ran in (["before"], ["before", "before"])


async def test_events_that_nobody_got_are_not_delivered_after_a_full_restart(
    tmp_path: Path, replay: Replay
) -> None:
    async with open_test_runtime(tmp_path / "s", workflows=[Waits], replay=replay) as runtime:
        instance = await runtime.create(Waits, id="w")
        await reached(instance, "waiting")
        await instance.send_event("word", "first")
        assert "first" == await instance.result()
        await instance.restart("word", kind="event")
        await reached(instance, "waiting")
        await instance.send_event("other", "early")

        await instance.restart()
        await instance.send_event("word", "second")

        assert "second" == await instance.result()
        rows = await instance.sql("SELECT type, delivered_to FROM events ORDER BY seq")
        assert [("word", 2), ("other", 0)] == [(row.type, row.delivered_to) for row in rows[:2]]


async def test_a_delivered_event_stays_delivered_when_its_wait_begins_again(
    tmp_path: Path, replay: Replay
) -> None:
    async with open_test_runtime(tmp_path / "s", workflows=[Waits], replay=replay) as runtime:
        instance = await runtime.create(Waits, id="w")
        await instance.send_event("word", "first")
        assert "first" == await instance.result()

        await instance.restart("word", kind="event")

        with pytest.raises(InstanceFailedError) as failed:
            await instance.result()
        assert isinstance(failed.value.__cause__, EventTimeoutError)


async def test_the_event_given_at_creation_comes_again_with_a_full_restart(
    tmp_path: Path, replay: Replay
) -> None:
    async with open_test_runtime(tmp_path / "s", workflows=[Waits], replay=replay) as runtime:
        instance = await runtime.create(Waits, id="w", event=("word", "hello"))
        assert "hello" == await instance.result()
        for _ in range(2):
            await instance.restart()
            assert "hello" == await instance.result()


async def test_a_part_cancelled_by_what_failed_beside_it_runs_again(tmp_path: Path, replay: Replay) -> None:
    async with open_test_runtime(tmp_path / "s", workflows=[Beside], replay=replay) as runtime:
        broken[0] = True
        instance = await runtime.create(Beside, id="b")
        with pytest.raises(InstanceFailedError):
            await instance.result()
        broken[0] = False

        await instance.restart("b")

        assert ["b 2", "slow 1"] == await instance.result()
        assert 1 == ran.count("a")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"from_step": "fourth"}, StepNotFoundError),
        ({"from_step": "second", "count": 2}, StepNotFoundError),
        ({"from_step": "second", "kind": "sleep"}, StepNotFoundError),
        ({"from_step": "second", "kind": "nap"}, InvalidArgumentError),
        ({"from_step": "second", "count": 0}, InvalidArgumentError),
        ({"from_step": ""}, InvalidArgumentError),
        ({"count": 2}, InvalidArgumentError),
        ({"kind": "sleep"}, InvalidArgumentError),
    ],
)
async def test_a_restart_that_makes_no_sense_changes_nothing(
    tmp_path: Path, wrong: dict[str, Any], error: type[Exception]
) -> None:
    async with open_test_runtime(tmp_path / "s", workflows=[Three]) as runtime:
        instance = await runtime.create(Three, params="x", id="t")
        result = await instance.result()
        before = await instance.history()

        with pytest.raises(error) as refused:
            await instance.restart(**wrong)

        assert before == await instance.history()
        assert result == await instance.result()
        if error is StepNotFoundError:
            assert "do 'first', sleep 'pause', do 'second', do 'third'" in str(refused.value)


async def test_a_restart_with_a_token_happens_once(tmp_path: Path, replay: Replay) -> None:
    async with open_test_runtime(tmp_path / "s", workflows=[Three], replay=replay) as runtime:
        instance = await runtime.create(Three, params="x", id="t")
        await instance.result()
        for _ in range(2):
            await instance.restart(token="once")  # noqa: S106 - of a command
            await instance.result()

        assert 2 == ran.count("x1")


async def test_the_timeout_of_the_whole_run_begins_anew(tmp_path: Path, replay: Replay) -> None:
    async with open_test_runtime(tmp_path / "s", workflows=[Three], replay=replay) as runtime:
        instance = await runtime.create(Three, params="x", id="t", timeout="90 minutes")
        await instance.result()
        for _ in range(2):
            await instance.restart()
            assert 3 == len(await instance.result())


async def test_a_pause_during_a_replay_is_not_lost(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path / "s", workflows=[Three]) as runtime:
        instance = await runtime.create(Three, params="x", id="t")
        await instance.pause(who="Ada")
        await reached(instance, "paused")

        assert "by Ada" == (await instance.status()).reason
        await instance.resume()
        assert 3 == len(await instance.result())


async def test_a_restart_waits_for_those_who_read_the_finished_file(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path / "s", workflows=[Three]) as runtime:
        instance = await runtime.create(Three, params="x", id="t")
        await instance.result()
        await access_of(instance).closed(instance.key)
        restarted = trio.Event()

        async def restart() -> None:
            await instance.restart()
            restarted.set()

        async with trio.open_nursery() as nursery:
            async with instance.sql_stream("SELECT name, output FROM steps") as rows:
                first = await anext(aiter(rows))
                nursery.start_soon(restart)
                await trio.testing.wait_all_tasks_blocked()
                assert not restarted.is_set()
                rest = [row async for row in rows]
            await restarted.wait()

        assert ["first", "pause", "second", "third"] == [first.name, *(row.name for row in rest)]
        assert ["x1 2", "x2 2", "x3 2"] == await instance.result()
