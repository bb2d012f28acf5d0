"""Timers of everything that is warm: two heaps, one for each clock.

A deadline with a boot clock of this boot waits in one heap; one that follows the wall clock, in
the other, which is looked at every `wall_look_ms` at least, so that a clock that was set is noticed.

Invariants:
    A callback is called once, in the loop, not before its deadline.
    A cancelled timer is never called.
    Of cancelled timers at most as many are kept as of others, or `SWEPT_FROM`: an event that comes long
    before its timeout leaves nothing behind until then.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from perdure.actors.host import Clock, TimerHandle
from perdure.storage.records import Deadline

SWEPT_FROM: Final = 64
"""Below so many cancelled timers a sweep is not worth its while."""


class WaitingClock(Clock, Protocol):
    """A clock that can also be waited on."""

    @property
    def wall_look_ms(self) -> float:
        """How late it may be noticed that the wall clock was set; infinite where `wait` returns then."""
        ...

    async def wait(self, delay_ms: float | None, changed: trio.Event) -> None:
        """Return after `delay_ms`, or when `changed` is set."""
        ...


class Timer:
    """One timer. `cancel` unsets it."""

    __slots__ = ("_on_cancel", "callback")

    def __init__(self, callback: Callable[[], None], on_cancel: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback
        self._on_cancel = on_cancel

    def cancel(self) -> None:
        """Unset the timer. Harmless when it has fired."""
        if self.callback is not None:
            self.callback = None
            self._on_cancel()


class Together:
    """Several timers as one."""

    def __init__(self, timers: Sequence[TimerHandle]) -> None:
        self._timers = timers

    def cancel(self) -> None:
        """Unset all of them."""
        for timer in self._timers:
            timer.cancel()


class TimerQueue:
    """The timers of one runtime. `run` serves them in a task."""

    def __init__(self, clock: WaitingClock) -> None:
        self._clock = clock
        self._boot: list[tuple[int, int, Timer]] = []
        self._wall: list[tuple[int, int, Timer]] = []
        self._number = 0
        self._cancelled = 0
        self._changed = trio.Event()

    def at(self, deadline: Deadline, callback: Callable[[], None]) -> Timer:
        """Call `callback` once `deadline` has come."""
        timer = Timer(callback, self._count_cancelled)
        self._number += 1
        if deadline.boot_ms is not None and deadline.boot == self._clock.boot:
            heap, due_ms = self._boot, deadline.boot_ms
        else:
            heap, due_ms = self._wall, deadline.wall_ms
        heapq.heappush(heap, (due_ms, self._number, timer))
        if heap[0][2] is timer:
            self._changed.set()
        return timer

    async def run(self) -> None:
        """Serve for ever."""
        while True:
            self._changed = trio.Event()
            delay_ms = self._fire()
            await self._clock.wait(delay_ms, self._changed)

    def _fire(self) -> float | None:
        """Call what is due and return how long the next timer is off, in milliseconds."""
        boot_left = self._fire_heap(self._boot, self._clock.boot_ms())
        wall_left = self._fire_heap(self._wall, self._clock.wall_ms())
        if wall_left is not None:
            wall_left = min(wall_left, self._clock.wall_look_ms)
        return min((left for left in (boot_left, wall_left) if left is not None), default=None)

    def _fire_heap(self, heap: list[tuple[int, int, Timer]], now_ms: int) -> float | None:
        while heap:
            due_ms, _, timer = heap[0]
            if timer.callback is None:
                heapq.heappop(heap)
                self._cancelled -= 1
                continue
            if due_ms > now_ms:
                return due_ms - now_ms
            heapq.heappop(heap)
            callback, timer.callback = timer.callback, None
            callback()
        return None

    def _count_cancelled(self) -> None:
        self._cancelled += 1
        if self._cancelled > SWEPT_FROM and self._cancelled * 2 > self.waiting:
            for heap in (self._boot, self._wall):
                heap[:] = [
                    entry for entry in heap if entry[2].callback is not None
                ]  # in place: it may be firing
                heapq.heapify(heap)
            self._cancelled = 0

    @property
    def waiting(self) -> int:
        """How many timers are set, cancelled ones that are still queued included."""
        return len(self._boot) + len(self._wall)
