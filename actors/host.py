"""What an actor is handed by whoever runs it: clock, timers, gate, codec, functions.

An actor reaches for nothing by itself; the engine makes one `Host` per runtime and a test may
make its own. Protocols stand here because the engine, which implements them, is a floor above.

Invariants:
    An actor asks for time and randomness here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from perdure.actors.child_host import ChildHost
from perdure.actors.functions import FunctionStatistics, Kind, Library
from perdure.limits import Limits
from perdure.storage.codec import Codec
from perdure.storage.gate import Gate
from perdure.storage.records import Deadline, Key, Stored

Replay = Literal["warm", "always"]


class Clock(Protocol):
    """The wall clock, and the clock that runs since boot, both in whole milliseconds."""

    @property
    def boot(self) -> int:
        """A number that no other boot of this machine has."""
        ...

    def wall_ms(self) -> int:
        """Now, since the epoch."""
        ...

    def boot_ms(self) -> int:
        """Now, since boot; runs on in suspend and is never set."""
        ...

    def random(self) -> float:
        """Return a random number from 0 up to 1."""
        ...

    def random_bits(self, bits: int) -> int:
        """Return a random whole number of that many bits."""
        ...


class TimerHandle(Protocol):
    """One timer that has been set."""

    def cancel(self) -> None:
        """Unset it. Harmless when it has fired."""
        ...


class Timers(Protocol):
    """Calls back when a deadline has come."""

    def at(self, deadline: Deadline, callback: Callable[[], None]) -> TimerHandle:
        """Call `callback` in the loop once `deadline` has come; at once when it has already."""
        ...


class Functions(Protocol):
    """Runs step functions. `FunctionHost` does, and in a test what stands in front of it."""

    async def call(
        self,
        kind: Kind,
        fn: Callable[..., Any],
        args: tuple[Any, ...] = (),
        *,
        library: Library = "trio",
        on_cancel: Callable[[], None] | None = None,
        still_counts: Callable[[], bool] | None = None,
        on_beat: Callable[[Any], None] | None = None,
    ) -> Any:
        """Run `fn(*args)` and return what it returns, once it has ended."""
        ...

    def call_now(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run a coroutine function that never waits, here and now."""
        ...

    def statistics(self) -> FunctionStatistics:
        """Return what it is doing."""
        ...


class Modifying(Protocol):
    """What a test changes of waits, retries and streams. `modifiers.Modifiers` is the one there is."""

    def skips_sleep(self, key: Key, name: str) -> bool:
        """Whether a sleep takes no time."""
        ...

    def skips_delay(self, key: Key, name: str) -> bool:
        """Whether the next attempt of a step comes at once."""
        ...

    def times_out(self, key: Key, name: str) -> bool:
        """Whether a wait for an event times out at once."""
        ...

    def events(self, key: Key, type_: str) -> list[tuple[str, Stored]]:
        """Return the events of that type that are to come, each with a name that no other has."""
        ...

    def chunks(self) -> Iterator[Any] | None:
        """Return what the attempt under way is to yield; None where it runs."""
        ...


@dataclass(kw_only=True, slots=True)
class Host:
    """The parts that every actor of one runtime shares. Put together once, when the runtime opens."""

    clock: Clock
    timers: Timers
    gate: Gate
    codec: Codec
    functions: Functions
    limits: Limits
    replay: Replay
    idle: int = 0  # how many runs only wait, so that nobody has to look at each
    children: ChildHost | None = None  # what the engine does for the children of instances
    modifiers: Modifying | None = None  # in a test alone
    runtime: Any = None  # what `ctx.runtime` shows to user code; its class lives a floor above


def deadline_in(clock: Clock, seconds: float) -> Deadline:
    """Return the deadline `seconds` from now: within this boot the boot clock decides (law 7)."""
    after_ms = round(seconds * 1000)
    return Deadline(wall_ms=clock.wall_ms() + after_ms, boot_ms=clock.boot_ms() + after_ms, boot=clock.boot)


def remaining_ms(clock: Clock, deadline: Deadline) -> int:
    """Return how long `deadline` is off, in milliseconds; 0 or less when it has come."""
    if deadline.boot_ms is not None and deadline.boot == clock.boot:
        return deadline.boot_ms - clock.boot_ms()
    return deadline.wall_ms - clock.wall_ms()
