"""Heartbeats: who may send them, what is recorded, who reads them, and what happens when none comes."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from perdure import (
    EncodingError,
    InvalidArgumentError,
    Retries,
    StepContext,
    StepTimeoutError,
    WorkflowCodeError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    asyncio_step,
    current_step,
    open_runtime,
    process_step,
)
from perdure.actors.host import Replay
from perdure.limits import HEARTBEAT_BYTES_MAX
from perdure.storage.journal import Journal

Play = Callable[..., Awaitable[Any]]
BEATS = "SELECT attempt, outcome, heartbeat FROM attempts ORDER BY step_seq, attempt"
AT_ONCE = Retries(limit=1, delay=0, jitter=0)
PROGRAM = Path(__file__).parent / "programs" / "beats.py"
PROGRAM_S_MAX = 60
SHORT_S = 0.05


# -- who may send them -------------------------------------------------------------------------


async def on_trio(context: StepContext) -> str:
    context.heartbeat({"page": 1})
    await trio.lowlevel.checkpoint()
    context.heartbeat({"page": 2})
    return "read"


def in_thread(context: StepContext) -> str:
    for page in (1, 2):
        context.heartbeat({"page": page})
    return "read"


@asyncio_step
async def on_asyncio(context: StepContext) -> str:
    context.heartbeat({"page": 1})
    await asyncio.sleep(0)
    context.heartbeat({"page": 2})
    return "read"


@process_step
def in_process(context: StepContext) -> str:
    for page in (1, 2):
        context.heartbeat({"page": page})
    return "read"


async def never_waits() -> str:
    current_step().heartbeat({"page": 1})
    current_step().heartbeat({"page": 2})
    return "read"


@pytest.mark.parametrize("fn", [on_trio, in_thread, on_asyncio, in_process, never_waits])
async def test_the_last_heartbeat_of_every_kind_of_function_is_recorded(play: Play, fn: Any) -> None:
    async def run(step: WorkflowStep) -> str:
        return await step.do("read", fn, returns=str)

    played = await play(run, sql=BEATS)

    assert "read" == played.result
    assert [(1, "completed", '{"page":2}')] == played.steps


@pytest.mark.parametrize("fn", [on_trio, in_thread, on_asyncio, in_process])
async def test_the_next_attempt_is_told_the_last_heartbeat_of_those_before(play: Play, fn: Any) -> None:
    async def run(step: WorkflowStep) -> Any:
        return await step.do("read", FAILING[fn], returns=Any, retries=Retries(limit=2, delay=0))

    played = await play(run, sql=BEATS)

    assert [3, {"page": 2}] == played.result  # the second attempt said nothing
    assert [
        (1, "failed", '{"page":2}'),
        (2, "failed", None),
        (3, "completed", None),
    ] == played.steps


def told(context: StepContext) -> list[Any]:
    if context.attempt == 1:
        context.heartbeat({"page": 2})
    if context.attempt < 3:
        raise OSError("not yet")
    return [context.attempt, context.last_heartbeat]


async def told_on_trio(context: StepContext) -> list[Any]:
    return told(context)


@asyncio_step
async def told_on_asyncio() -> list[Any]:
    return told(current_step())


@process_step
def told_in_process(context: StepContext) -> list[Any]:
    return told(context)


FAILING: dict[Any, Any] = {
    on_trio: told_on_trio,
    in_thread: told,
    on_asyncio: told_on_asyncio,
    in_process: told_in_process,
}


def test_a_heartbeat_survives_the_death_of_the_process(tmp_path: Path, replay: Replay) -> None:
    def program() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(PROGRAM), str(tmp_path / "state"), replay]
        return subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_S_MAX, check=False)

    assert -signal.SIGKILL == program().returncode
    done = program()

    assert 0 == done.returncode, done.stderr
    assert [
        [2, "page 7"],
        [[1, "lost", '"page 7"'], [2, "completed", None]],
    ] == json.loads(done.stdout)


# -- what is recorded --------------------------------------------------------------------------


async def test_a_thousand_heartbeats_cost_few_writes(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    record = Journal.heartbeat

    def count(self: Journal, step: Any, details: str) -> None:
        written.append(details)
        record(self, step, details)

    monkeypatch.setattr(Journal, "heartbeat", count)

    async def run(step: WorkflowStep) -> None:
        async def work(context: StepContext) -> None:
            for place in range(1_000):
                context.heartbeat(place)

        await step.do("work", work)

    await play(run)

    assert ["0", "999"] == written


async def test_a_heartbeat_without_details_keeps_those_that_were_sent(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        async def silent(context: StepContext) -> None:
            context.heartbeat()

        async def telling(context: StepContext) -> None:
            context.heartbeat("half of it")
            context.heartbeat()

        await step.do("silent", silent)
        await step.do("telling", telling)

    assert [(1, "completed", "null"), (1, "completed", '"half of it"')] == (await play(run, sql=BEATS)).steps


async def test_steps_that_send_none_record_none(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        await step.do("quiet", quiet, heartbeat_timeout="1 minute")

    assert [(1, "completed", None)] == (await play(run, sql=BEATS)).steps


async def quiet() -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ((1, 2), "comes back"),
        (object(), "cannot be stored"),
        (b"\x00", "not bytes"),
        ("x" * HEARTBEAT_BYTES_MAX, f"at most {HEARTBEAT_BYTES_MAX} are kept"),
    ],
)
async def test_details_that_cannot_be_read_back_are_refused_where_they_are_sent(
    play: Play, details: Any, reason: str
) -> None:
    async def run(step: WorkflowStep) -> str:
        def work(context: StepContext) -> str:
            context.heartbeat("before")
            with pytest.raises(EncodingError) as refused:
                context.heartbeat(details)
            return str(refused.value)

        return await step.do("work", work)

    played = await play(run, sql=BEATS)

    assert reason in played.result
    assert [(1, "completed", '"before"')] == played.steps


async def test_details_that_a_process_step_cannot_send_are_refused_there(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        return await step.do("work", sends_what_cannot_be_pickled, returns=str)

    assert "refused" == (await play(run)).result


@process_step
def sends_what_cannot_be_pickled(context: StepContext) -> str:
    try:
        context.heartbeat(threading.Lock())
    except TypeError:
        return "refused"
    return "sent"


async def test_a_heartbeat_after_the_end_of_its_attempt_is_refused(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        kept: list[StepContext] = []

        async def work(context: StepContext) -> None:
            kept.append(context)

        async def late() -> str:
            if not kept:
                return "a replay"
            with pytest.raises(WorkflowCodeError) as refused:
                kept[0].heartbeat()
            return str(refused.value)

        await step.do("work", work)
        return await late()

    played = await play(run)

    assert played.result in ("heartbeat() was called after attempt 1 of step 'work' had ended", "a replay")


# -- when none comes ---------------------------------------------------------------------------


async def silent_on_trio(context: StepContext) -> str:
    if context.attempt == 1:
        context.heartbeat("so far")
        await trio.sleep_forever()
    return f"went on from {context.last_heartbeat}"


@asyncio_step
async def silent_on_asyncio(context: StepContext) -> str:
    if context.attempt == 1:
        context.heartbeat("so far")
        await asyncio.Event().wait()
    return f"went on from {context.last_heartbeat}"


@process_step
def silent_in_process(context: StepContext) -> str:
    if context.attempt == 1:
        context.heartbeat("so far")
        threading.Event().wait()
    return f"went on from {context.last_heartbeat}"


def silent_in_thread(context: StepContext) -> str:
    if context.attempt == 1:
        context.heartbeat("so far")
        while not context.cancelled:
            pass
    return f"went on from {context.last_heartbeat}"


@pytest.mark.parametrize("fn", [silent_on_trio, silent_on_asyncio, silent_in_process, silent_in_thread])
async def test_an_attempt_that_falls_silent_is_timed_out_and_the_next_goes_on(play: Play, fn: Any) -> None:
    silence_s = 1.0 if fn is silent_in_process else SHORT_S  # a child takes a while to start

    async def run(step: WorkflowStep) -> str:
        return await step.do("work", fn, retries=AT_ONCE, heartbeat_timeout=silence_s, returns=str)

    played = await play(run, sql=BEATS)

    assert "went on from so far" == played.result
    assert [(1, "timeout", '"so far"'), (2, "completed", None)] == played.steps


async def test_the_error_says_that_no_heartbeat_came(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        async def work() -> None:
            await trio.sleep_forever()

        await step.do("work", work, retries=0, heartbeat_timeout=0.01)

    error = (await play(run)).error

    assert isinstance(error, StepTimeoutError)
    assert "attempt 1 of step 'work' sent no heartbeat for longer than its heartbeat_timeout" in str(error)


async def test_heartbeats_put_the_end_off_and_the_timeout_still_holds(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        async def work(context: StepContext) -> None:
            while True:
                context.heartbeat()
                await trio.lowlevel.checkpoint()

        try:
            await step.do("work", work, retries=0, heartbeat_timeout=5, timeout=SHORT_S)
        except StepTimeoutError as error:
            return str(error)
        return "ended"

    assert "took longer than its timeout" in (await play(run)).result


async def test_parts_of_a_map_have_a_heartbeat_timeout_of_their_own(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[str]:
        async def work(number: int, context: StepContext) -> str:
            if number == 1 and context.attempt == 1:
                await trio.sleep_forever()
            return f"{number}: {context.attempt}"

        return await step.map("work", work, [0, 1], retries=AT_ONCE, heartbeat_timeout=SHORT_S)

    assert ["0: 1", "1: 2"] == (await play(run)).result


@pytest.mark.parametrize("given", [0, "0 seconds", "soon", -1])
async def test_a_heartbeat_timeout_that_is_none_is_refused_at_the_call(play: Play, given: Any) -> None:
    async def run(step: WorkflowStep) -> None:
        step.do("work", quiet, heartbeat_timeout=given)

    played = await play(run)

    assert isinstance(played.error, InvalidArgumentError)
    assert "heartbeat_timeout" in str(played.error)
    assert [] == played.steps


async def test_a_heartbeat_is_written_by_a_timer_while_its_attempt_goes_on(
    tmp_path: Path, replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = trio.Event()
    record = Journal.heartbeat

    def tell(self: Journal, step: Any, details: str) -> None:
        record(self, step, details)
        if details == '"second"':
            written.set()

    monkeypatch.setattr(Journal, "heartbeat", tell)

    async def work(context: StepContext) -> None:
        context.heartbeat("first")
        context.heartbeat("second")
        await written.wait()

    class Waits(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("work", work)

    # On the system's clock: a virtual one does not move while a step runs.
    async with open_runtime(tmp_path / "state", workflows=[Waits], replay=replay) as runtime:
        await (await runtime.create(Waits)).result()

    assert written.is_set()
