"""The sixteen rules of the peer's documentation, as docs/rules.md has them: one test for each."""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from perdure import (
    InstanceExistsError,
    InstanceFailedError,
    Retries,
    StepContext,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.testing import open_test_runtime

ran: list[Any] = []
Body = Callable[[WorkflowEvent[list[int]], WorkflowStep], Awaitable[Any]]
body: list[Body] = []


class Ruled(WorkflowEntrypoint):
    """Runs what the test gives it; replayed after every step."""

    async def run(self, event: WorkflowEvent[list[int]], step: WorkflowStep) -> Any:
        return await body[0](event, step)


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()
    body.clear()


def note(value: Any) -> Any:
    ran.append(value)
    return value


async def outcome(path: Path, given: Body) -> Any:
    """Run a body as a workflow on [1, 2] and return its result; raises what it raises."""
    body[:] = [given]
    async with open_test_runtime(path, workflows=[Ruled], replay="always") as runtime:
        try:
            return await (await runtime.create(Ruled, params=[1, 2])).result()
        except InstanceFailedError as failed:
            raise failed.__cause__ or failed from None


async def test_rule_1_every_attempt_of_a_step_has_the_same_idempotency_key(tmp_path: Path) -> None:
    def pay(context: StepContext) -> str:
        if len(note_key(context)) < 3:
            raise ConnectionError("no answer")
        return "paid"

    def note_key(context: StepContext) -> list[Any]:
        ran.append(context.idempotency_key)
        return ran

    async def run(event: WorkflowEvent[list[int]], step: WorkflowStep) -> str:
        return await step.do("pay", pay, retries=Retries(limit=3, delay="1 second"))

    assert "paid" == await outcome(tmp_path, run)
    assert (3, 1) == (len(ran), len(set(ran)))


async def test_rule_2_parts_of_a_map_are_steps_of_their_own(tmp_path: Path) -> None:
    def read(number: int) -> int:
        note(number)
        if number == 2 and ran.count(2) == 1:
            raise ConnectionError("no answer")
        return number

    async def run(event: WorkflowEvent[list[int]], step: WorkflowStep) -> list[int]:
        return await step.map("read", read, [1, 2, 3])

    assert [1, 2, 3] == await outcome(tmp_path, run)
    assert [1, 2, 2, 3] == sorted(ran)


async def test_rule_3_a_replay_shows_what_was_kept_outside_steps(tmp_path: Path) -> None:
    async def run(event: WorkflowEvent[list[int]], step: WorkflowStep) -> Any:
        kept: list[int] = []
        await step.do("first", lambda: kept.append(1))
        return [await step.do("second", note, 2), *kept]

    assert [2] == await outcome(tmp_path, run)


async def test_rule_4_what_stands_outside_steps_runs_again_and_steps_do_not(tmp_path: Path) -> None:
    async def run(event: WorkflowEvent[list[int]], step: WorkflowStep) -> None:
        note("outside")
        await step.do("inside", note, "inside")
        await step.do("more", note, "more")

    await outcome(tmp_path, run)

    assert ran.count("outside") > 1
    assert [1, 1] == [ran.count("inside"), ran.count("more")]


async def test_rule_5_each_run_gets_the_event_as_it_was(tmp_path: Path) -> None:
    async def run(event: WorkflowEvent[list[int]], step: WorkflowStep) -> list[int]:
        with pytest.raises(AttributeError):
            event.payload = []  # type: ignore[misc] # that it is frozen is what is tested # pyright: ignore[reportAttributeAccessIssue]
        before = list(event.payload)
        event.payload.append(3)
        await step.do("step", note, 1)
        return before

    assert [1, 2] == await outcome(tmp_path, run)


async def test_rule_6_a_name_that_differs_on_replay_is_reported(tmp_path: Path) -> None:
    counter = itertools.count()

    class Drifting(WorkflowEntrypoint):
        on_divergence = "fail"

        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
            if next(counter) < 1:
                await step.do("one", note, 1)
            await step.sleep("wait", "1 hour")

    async with open_test_runtime(tmp_path, workflows=[Drifting], replay="always") as runtime:
        with pytest.raises(InstanceFailedError, match="DivergenceError.*'one'"):
            await (await runtime.create(Drifting)).result()


async def test_rule_7_the_winner_of_a_race_is_on_record(tmp_path: Path) -> None:
    async def run(event: WorkflowEvent[list[int]], step: WorkflowStep) -> list[Any]:
        won = await step.race("first", {
            "late": step.sleep("late", "1 hour"), "soon": step.sleep("soon", "1 minute"),
        })  # fmt: skip
        await step.do("after", note, 1)
        return [won[0]]

    assert ["soon"] == await outcome(tmp_path, run)


async def test_rule_8_an_id_in_use_is_refused(tmp_path: Path) -> None:
    body[:] = [lambda _event, step: step.do("one", note, 1)]
    async with open_test_runtime(tmp_path, workflows=[Ruled]) as runtime:
        await runtime.create(Ruled, params=[1], id="order-7")

        with pytest.raises(InstanceExistsError, match="order-7"):
            await runtime.create(Ruled, params=[1], id="order-7")


async def test_rule_9_a_forgotten_await_fails_the_run_and_names_the_step(tmp_path: Path) -> None:
    async def run(event: WorkflowEvent[list[int]], step: WorkflowStep) -> None:
        _ = step.do("forgotten", note, 1)

    with pytest.raises(Exception, match="forgotten"):
        await outcome(tmp_path, run)
    assert [] == ran


async def test_rule_10_recorded_chance_takes_the_same_branch_on_every_replay(tmp_path: Path) -> None:
    async def run(event: WorkflowEvent[list[int]], step: WorkflowStep) -> bool:
        heads = await step.random() < 0.5
        note(heads)
        await step.do("heads" if heads else "tails", str, heads)
        await step.do("end", str, "end")
        return heads

    taken = await outcome(tmp_path, run)

    assert len(ran) > 1
    assert {taken} == set(ran)


async def test_rule_11_a_batch_has_any_size(tmp_path: Path) -> None:
    body[:] = [lambda _event, step: step.do("one", str, 1)]
    async with open_test_runtime(tmp_path, workflows=[Ruled]) as runtime:
        batch = await runtime.create_batch(Ruled, [{"id": f"b{n}", "params": [n]} for n in range(150)])

        assert 150 == len(batch)


async def test_rule_12_a_step_may_take_hours_and_says_that_it_lives(tmp_path: Path) -> None:
    async def work(context: StepContext) -> str:
        context.heartbeat({"done": 1})
        return "done"

    async def run(event: WorkflowEvent[list[int]], step: WorkflowStep) -> str:
        return await step.do("work", work, timeout="12 hours", heartbeat_timeout="1 minute")

    assert "done" == await outcome(tmp_path, run)


async def test_rule_13_a_large_result_needs_no_other_store(tmp_path: Path) -> None:
    async def run(event: WorkflowEvent[list[int]], step: WorkflowStep) -> int:
        return len(await step.do("large", make_large))

    assert 3 << 20 == await outcome(tmp_path, run)


def make_large() -> str:
    return "x" * (3 << 20)


async def count_up() -> AsyncIterator[dict[str, int]]:
    for number in range(3):
        await trio.lowlevel.checkpoint()
        yield {"number": number}


async def test_rule_14_a_step_yields_any_items(tmp_path: Path) -> None:
    async def run(event: WorkflowEvent[list[int]], step: WorkflowStep) -> list[Any]:
        stream = await step.do("count", count_up)
        return [item async for item in stream]

    assert [{"number": 0}, {"number": 1}, {"number": 2}] == await outcome(tmp_path, run)


async def test_rule_15_a_connection_cannot_leave_its_step(tmp_path: Path) -> None:
    async def run(event: WorkflowEvent[list[int]], step: WorkflowStep) -> None:
        await step.do("connect", threading.Lock, retries=0)

    with pytest.raises(Exception, match="lock"):
        await outcome(tmp_path, run)


async def test_rule_16_a_step_in_a_step_is_refused(tmp_path: Path) -> None:
    async def run(event: WorkflowEvent[list[int]], step: WorkflowStep) -> None:
        async def outer() -> Any:
            return await step.do("inner", note, 1)

        await step.do("outer", outer, retries=0)

    with pytest.raises(Exception, match="steps do not nest"):
        await outcome(tmp_path, run)
    assert [] == ran
