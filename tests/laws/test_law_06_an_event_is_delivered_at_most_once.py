"""Law 6: an event is delivered at most once, to the first matching wait, in the order it was sent."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from perdure import (
    EventTimeoutError,
    Instance,
    InstanceFailedError,
    InstanceFinishedError,
    PerdureError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.actor import Actor
from perdure.actors.compose import RaceCall
from perdure.actors.control import Control
from perdure.actors.host import Replay
from perdure.actors.mailbox import Mailbox
from perdure.actors.waiting import EventCall
from perdure.engine.loop import GameLoop
from perdure.storage.mail import Mail
from perdure.storage.records import Deadline, EventRow
from perdure.testing import VirtualClock, open_test_runtime

Broken = Callable[[type, str, Callable[..., Any]], None]
Reached = Callable[..., Awaitable[None]]
KNOWN = "the message that brings it"
DELIVERED = (
    "SELECT e.payload, s.name FROM events e LEFT JOIN steps s ON s.seq = e.delivered_to ORDER BY e.seq"
)


class Collector(WorkflowEntrypoint):
    """Takes five events of one type, with a nap after the second."""

    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> list[Any]:
        got: list[Any] = []
        for number in range(5):
            if number == 2:
                await step.sleep("nap", "1 hour")
            got.append((await step.wait_for_event(f"wait {number}", type="item", timeout=None)).payload)
        return got


# -- once and in order, whatever happens in between ------------------------------------------


async def check_order(folder: Path, replay: Replay, reached: Reached) -> None:
    """Send across a pause, a hibernation and a restart."""
    async with open_test_runtime(folder, workflows=[Collector], replay=replay) as runtime:
        instance = await runtime.create(Collector, id="a")
        await instance.send_event("item", 1)
        await reached(instance, "event started", "wait 1")
        await instance.pause()
        await instance.send_event("item", 2)
        await instance.send_event("other", "nobody asks for it")
        await instance.send_event("item", 3)
        await instance.send_event("item", 4)
    async with open_test_runtime(folder, workflows=[Collector], replay=replay) as runtime:
        instance = await runtime.get(Collector, "a")
        await instance.resume()
        await reached(instance, "event completed", "wait 3")  # an hour later: it has hibernated and woken
        await instance.send_event("item", 5)
        result = await instance.result()
        rows = [tuple(row) for row in await instance.sql(DELIVERED)]

    assert [1, 2, 3, 4, 5] == result
    assert [(str(number + 1), f"wait {number}") for number in range(2)] == rows[:2]
    assert ('"nobody asks for it"', None) == rows[2]
    assert [("3", "wait 2"), ("4", "wait 3"), ("5", "wait 4")] == rows[3:]


async def test_events_arrive_once_and_in_order_across_pause_hibernation_and_restart(
    folder: Path, replay: Replay, reached: Reached
) -> None:
    await check_order(folder, replay, reached)


async def test_the_order_check_fails_with_mail_that_forgets_deliveries(
    folder: Path, replay: Replay, reached: Reached, broken: Broken
) -> None:
    def forget(mail: Mail, event: EventRow, _step_seq: int) -> None:
        vars(mail)["_undelivered"].pop(event.seq)

    broken(Mail, "deliver", forget)

    with pytest.raises((AssertionError, PerdureError)):
        await check_order(folder, replay, reached)


async def test_the_order_check_fails_when_the_newest_event_is_served_first(
    folder: Path, replay: Replay, reached: Reached, monkeypatch: pytest.MonkeyPatch
) -> None:
    undelivered: Any = vars(Mail)["undelivered"]
    monkeypatch.setattr(Mail, "undelivered", property(lambda mail: undelivered.fget(mail)[::-1]))

    with pytest.raises(AssertionError):
        await check_order(folder, replay, reached)


async def check_a_token(folder: Path, replay: Replay, reached: Reached) -> None:
    for _ in range(2):  # the second time the first event is delivered already
        async with open_test_runtime(folder, workflows=[Collector], replay=replay) as runtime:
            instance = await runtime.create(Collector, id="a", if_exists="attach")
            await instance.send_event("item", "once", token=KNOWN)
            await instance.send_event("item", "once", token=KNOWN)
            await reached(instance, "event started", "wait 1")
            assert [('"once"', "wait 0")] == [tuple(row) for row in await instance.sql(DELIVERED)]


async def test_an_event_sent_again_with_its_token_counts_once(
    folder: Path, replay: Replay, reached: Reached
) -> None:
    await check_a_token(folder, replay, reached)


async def test_the_token_check_fails_with_mail_that_does_not_know_tokens(
    folder: Path, replay: Replay, reached: Reached, broken: Broken
) -> None:
    add = Mail.add
    broken(Mail, "add", lambda *args, **options: add(*args, **{**options, "token": None}))
    broken(Mail, "knows", lambda *_: False)

    with pytest.raises(AssertionError):
        await check_a_token(folder, replay, reached)


# -- to the first wait that matches ------------------------------------------------------------


async def check_the_first_matching_wait(folder: Path, replay: Replay, reached: Reached) -> None:
    def large(order: dict[str, int]) -> bool:
        return order["amount"] > 100

    class Desk(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> dict[str, Any]:
            orders = {
                "boss": step.wait_for_event("boss", type="order", timeout=None, where=large),
                "anne": step.wait_for_event("anne", type="order", timeout=None),
                "bert": step.wait_for_event("bert", type="order", timeout=None),
            }
            return {who: got.payload["amount"] for who, got in (await step.gather("desk", orders)).items()}

    async with open_test_runtime(folder, workflows=[Desk], replay=replay) as runtime:
        instance = await runtime.create(Desk, id="a")
        await reached(instance, "event started", "bert")
    async with open_test_runtime(folder, workflows=[Desk], replay=replay) as runtime:
        instance = await runtime.get(Desk, "a")
        for amount in (5, 500, 7):
            await instance.send_event("order", {"amount": amount})
        assert {"boss": 500, "anne": 5, "bert": 7} == await instance.result()


async def test_an_event_goes_to_the_first_wait_that_matches(
    folder: Path, replay: Replay, reached: Reached
) -> None:
    await check_the_first_matching_wait(folder, replay, reached)


async def test_the_matching_check_fails_when_where_is_not_asked(
    folder: Path, replay: Replay, reached: Reached, broken: Broken
) -> None:
    make: Any = EventCall[Any].__init__
    broken(EventCall, "__init__", lambda *args, **options: make(*args, **{**options, "where": None}))

    with pytest.raises(AssertionError):
        await check_the_first_matching_wait(folder, replay, reached)


async def test_a_predicate_that_raises_fails_its_wait_and_the_event_stays(
    folder: Path, replay: Replay
) -> None:
    class Fragile(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.wait_for_event("wait", type="item", where=lambda item: item["missing"] > 0)

    async with open_test_runtime(folder, workflows=[Fragile], replay=replay) as runtime:
        instance = await runtime.create(Fragile, event=("item", {}))
        with pytest.raises(InstanceFailedError) as failed:
            await instance.result()
        rows = [tuple(row) for row in await instance.sql(DELIVERED)]

    assert isinstance(failed.value.__cause__, KeyError)
    assert [("{}", None)] == rows


RACES = 12
"""trio starts the tasks of a race in one of two orders, by chance: of so many races one will differ."""


async def check_the_order_in_a_race(folder: Path, replay: Replay, clock: VirtualClock) -> None:
    """Have all events there before any wait is asked for."""

    class Races(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> list[str]:
            won: list[str] = []
            for number in range(RACES):
                names = [f"{letter}{number}" for letter in "ab"]
                parts = {name: step.wait_for_event(name, type="item", timeout=None) for name in names}
                who, got = await step.race(f"race {number}", parts)
                won.append(f"{who} with {got.payload}")
            return won

    start = datetime.fromtimestamp(clock.wall_ms() / 1000, UTC) + timedelta(hours=1)
    async with open_test_runtime(folder, workflows=[Races], replay=replay, clock=clock) as runtime:
        instance = await runtime.create(Races, id="a", at=start)
        for number in range(RACES):
            await instance.send_event("item", number)
        clock.advance(3600)
        with trio.fail_after(2):
            assert [f"a{number} with {number}" for number in range(RACES)] == await instance.result()


async def test_the_waits_in_a_race_are_served_in_the_order_in_which_they_stand(
    folder: Path, replay: Replay, clock: VirtualClock
) -> None:
    await check_the_order_in_a_race(folder, replay, clock)


async def test_the_order_in_a_race_check_fails_when_waits_queue_as_their_tasks_start(
    folder: Path, clock: VirtualClock, broken: Broken
) -> None:
    broken(EventCall, "queue", lambda *_: None)

    with pytest.raises((AssertionError, trio.TooSlowError)):
        await check_the_order_in_a_race(folder, "warm", clock)


# -- against the timeout -----------------------------------------------------------------------


class Waiter(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
        try:
            return str((await step.wait_for_event("wait", type="item", timeout="1 hour")).payload)
        except EventTimeoutError as error:
            return f"{error.step} timed out"


Move = Callable[[VirtualClock], None]
Case = tuple[Move, str]


def wait_minutes(minutes: float) -> Move:
    """Return what lets that time pass."""
    return lambda clock: clock.advance(minutes * 60)


def step_forward(clock: VirtualClock) -> None:
    """Set the wall clock forward by a day."""
    clock.set_wall(datetime.fromtimestamp(clock.wall_ms() / 1000, UTC) + timedelta(days=1))


def step_back(clock: VirtualClock) -> None:
    """Set the wall clock back by a day, after the deadline."""
    clock.advance(2 * 3600)
    clock.set_wall(datetime.fromtimestamp(clock.wall_ms() / 1000, UTC) - timedelta(days=1))


async def check_the_timeout(
    folder: Path, replay: Replay, reached: Reached, clock: VirtualClock, case: Case
) -> None:
    """Send the event where nobody can look at it, and look after the deadline."""
    move, expected = case
    async with open_test_runtime(folder, workflows=[Waiter], replay=replay, clock=clock) as runtime:
        instance = await runtime.create(Waiter, id="a")
        await reached(instance, "event started")
    move(clock)
    async with open_test_runtime(folder, replay=replay, clock=clock) as runtime:
        await (await runtime.get("Waiter", "a")).send_event("item", "in time")
    clock.advance(3600)
    async with open_test_runtime(folder, workflows=[Waiter], replay=replay, clock=clock) as runtime:
        assert expected == await (await runtime.get(Waiter, "a")).result()


CASES: list[Case] = [
    (wait_minutes(59), "in time"),
    (wait_minutes(61), "wait timed out"),
    (step_forward, "in time"),
    (step_back, "wait timed out"),
]


@pytest.mark.parametrize("case", CASES)
async def test_an_event_received_before_the_deadline_beats_the_timeout(
    folder: Path, replay: Replay, reached: Reached, clock: VirtualClock, case: Case
) -> None:
    await check_the_timeout(folder, replay, reached, clock, case)


@pytest.mark.parametrize("case", CASES)
async def test_the_timeout_check_fails_when_the_answer_depends_on_when_one_looks(
    folder: Path, reached: Reached, clock: VirtualClock, case: Case, broken: Broken
) -> None:
    late = 1 if case[1] == "in time" else 0
    broken(Deadline, "since", lambda *_: late)

    with pytest.raises(AssertionError):
        await check_the_timeout(folder, "warm", reached, clock, case)


async def check_a_race_against_a_sleep(
    folder: Path, replay: Replay, reached: Reached, clock: VirtualClock
) -> None:
    """Send events where nobody can look at them, and look when the sleeps beside them are over too."""

    class Races(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> list[str]:
            races: dict[str, Any] = {}
            for number in range(4):
                parts: list[tuple[str, Any]] = [
                    ("sleep", step.sleep(f"sleep {number}", "1 hour")),
                    ("event", step.wait_for_event(f"event {number}", type=f"item {number}", timeout=None)),
                ]
                races[str(number)] = step.race(f"race {number}", dict(parts[:: 1 if number % 2 else -1]))
            return [who for who, _ in (await step.gather("races", races)).values()]

    async with open_test_runtime(folder, workflows=[Races], replay=replay, clock=clock) as runtime:
        instance = await runtime.create(Races, id="a")
        for number in range(4):
            await reached(instance, "event started", f"event {number}")
            await reached(instance, "sleep started", f"sleep {number}")
    clock.advance(1800)
    async with open_test_runtime(folder, replay=replay, clock=clock) as runtime:
        for number in range(4):
            await (await runtime.get("Races", "a")).send_event(f"item {number}", number)
    clock.advance(3600)
    async with open_test_runtime(folder, workflows=[Races], replay=replay, clock=clock) as runtime:
        assert ["event"] * 4 == await (await runtime.get(Races, "a")).result()


async def test_an_event_that_came_first_wins_its_race_though_it_is_looked_at_later(
    folder: Path, replay: Replay, reached: Reached, clock: VirtualClock
) -> None:
    await check_a_race_against_a_sleep(folder, replay, reached, clock)


async def test_the_race_check_fails_when_the_order_of_tasks_decides(
    folder: Path, reached: Reached, clock: VirtualClock, broken: Broken
) -> None:
    broken(RaceCall, "_decided", lambda *_: None)

    async def again_and_again() -> None:
        for number in range(40):  # trio draws the order by lot, and may draw the right one
            await check_a_race_against_a_sleep(folder / str(number), "warm", reached, clock)

    with pytest.raises(AssertionError):
        await again_and_again()


async def check_a_loser_takes_nothing(
    folder: Path, replay: Replay, reached: Reached, clock: VirtualClock, *, seen: bool
) -> None:
    """Send two events while both waits of a race wait: one is for the race, the other for what follows."""

    class Race(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> list[Any]:
            names = ("a", "b")
            parts = {name: step.wait_for_event(name, type="item", timeout=None) for name in names}
            who, first = await step.race("race", parts)
            second = await step.wait_for_event("after", type="item", timeout=None)
            return [who, first.payload, second.payload]

    async with open_test_runtime(folder, workflows=[Race], replay=replay, clock=clock) as runtime:
        instance = await runtime.create(Race, id="a")
        await reached(instance, "event started", "b")
        if seen:  # in one tick, so that no task of the race runs in between
            await both(instance)
    async with open_test_runtime(folder, replay=replay, clock=clock) as runtime:
        if not seen:
            await both(await runtime.get("Race", "a"))
    async with open_test_runtime(folder, workflows=[Race], replay=replay, clock=clock) as runtime:
        with trio.fail_after(2):
            assert ["a", 1, 2] == await (await runtime.get(Race, "a")).result()


async def both(instance: Instance[Any]) -> None:
    loop: GameLoop = vars(instance)["_access"].loop

    def receive(actor: Actor) -> None:
        for number in (1, 2):
            actor.control.receive("item", str(number), token=None)

    await loop.command(instance.key, receive)


@pytest.mark.parametrize("seen", [True, False])
async def test_an_event_is_not_lost_on_the_loser_of_a_race(
    folder: Path, replay: Replay, reached: Reached, clock: VirtualClock, seen: bool
) -> None:
    await check_a_loser_takes_nothing(folder, replay, reached, clock, seen=seen)


@pytest.mark.parametrize("seen", [True, False])
async def test_the_loser_check_fails_when_rivals_stay_in_the_queue(
    folder: Path, reached: Reached, clock: VirtualClock, seen: bool, broken: Broken
) -> None:
    broken(Mailbox, "_without_rivals", lambda *args: args[1])

    with pytest.raises((AssertionError, trio.TooSlowError)):
        await check_a_loser_takes_nothing(folder, "warm", reached, clock, seen=seen)


# -- after the end -----------------------------------------------------------------------------


async def check_a_finished_instance(folder: Path, replay: Replay) -> None:
    class Short(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            return await step.do("only", work)

    async def work() -> str:
        return "done"

    for _ in range(2):
        async with open_test_runtime(folder, workflows=[Short], replay=replay) as runtime:
            instance = await runtime.create(Short, id="a", if_exists="attach")
            assert "done" == await instance.result()
            with pytest.raises(InstanceFinishedError):
                await instance.send_event("item", "too late")
            assert [] == await instance.sql("SELECT * FROM events")


async def test_an_event_to_a_finished_instance_is_an_error_for_its_sender(
    folder: Path, replay: Replay
) -> None:
    await check_a_finished_instance(folder, replay)


async def test_the_finished_check_fails_when_nobody_asks_whether_it_has_ended(
    folder: Path, broken: Broken
) -> None:
    async def send(instance: Instance[Any], type_: str, payload: Any = None) -> None:
        loop: GameLoop = vars(instance)["_access"].loop
        text = json.dumps(payload)
        await loop.command(instance.key, lambda actor: actor.control.receive(type_, text, token=None))

    broken(Instance, "send_event", send)
    broken(Control, "_was_done", lambda *_: False)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await check_a_finished_instance(folder, "warm")
