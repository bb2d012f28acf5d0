"""The test kit: a clock that jumps, a runtime for tests that replays all the time, and introspection.

With `VirtualClock` a year of sleeping passes in milliseconds: whenever nothing is under way, in
the runtime or in the test, time jumps to the next timer. It counts the runtime's own work in
threads, which trio's autojumping clock does not see. `introspect` changes what single steps, sleeps and
waits do, and waits for them.

>>> import perdure, trio
>>> from perdure.testing import open_test_runtime
>>> class Nap(perdure.WorkflowEntrypoint):
...     async def run(self, event, step):
...         await step.sleep("nap", "1 year")
...         return "rested"
>>> async def main(folder):
...     async with open_test_runtime(folder, workflows=[Nap]) as runtime:
...         instance = await runtime.create(Nap)
...         return await instance.result()
>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     trio.run(main, folder)
'rested'
"""

from __future__ import annotations

import contextlib
import math
import os
import random
from collections.abc import AsyncGenerator, Generator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import trio
import trio.testing

from perdure.actors.host import Replay
from perdure.actors.modifiers import Modifiers
from perdure.engine.app import App
from perdure.engine.introspection import Introspection
from perdure.engine.opening import open_runtime
from perdure.engine.replay_check import Divergence, ReplayReport, replay_check
from perdure.engine.runtime import Runtime
from perdure.limits import Limits
from perdure.storage.disk import Disk
from perdure.storage.records import Durability

__all__ = [
    "Divergence",
    "Introspection",
    "ReplayReport",
    "VirtualClock",
    "introspect",
    "open_test_runtime",
    "replay_check",
]

LOOK_S: Final = 0.0005
"""How often the clock looks again while the runtime works in a thread."""


class VirtualClock:
    """A clock that stands still while anything is under way and else jumps to the next timer.

    `start` is the wall clock's first reading, an aware datetime; `seed` makes `step.random` and
    jitter repeatable. `boot` may be given to play a restart of the machine.

    >>> clock = VirtualClock()
    >>> before = clock.wall_ms()
    >>> clock.advance(60)
    >>> clock.wall_ms() - before
    60000
    """

    def __init__(self, *, start: datetime | None = None, seed: int = 0, boot: int = 1) -> None:
        first = start or datetime(2030, 1, 1, tzinfo=UTC)
        self._wall_ms = round(first.timestamp() * 1000)
        self._boot_ms = 1_000_000
        self._boot = boot
        self._random = random.Random(seed)  # repeatable on purpose
        self._runtime: Runtime | None = None
        self._moved = trio.Event()
        self._standing = 0

    @property
    def boot(self) -> int:
        """The number of this boot."""
        return self._boot

    @property
    def wall_look_ms(self) -> float:
        """Never: `set_wall` ends the wait."""
        return math.inf

    def wall_ms(self) -> int:
        """Now, in milliseconds since the epoch."""
        return self._wall_ms

    def boot_ms(self) -> int:
        """Now, in milliseconds since boot."""
        return self._boot_ms

    def random(self) -> float:
        """Return a repeatable random number from 0 up to 1."""
        return self._random.random()

    def random_bits(self, bits: int) -> int:
        """Return a random number that no other clock draws, for ids."""
        return int.from_bytes(os.urandom((bits + 7) // 8)) >> (-bits % 8)

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        self._wall_ms += round(seconds * 1000)
        self._boot_ms += round(seconds * 1000)
        self._moved.set()

    def set_wall(self, when: datetime) -> None:
        """Set the wall clock, as an administrator or a time server does; the boot clock runs on."""
        self._wall_ms = round(when.timestamp() * 1000)
        self._moved.set()

    def reboot(self) -> None:
        """Play a restart of the machine: another boot, whose clock starts anew."""
        self._boot += 1
        self._boot_ms = 1_000

    @contextlib.contextmanager
    def standing(self) -> Generator[None]:
        """Keep time from jumping while inside, for a test that looks at what it must not miss."""
        self._standing += 1
        try:
            yield
        finally:
            self._standing -= 1

    def bind(self, runtime: Runtime) -> None:
        """Watch this runtime for work that is under way. The runtime calls this when it opens."""
        self._runtime = runtime

    async def wait(self, delay_ms: float | None, changed: trio.Event) -> None:
        """Return when `changed` is set, when the clock was moved, or by a jump over `delay_ms`."""
        self._moved = trio.Event()
        async with trio.open_nursery() as nursery:
            for event in (changed, self._moved):
                nursery.start_soon(self._end_with, event, nursery.cancel_scope)
            if delay_ms is not None:
                nursery.start_soon(self._jump, delay_ms, nursery.cancel_scope)

    async def _end_with(self, event: trio.Event, scope: trio.CancelScope) -> None:
        await event.wait()
        scope.cancel()

    async def _jump(self, delay_ms: float, scope: trio.CancelScope) -> None:
        while True:
            await trio.testing.wait_all_tasks_blocked()
            if not self._standing and (self._runtime is None or self._runtime.is_idle):
                break
            await trio.sleep(LOOK_S)
        self._wall_ms += round(delay_ms)
        self._boot_ms += round(delay_ms)
        scope.cancel()


@contextlib.asynccontextmanager
async def open_test_runtime(
    path: str | os.PathLike[str], app: App | None = None, *, workflows: Sequence[type] = (), env: Any = None,
    replay: Replay = "always", durability: Durability = "process", clock: VirtualClock | None = None,
    limits: Limits | None = None, disk: Disk | None = None,
) -> AsyncGenerator[Runtime]:  # fmt: skip
    """Open a runtime for a test: on a virtual clock, with `replay="always"`, without syncs.

    Code that passes here survives a replay after every step. Errors as in `open_runtime`.
    """
    clock = clock or VirtualClock()
    async with open_runtime(
        path,
        app,
        workflows=workflows,
        env=env,
        replay=replay,
        durability=durability,
        clock=clock,
        limits=limits,
        disk=disk,
        modifiers=Modifiers(clock.standing),
    ) as runtime:
        yield runtime


def introspect(
    runtime: Runtime,
    workflow: type | str,
    id: str | None = None,  # noqa: A002 - as in Runtime.create
) -> Introspection:
    """Look into one instance, or into all of a workflow, and change what their steps, sleeps and waits do.

    The instance need not exist yet. The changes end with the block; those of one instance come before
    those of its workflow. Raises `InvalidArgumentError` where the same is introspected already, and in a
    runtime that `open_test_runtime` has not opened.

    >>> import perdure, trio, tempfile
    >>> async def ask(question):
    ...     raise ConnectionError("no model in a test")
    >>> class Answer(perdure.WorkflowEntrypoint):
    ...     async def run(self, event, step):
    ...         return await step.do("ask", ask, event.payload, retries=2)
    >>> async def main(folder):
    ...     async with open_test_runtime(folder, workflows=[Answer]) as runtime:
    ...         with introspect(runtime, Answer, "a") as answer:
    ...             answer.mock_step_error("ask", ConnectionError("busy"), times=2)
    ...             answer.mock_step_result("ask", "42")
    ...             answer.disable_retry_delays()
    ...             instance = await runtime.create(Answer, params="what?", id="a")
    ...             return await instance.result()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trio.run(main, folder)
    '42'
    """
    return runtime.introspection(workflow, id)
