"""The lives of an instance: from the opening of a runtime to its end, its stop or its death.

`survive` lets a program live in this process, stopped in order at given points and started again; the
same `live` is what `server` lets processes do that are killed.

Invariants:
    A point is a reading of the clock, which stands before each write of a record, or the beginning
    or end of a step function.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import trio

from perdure import Instance, InstanceFailedError, InstanceFinishedError, Limits, open_runtime
from perdure.testing import VirtualClock
from property.tree import Program
from property.workflow import Generated, World, code_of

Replay = Literal["warm", "always"]
Durability = Literal["full", "process"]
LIMITS = Limits(crashes_max=1_000_000, idle_grace_s=0.005)
ID = "p"
LIFE_S_MAX = 60.0
"""A life that takes longer has come to a standstill: a usual one takes a tenth of a second."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How an instance ended: by a result, or by the text that stands for its failure."""

    result: int | None = None
    failure: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One program to be run, where, how, and with which events."""

    folder: Path
    program: Program
    sends: Sequence[tuple[str, int]]
    replay: Replay
    durability: Durability = "process"

    @property
    def state(self) -> Path:
        """The state folder."""
        return self.folder / "state"

    @property
    def witness(self) -> Path:
        """What the step functions tell."""
        return self.folder / "witness"


async def live(case: Case, world: World, clock: Any) -> Ended:
    """Open the runtime, start or find the instance, send what it waits for, and see how it ends."""
    async with open_runtime(
        case.state, workflows=[Generated], env=world, clock=clock, replay=case.replay,
        durability=case.durability, limits=LIMITS,
    ) as runtime:  # fmt: skip
        instance = await runtime.create(Generated, params=case.program, id=ID, if_exists="attach")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, instance, case.sends)
            try:
                return Ended(result=await instance.result())
            except InstanceFailedError as error:
                return Ended(failure=code_of(error.__cause__))
            finally:
                nursery.cancel_scope.cancel()


async def send(instance: Instance[Any], sends: Sequence[tuple[str, int]]) -> None:
    """Send each event, and some that nobody waits for; what came through before is known by its token."""
    with contextlib.suppress(InstanceFinishedError):
        for index, (type_, payload) in enumerate(sends):
            await instance.send_event(type_, payload, token=f"{index}")
            await instance.send_event("unwanted", index, token=f"unwanted {index}")


class PointClock(VirtualClock):
    """A virtual clock that passes a point whenever it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.point: Callable[[], None] = lambda: None

    def wall_ms(self) -> int:
        self.point()
        return super().wall_ms()

    def set_wall(self, when: datetime) -> None:
        raise NotImplementedError


def survive(case: Case, stops: Sequence[int]) -> tuple[Ended, int]:
    """Run a program to its end, stopped after so many points of each life; also return how many stops."""
    clock = PointClock()
    for stopped, points in enumerate([*stops, None]):
        ended = trio.run(partial(_stoppable, case, clock, points))
        if ended is not None:
            return ended, stopped
    raise AssertionError("the last life was not stopped, and did not end")


async def _stoppable(case: Case, clock: PointClock, points: int | None) -> Ended | None:
    """Live until the end, or until so many points have been passed: then the runtime is closed."""
    passed = itertools.count(1)
    token = trio.lowlevel.current_trio_token()
    scope = trio.CancelScope()

    def point() -> None:  # in whatever thread
        if next(passed) == points:
            token.run_sync_soon(scope.cancel)

    clock.point = point
    with trio.move_on_after(LIFE_S_MAX) as life, scope:
        return await live(case, World(case.witness, point), clock)
    assert not life.cancelled_caught, f"it has not come to an end within {LIFE_S_MAX:g} s"
    return None
