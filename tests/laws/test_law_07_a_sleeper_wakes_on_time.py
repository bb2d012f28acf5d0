"""Law 7: a sleeper wakes on time by itself after any restart, whatever is done to the clocks.

The clock of these tests stands still unless a test moves it, so that "not yet" can be seen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from perdure import EventTimeoutError, Limits, Runtime, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.actors.actor import Actor
from perdure.actors.host import Clock, Replay
from perdure.actors.outcome import Parked
from perdure.storage.catalog import Catalog
from perdure.storage.journal import Journal, Step
from perdure.storage.records import Deadline, StepKind
from perdure.testing import VirtualClock, open_test_runtime

Broken = Callable[[type, str, Callable[..., Any]], None]
Reached = Callable[..., Awaitable[None]]
Settled = Callable[[Runtime], Awaitable[None]]
Move = Callable[[VirtualClock], None]

MIDNIGHT = datetime(2030, 1, 1, tzinfo=UTC)
"""What the clock shows at first."""

SOON_HIBERNATES = Limits(idle_grace_s=0.5)


class Nap(WorkflowEntrypoint):
    """Sleeps for an hour after midnight, in the way that its params name."""

    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> str:
        match event.payload:
            case "sleep":
                await step.sleep("nap", "1 hour")
            case "until":
                await step.sleep_until("nap", MIDNIGHT + timedelta(hours=1))
            case "event":
                try:
                    await step.wait_for_event("nap", type="never", timeout="1 hour")
                except EventTimeoutError:
                    return "awake"
            case "deadline":
                async with step.move_on_after("nap", "1 hour"):
                    await step.wait_for_event("for ever", type="never", timeout=None)
            case "both":
                parts = {
                    "sleep": step.sleep("sleep", "1 hour"),
                    "until": step.sleep_until("until", MIDNIGHT + timedelta(hours=1)),
                }
                await step.race("nap", parts)
            case other:
                raise ValueError(other)
        return "awake"


class Bed:
    """Opens runtimes over one folder, one after the other, with one sleeper in it."""

    def __init__(self, folder: Path, clock: VirtualClock, reached: Reached, settled: Settled) -> None:
        self.folder = folder
        self.clock = clock
        self.reached = reached
        self.settled = settled

    async def is_awake(self, kind: str, replay: Replay, *moves: Move, poked: bool = False) -> bool:
        """Open a runtime, move the clock whenever it has come to rest, and say whether the sleeper has woken.

        With `poked` an event that it does not wait for brings it into memory first.
        """
        async with open_test_runtime(
            self.folder, workflows=[Nap], replay=replay, clock=self.clock, limits=SOON_HIBERNATES
        ) as runtime:
            instance = await runtime.create(Nap, params=kind, id="a", if_exists="attach")
            if poked:
                await instance.send_event("poke")
            await self.settled(runtime)
            for move in moves:
                move(self.clock)
                await self.settled(runtime)
            return (await instance.status()).status == "complete"


@pytest.fixture
def bed(folder: Path, clock: VirtualClock, reached: Reached, settled: Settled) -> Bed:
    return Bed(folder, clock, reached, settled)


def minutes(number: float) -> Move:
    """Return what lets that many minutes pass."""
    return lambda clock: clock.advance(number * 60)


def set_wall(hours: float) -> Move:
    """Return what sets the wall clock to that many hours after midnight; no time passes."""
    return lambda clock: clock.set_wall(MIDNIGHT + timedelta(hours=hours))


def reboot(clock: VirtualClock) -> None:
    """Play a restart of the machine."""
    clock.reboot()


KINDS = ("sleep", "until", "event", "deadline", "both")
MEASURED = ("sleep", "event", "deadline")
"""The kinds that within one boot follow no wall clock."""


# -- by itself, after any restart --------------------------------------------------------------


async def check_waking(bed: Bed, kind: str, replay: Replay) -> None:
    """Sleep through hibernation (the first move is longer than the grace) and two restarts."""
    assert not await bed.is_awake(kind, replay, minutes(0.1), minutes(30))
    assert not await bed.is_awake(kind, replay, minutes(29.8))
    assert await bed.is_awake(kind, replay, minutes(0.1))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_sleeper_wakes_on_time_after_hibernation_and_restarts(
    bed: Bed, kind: str, replay: Replay
) -> None:
    await check_waking(bed, kind, replay)


@pytest.mark.parametrize("kind", KINDS)
async def test_the_waking_check_fails_when_nobody_looks_for_sleepers(
    bed: Bed, kind: str, broken: Broken
) -> None:
    broken(Catalog, "next_moves", lambda *_: (None, None))

    with pytest.raises(AssertionError):
        await check_waking(bed, kind, "warm")


async def check_a_reboot(bed: Bed, kind: str, replay: Replay) -> None:
    """After a restart of the machine the clock since boot starts anew, and the wall clock decides."""
    assert not await bed.is_awake(kind, replay, minutes(0.1), minutes(30))
    reboot(bed.clock)
    assert not await bed.is_awake(kind, replay, minutes(29.8))
    reboot(bed.clock)
    assert await bed.is_awake(kind, replay, minutes(0.1))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_sleeper_wakes_on_time_after_the_machine_was_restarted(
    bed: Bed, kind: str, replay: Replay
) -> None:
    await check_a_reboot(bed, kind, replay)


@pytest.mark.parametrize("kind", MEASURED)
async def test_the_reboot_check_fails_when_wake_ups_stay_on_the_clock_of_another_boot(
    bed: Bed, kind: str, broken: Broken
) -> None:
    broken(Catalog, "rebooted", lambda *_args, **_options: None)

    with pytest.raises(AssertionError):
        await check_a_reboot(bed, kind, "warm")


async def check_a_visit_after_a_reboot(bed: Bed, kind: str, replay: Replay) -> None:
    """Read what was written down in another boot, and write it down again in this one."""
    assert not await bed.is_awake(kind, replay, minutes(0.1))
    reboot(bed.clock)
    assert not await bed.is_awake(kind, replay, minutes(0.1), minutes(59.7), poked=True)
    assert await bed.is_awake(kind, replay, minutes(0.1), minutes(0.2), poked=True)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_sleeper_that_was_in_memory_after_a_restart_of_the_machine_wakes_on_time(
    bed: Bed, kind: str, replay: Replay
) -> None:
    await check_a_visit_after_a_reboot(bed, kind, replay)


def no_deadline(_actor: Actor) -> Parked:
    """Break the law: an instance rests without a moment to go on."""
    return Parked(wake=None, reason="")


@pytest.mark.parametrize("kind", MEASURED)
async def test_the_reboot_check_fails_when_the_deadline_is_forgotten(
    bed: Bed, kind: str, broken: Broken
) -> None:
    broken(Actor, "waits", no_deadline)

    with pytest.raises(AssertionError):
        await check_a_reboot(bed, kind, "warm")


# -- the clock is set --------------------------------------------------------------------------


async def check_the_clock_is_set(bed: Bed, kind: str, replay: Replay, when: str, hours: float) -> None:
    """Within a boot a sleeper sleeps its hour, whatever the wall clock is set to in the meantime."""
    match when:
        case "warm":
            assert not await bed.is_awake(kind, replay, set_wall(hours), minutes(59))
        case "hibernated":
            assert not await bed.is_awake(kind, replay, minutes(0.1), set_wall(hours), minutes(58.8))
        case _:
            assert not await bed.is_awake(kind, replay, minutes(0.1))
            set_wall(hours)(bed.clock)
            assert not await bed.is_awake(kind, replay, minutes(58.8))
    assert await bed.is_awake(kind, replay, minutes(1.2))


WHEN = ("warm", "hibernated", "closed")


@pytest.mark.parametrize("hours", [-24, 24])
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("kind", MEASURED)
async def test_no_clock_step_changes_how_long_a_sleeper_sleeps(
    bed: Bed, kind: str, replay: Replay, when: str, hours: float
) -> None:
    await check_the_clock_is_set(bed, kind, replay, when, hours)


def deadline_on_the_wall_clock(clock: Clock, seconds: float) -> Deadline:
    """Break the law: forget the clock since boot."""
    return Deadline(wall_ms=clock.wall_ms() + round(seconds * 1000))


@pytest.mark.parametrize("hours", [-24, 24])
@pytest.mark.parametrize("when", WHEN)
async def test_the_setting_check_fails_when_only_the_wall_clock_is_asked(
    bed: Bed, when: str, hours: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.actors.waiting.deadline_in", deadline_on_the_wall_clock)

    with pytest.raises(AssertionError):
        await check_the_clock_is_set(bed, "sleep", "warm", when, hours)


async def check_until_follows_the_wall_clock(bed: Bed, kind: str, replay: Replay, when: str) -> None:
    set_back, set_forward = set_wall(-24), set_wall(2)
    match when:
        case "warm":
            assert kind == "both" or not await bed.is_awake(kind, replay, set_back, minutes(90))
            assert await bed.is_awake(kind, replay, set_forward)
        case "hibernated":
            assert kind == "both" or not await bed.is_awake(kind, replay, minutes(0.1), set_back, minutes(90))
            assert await bed.is_awake(kind, replay, minutes(0.1), set_forward)
        case _:
            assert not await bed.is_awake(kind, replay, minutes(0.1))
            set_forward(bed.clock)
            assert await bed.is_awake(kind, replay)


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("kind", ["until", "both"])
async def test_sleep_until_follows_the_wall_clock(bed: Bed, kind: str, replay: Replay, when: str) -> None:
    await check_until_follows_the_wall_clock(bed, kind, replay, when)


async def check_a_sleep_beside_an_until(bed: Bed, replay: Replay, when: str) -> None:
    """Set the wall clock back: the sleep of the two is over after its hour all the same."""
    match when:
        case "warm":
            assert await bed.is_awake("both", replay, set_wall(-24), minutes(61))
        case "hibernated":
            assert await bed.is_awake("both", replay, minutes(0.1), set_wall(-24), minutes(61))
        case _:
            assert not await bed.is_awake("both", replay, minutes(0.1))
            set_wall(-24)(bed.clock)
            assert await bed.is_awake("both", replay, minutes(61))


@pytest.mark.parametrize("when", WHEN)
async def test_a_sleep_beside_a_sleep_until_wakes_on_time_when_the_clock_is_set_back(
    bed: Bed, replay: Replay, when: str
) -> None:
    await check_a_sleep_beside_an_until(bed, replay, when)


def until_alone(actor: Actor) -> Parked:
    """Break the law the other way: of two clocks keep the wall clock."""
    wakes = [step.wake for step in actor.journal.waiting() if step.wake is not None]
    return Parked(wake=Deadline(wall_ms=min(wake.wall_ms for wake in wakes)), reason="")


async def test_the_check_beside_an_until_fails_when_the_catalog_has_the_wall_clock_alone(
    bed: Bed, broken: Broken
) -> None:
    broken(Actor, "waits", until_alone)

    with pytest.raises(AssertionError):
        await check_a_sleep_beside_an_until(bed, "warm", "hibernated")


def deadlines_of_the_boot_clock_alone(actor: Actor) -> Parked:
    """Break the law: forget the deadlines that follow the wall clock."""
    wakes = [step.wake for step in actor.journal.waiting() if step.wake is not None]
    measured = [wake for wake in wakes if wake.boot_ms is not None]
    return Parked(wake=min(measured, key=lambda wake: wake.wall_ms), reason="")


async def test_the_until_check_fails_when_the_catalog_has_the_other_clock_alone(
    bed: Bed, broken: Broken
) -> None:
    broken(Actor, "waits", deadlines_of_the_boot_clock_alone)

    with pytest.raises(AssertionError):
        await check_until_follows_the_wall_clock(bed, "both", "warm", "hibernated")


# -- never twice -------------------------------------------------------------------------------


class Twice(WorkflowEntrypoint):
    """Two naps and then a wait, so that both are replayed."""

    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
        await step.sleep("first", "1 hour")
        await step.sleep_until("second", MIDNIGHT + timedelta(hours=2))
        await step.wait_for_event("go", type="go", timeout=None)
        return "gone"


async def check_no_second_sleep(bed: Bed, replay: Replay) -> None:
    options: dict[str, Any] = {"workflows": [Twice], "replay": replay, "limits": SOON_HIBERNATES}
    async with open_test_runtime(bed.folder, clock=bed.clock, **options) as runtime:
        instance = await runtime.create(Twice, id="a")
        for move in (minutes(0.1), minutes(60), minutes(60), set_wall(-24)):
            await bed.settled(runtime)
            move(bed.clock)
        await bed.reached(instance, "event started")
    reboot(bed.clock)
    async with open_test_runtime(bed.folder, clock=bed.clock, **options) as runtime:
        instance = await runtime.get(Twice, "a")
        await instance.send_event("go")
        await bed.settled(runtime)
        assert "complete" == (await instance.status()).status
        rows = await instance.sql("SELECT name, count FROM steps WHERE kind = 'sleep' ORDER BY seq")
        assert [("first", 1), ("second", 1)] == [tuple(row) for row in rows]


async def test_no_clock_step_makes_a_sleeper_wait_twice(bed: Bed, replay: Replay) -> None:
    await check_no_second_sleep(bed, replay)


async def test_the_second_sleep_check_fails_when_the_end_of_a_sleep_is_not_recorded(
    bed: Bed, broken: Broken
) -> None:
    take = Journal.take

    def take_as_waiting(journal: Journal, kind: StepKind, name: str, count: int) -> Step | None:
        step = take(journal, kind, name, count)
        if step is not None and step.kind == "sleep" and step.status == "completed":
            step.status = "waiting"
        return step

    broken(Journal, "take", take_as_waiting)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await check_no_second_sleep(bed, "warm")


# -- a pause freezes the timers ----------------------------------------------------------------


async def check_a_pause(bed: Bed, kind: str, replay: Replay, hours: float) -> None:
    """Pause for ten hours after half an hour; meanwhile the wall clock is set as well."""
    options: dict[str, Any] = {"workflows": [Nap], "replay": replay, "limits": SOON_HIBERNATES}
    assert not await bed.is_awake(kind, replay, minutes(30))
    async with open_test_runtime(bed.folder, clock=bed.clock, **options) as runtime:
        instance = await runtime.get(Nap, "a")
        await instance.pause()
        for move in (set_wall(hours), minutes(600)):
            move(bed.clock)
            await bed.settled(runtime)
        assert "paused" == (await instance.status()).status
        await instance.resume()
    assert not await bed.is_awake(kind, replay, minutes(29.8))
    assert await bed.is_awake(kind, replay, minutes(0.3))


@pytest.mark.parametrize("hours", [-24, 0.5, 24])
@pytest.mark.parametrize("kind", MEASURED)
async def test_a_pause_freezes_a_sleep_and_a_timeout_whatever_the_wall_clock_says(
    bed: Bed, kind: str, replay: Replay, hours: float
) -> None:
    await check_a_pause(bed, kind, replay, hours)


@pytest.mark.parametrize("kind", MEASURED)
async def test_the_pause_check_fails_when_no_deadline_moves(bed: Bed, kind: str, broken: Broken) -> None:
    broken(Journal, "shift", lambda *_: None)

    with pytest.raises(AssertionError):
        await check_a_pause(bed, kind, "warm", 0.5)


async def test_a_pause_leaves_a_sleep_until_where_it_was(bed: Bed, replay: Replay) -> None:
    assert not await bed.is_awake("until", replay, minutes(30))
    async with open_test_runtime(bed.folder, workflows=[Nap], replay=replay, clock=bed.clock) as runtime:
        instance = await runtime.get(Nap, "a")
        await instance.pause()
        bed.clock.advance(20 * 60)
        await instance.resume()
    assert await bed.is_awake("until", replay, minutes(10.1))
