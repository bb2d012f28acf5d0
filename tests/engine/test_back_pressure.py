"""More work than the machine can do: memory stays bounded, old work is served, senders slow down."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from perdure import Limits, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.engine.inbox import EventBody, ring
from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.records import Message
from perdure.storage.writer import write_now
from perdure.testing import VirtualClock, open_test_runtime

NEVER = datetime(2100, 1, 1, tzinfo=UTC)
HANGS_S = 60
PROGRAM = """
import json, sys, trio, perdure

class Work(perdure.WorkflowEntrypoint):
    async def run(self, event: perdure.WorkflowEvent[int], step: perdure.WorkflowStep) -> None:
        await step.do("work", ran.append, event.payload)
        if len(ran) >= DONE:
            enough.set()

def resident_kb() -> int:
    status = open("/proc/self/status").read()
    return int(status.split("VmRSS:")[1].split()[0])

ran: list[int] = []
warm: list[int] = []
DONE, CREATED = 1_000, 50_000

async def main() -> None:
    app = perdure.App([Work], limits=perdure.Limits(warm_max=50))
    async with perdure.open_runtime(sys.argv[1], app, durability="process") as runtime:
        before_kb = 0
        for first in range(0, CREATED, 1_000):
            await runtime.create_batch(Work, [{"params": first + number} for number in range(1_000)])
            warm.append(runtime.statistics().warm)
            before_kb = before_kb or resident_kb()
        await enough.wait()
        warm.append(runtime.statistics().warm)
        grown_kb = resident_kb() - before_kb
        counted = runtime.statistics().queues.unstarted
    print(json.dumps({"ran": ran[:DONE], "warm": max(warm), "grown_kb": grown_kb, "unstarted": counted}))

enough = trio.Event()
trio.run(main)
"""


class StandingClock(VirtualClock):
    """Moves by hand alone: nobody's wait is over because nothing else happens."""

    async def wait(self, delay_ms: float | None, changed: trio.Event) -> None:
        await super().wait(None, changed)


class Approval(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        answer = await step.wait_for_event("answer", type="answer", timeout="1 day")
        return str(answer.payload)


class Blocked(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        await step.do("wait", self.env.wait)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads its own memory from /proc")
def test_50_000_creations_grow_the_queue_and_not_the_process(tmp_path: Path) -> None:
    program = [sys.executable, "-c", PROGRAM, str(tmp_path / "state")]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=150)
    assert 0 == done.returncode, done.stderr
    found = msgspec.json.decode(done.stdout)

    assert 50 >= found["warm"]
    assert 10_000 == found["unstarted"]  # that or more
    assert 64_000 > found["grown_kb"]  # 50,000 in memory would be several times that
    assert all(abs(number - place) <= 100 for place, number in enumerate(found["ran"]))  # oldest first


async def test_commands_to_more_instances_than_have_room_are_taken_and_done_later(tmp_path: Path) -> None:
    release = trio.Event()
    limits = Limits(warm_max=2, running_max=2, visits_max=3)
    warm: list[int] = []
    async with open_test_runtime(
        tmp_path, workflows=[Approval, Blocked], env=release, limits=limits, replay="warm"
    ) as runtime:
        await runtime.create_batch(Blocked, [{}, {}])
        while runtime.statistics().busy < 2:
            await trio.testing.wait_all_tasks_blocked(0.001)
        waiting = await runtime.create_batch(Approval, [{"id": f"a{number}"} for number in range(20)])
        with trio.fail_after(HANGS_S):
            async with trio.open_nursery() as nursery:
                for instance in waiting:
                    nursery.start_soon(instance.send_event, "answer", instance.id)
                while len(nursery.child_tasks):
                    warm.append(runtime.statistics().warm)
                    await trio.testing.wait_all_tasks_blocked(0.001)
            assert {"waiting"} == {(await instance.status()).status for instance in waiting}
            release.set()
            results = [await instance.result() for instance in waiting]

    assert [f"a{number}" for number in range(20)] == results
    assert 2 + 3 >= max(warm)


async def test_an_instance_without_room_is_terminated_and_paused_all_the_same(tmp_path: Path) -> None:
    release = trio.Event()
    async with open_test_runtime(
        tmp_path, workflows=[Approval, Blocked], env=release, limits=Limits(warm_max=1), replay="warm"
    ) as runtime:
        await runtime.create(Blocked)
        while not runtime.statistics().busy:
            await trio.testing.wait_all_tasks_blocked(0.001)
        ended, paused = await runtime.create_batch(Approval, [{}, {}])
        await ended.terminate()
        await paused.pause()
        with trio.fail_after(HANGS_S):
            while (await paused.status()).status != "paused":
                await trio.testing.wait_all_tasks_blocked(0.001)
        assert "terminated" == (await ended.status()).status
        release.set()


async def test_a_command_whose_sender_gives_up_leaves_no_instance_behind(tmp_path: Path) -> None:
    clock = StandingClock()
    async with open_test_runtime(tmp_path, workflows=[Approval], clock=clock, replay="warm") as runtime:
        instance = await runtime.create(Approval, at=NEVER)  # so each event finds it at rest
        for turns in range(12):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(instance.send_event, "other")
                    for _ in range(turns):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            with trio.fail_after(HANGS_S):
                await instance.send_event("answer")
                while runtime.statistics().warm:
                    await trio.testing.wait_all_tasks_blocked(0.001)


async def test_commands_of_other_processes_wait_in_the_catalog_beyond_a_bound(tmp_path: Path) -> None:
    limits = Limits(inbox_waiting_max=3)
    waiting: list[int] = []
    async with open_test_runtime(
        tmp_path, workflows=[Approval], limits=limits, clock=StandingClock(), replay="warm"
    ) as runtime:
        instances = await runtime.create_batch(Approval, [{"id": f"a{number}"} for number in range(20)])
        connection = open_catalog(tmp_path / "catalog.sqlite", checkpointer=False)
        sender = Catalog(connection)

        def post(catalog: Catalog) -> None:
            for number, instance in enumerate(instances):
                body = msgspec.json.encode(EventBody(type="answer", payload=f'"{instance.id}"')).decode()
                message = Message(
                    seq=0, token=f"t{number}", workflow="Approval", id=instance.id, command="send-event",
                    body=body, actor=None,
                )  # fmt: skip
                catalog.posts.post(message, at_ms=0)

        await trio.to_thread.run_sync(lambda: write_now(sender, post, path=tmp_path / "catalog.sqlite"))
        ring(tmp_path / "doorbell.sock")
        with trio.fail_after(HANGS_S):
            while sender.posts.pending():
                waiting.append(runtime.statistics().queues.inbox)
                await trio.testing.wait_all_tasks_blocked(0.001)
            results = [await instance.result() for instance in instances]
        connection.close()

    assert [f"a{number}" for number in range(20)] == results
    assert 3 >= max(waiting)
