"""`statistics()`: what a runtime is doing and has done, and how another process gets to see it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

import perdure
from perdure import Limits, Runtime, RuntimeStatistics, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.engine.folder import StateFolder
from perdure.engine.observer import LOOK, Look
from perdure.engine.statistics import LAG_LOOK_S, LoopLag, WorkflowStatistics, united
from perdure.testing import VirtualClock, open_test_runtime

NEVER = datetime(2100, 1, 1, tzinfo=UTC)
HANGS_S = 20


class Counted(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        for number in range(event.payload):
            await step.do(f"step {number}", lambda: 1)
        return event.payload


class Approval(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        await step.do("ask", lambda: "asked")
        await step.wait_for_event("answer", type="answer", timeout="1 day")
        return "answered"


class Fails(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        raise ValueError("no")


class Blocked(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        await step.do("wait", self.env.wait)


class StandingClock(VirtualClock):
    """Moves by hand alone."""

    async def wait(self, delay_ms: float | None, changed: trio.Event) -> None:
        await super().wait(None, changed)


WORKFLOWS = [Counted, Approval, Fails, Blocked]


@pytest.fixture
def release() -> trio.Event:
    return trio.Event()


@pytest.fixture
async def runtime(tmp_path: Path, release: trio.Event) -> AsyncIterator[Runtime]:
    async with open_test_runtime(
        tmp_path / "state", workflows=WORKFLOWS, env=release, replay="warm", clock=StandingClock()
    ) as runtime:
        yield runtime
        release.set()


async def until(runtime: Runtime, **figures: int) -> RuntimeStatistics:
    """Wait for these figures."""
    with trio.fail_after(HANGS_S):
        while True:
            now = runtime.statistics()
            if figures == {name: getattr(now, name) for name in figures}:
                return now
            await trio.testing.wait_all_tasks_blocked(0.001)


async def test_what_became_of_instances_is_counted_per_workflow(runtime: Runtime) -> None:
    for steps in (3, 4):
        assert steps == await (await runtime.create(Counted, params=steps)).result()
    with pytest.raises(perdure.InstanceFailedError):
        await (await runtime.create(Fails)).result()
    waiting = await runtime.create(Approval, id="a")
    await waiting.terminate()
    workflows = (await until(runtime, warm=0)).workflows

    assert WorkflowStatistics(started=2, finished=2, steps=7) == workflows["Counted"]
    assert WorkflowStatistics(started=1, failed=1) == workflows["Fails"]
    assert (1, 1, 0) == (
        workflows["Approval"].started, workflows["Approval"].terminated, workflows["Approval"].finished,
    )  # fmt: skip


async def test_what_is_in_memory_counts_as_it_stands_now(runtime: Runtime) -> None:
    await runtime.create(Approval)
    await runtime.create(Blocked)
    now = await until(runtime, warm=2, busy=1, parked=1, files_open=2)

    assert (2, 1) == (now.files_open, now.steps)
    assert WorkflowStatistics(warm=1, parked=1, started=1, steps=1) == now.workflows["Approval"]
    assert WorkflowStatistics(warm=1, started=1) == now.workflows["Blocked"]


async def test_an_instance_that_has_ended_is_counted_once_however_often_it_is_asked(runtime: Runtime) -> None:
    instance = await runtime.create(Counted, params=1)
    await instance.result()
    await until(runtime, warm=0)
    with pytest.raises(perdure.InstanceFinishedError):
        await instance.send_event("late")
    await instance.result()
    await until(runtime, warm=0)

    assert 1 == runtime.statistics().workflows["Counted"].finished


async def test_replays_are_counted(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path, workflows=WORKFLOWS, replay="always") as runtime:
        await (await runtime.create(Counted, params=3)).result()
        now = await until(runtime, warm=0)

    assert (3, 3) == (now.steps, now.replays)


async def test_queues_are_counted(tmp_path: Path, release: trio.Event) -> None:
    limits = Limits(warm_max=1, running_max=1)
    async with open_test_runtime(tmp_path, workflows=WORKFLOWS, env=release, limits=limits) as runtime:
        await runtime.create(Blocked)
        await until(runtime, warm=1)
        await runtime.create_batch(Counted, [{"params": 1} for _ in range(5)])
        await runtime.create_batch(Counted, [{"params": 1, "at": NEVER} for _ in range(5)])
        queues = runtime.statistics().queues
        release.set()
        await until(runtime, warm=0)

    assert (5, 0, 0, 0) == (queues.unstarted, queues.due, queues.inbox, queues.catalog_writes)


async def test_a_query_that_runs_has_an_age(runtime: Runtime) -> None:
    assert (0, None) == (runtime.statistics().queries, runtime.statistics().oldest_query_s)
    instance = await runtime.create(Counted, params=1)
    await instance.result()
    async with instance.sql_stream("SELECT name FROM steps") as rows:
        now = runtime.statistics()
        assert [row.name async for row in rows] == ["step 0"]

    assert 1 == now.queries
    assert now.oldest_query_s is not None


async def test_who_is_busy_is_known_without_looking_at_each(runtime: Runtime) -> None:
    instances = [await runtime.create(Approval, id=f"a{number}") for number in range(5)]
    await until(runtime, warm=5, busy=0)
    for instance in instances[:2]:
        await instance.send_event("answer")
        await instance.result()
    await until(runtime, warm=3, busy=0)
    await instances[2].pause()
    await until(runtime, warm=2, busy=0)
    await instances[2].resume()
    await until(runtime, warm=3, busy=0, parked=3)


# -- the loop's lag ----------------------------------------------------------------------------


async def test_the_lag_is_how_much_later_the_loop_comes(autojump_clock: trio.testing.MockClock) -> None:
    lag = LoopLag()
    assert (0, 0.0, 0.0) == (lag.statistics().samples, lag.statistics().p50_ms, lag.statistics().max_ms)
    for _ in range(9):
        await lag.wake()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lag.wake)
        await trio.testing.wait_all_tasks_blocked()
        autojump_clock.jump(LAG_LOOK_S + 0.25)
    now = lag.statistics()

    assert (10, 0.0, 250.0, 250.0) == (now.samples, now.p50_ms, now.p99_ms, now.max_ms)


async def test_the_lag_of_the_last_minute_counts(autojump_clock: trio.testing.MockClock) -> None:
    lag = LoopLag()
    for _ in range(700):
        await lag.wake()

    assert 600 == lag.statistics().samples


# -- several workers ---------------------------------------------------------------------------


async def test_the_statistics_of_workers_add_up(runtime: Runtime) -> None:
    await (await runtime.create(Counted, params=2)).result()
    one = await until(runtime, warm=0)
    both = united([one, one])

    assert (2, None, None) == (both.workers, both.worker, both.pid)
    assert (2 * one.ticks, 2 * one.gate.commits) == (both.ticks, both.gate.commits)
    assert WorkflowStatistics(started=2, finished=2, steps=4) == both.workflows["Counted"]
    assert (one.queues.unstarted, one.lag.max_ms) == (both.queues.unstarted, both.lag.max_ms)
    assert one == united([one])


# -- looking from another process --------------------------------------------------------------


async def test_statistics_are_shown_to_who_looks_and_to_nobody_else(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    async with open_test_runtime(folder.root, workflows=WORKFLOWS) as runtime:
        await (await runtime.create(Counted, params=2)).result()
        samples = runtime.statistics().lag.samples
        while runtime.statistics().lag.samples < samples + 2:  # it has looked whether anybody looks
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert [] == list(folder.root.glob("statistics*"))
        look = Look(folder)
        look.begin()
        with trio.fail_after(HANGS_S):
            while not look.seen():
                await trio.testing.wait_all_tasks_blocked(0.001)
        (seen,) = look.seen()
        assert ([], seen) == (look.late(), look.total())

    assert (2, runtime.statistics().worker) == (seen.workflows["Counted"].steps, seen.worker)
    assert [LOOK] == [path.name for path in folder.root.glob("statistics*")]


async def test_what_a_killed_worker_has_left_is_not_shown(tmp_path: Path, seen: RuntimeStatistics) -> None:
    folder = StateFolder(tmp_path)
    look = Look(folder)
    tmp_path.joinpath("statistics.7.json").write_bytes(msgspec.json.encode(seen))
    look.begin()
    assert [] == look.seen()  # it stood there before anybody looked

    gone = msgspec.structs.replace(seen, pid=2**22 + 1)  # beyond Linux's last process number
    tmp_path.joinpath("statistics.8.json").write_bytes(msgspec.json.encode(gone))
    tmp_path.joinpath("statistics.9.json").write_bytes(msgspec.json.encode(seen))
    tmp_path.joinpath("statistics.10.json").write_bytes(b"{half")

    assert [seen] == look.seen()


@pytest.fixture
async def seen(runtime: Runtime) -> RuntimeStatistics:
    return runtime.statistics()
