"""The tasks that serve a runtime: they end when the runtime has ended, and not before.

A cancellation of the program around `open_runtime` reaches its body alone. Were it to reach the
gate and the catalog's writer too, nothing could be committed any more, and a graceful shutdown
would wait for ever.

Invariants:
    A part is cancelled by `stop` alone; one that fails cancels the runtime's body.
    Ctrl-C is never raised inside a part, so none stops between two lines that belong together.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NoReturn, cast

import trio

logger: Final = logging.getLogger("perdure.engine")
EXIT_OVERRUN: Final = 75
"""The exit status of a shutdown past its stated time: `EX_TEMPFAIL`, for starting again goes on."""


class Parts:
    """The serving tasks of one runtime, in a nursery that belongs to it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: list[trio.CancelScope] = []

    def begin(self, serve: Callable[[], Awaitable[object]]) -> None:
        """Start a part that serves at once."""
        self._nursery.start_soon(self._run, serve)

    async def start(self, serve: Callable[..., Awaitable[object]]) -> None:
        """Start a part and return when it serves: it is given `task_status`, as by `trio.Nursery.start`."""
        await self._nursery.start(self._start, serve)

    def stop(self) -> None:
        """End all parts."""
        for scope in self._scopes:
            scope.cancel()

    @trio.lowlevel.enable_ki_protection
    async def _run(self, serve: Callable[[], Awaitable[object]]) -> None:
        with self._scope():
            await serve()

    @trio.lowlevel.enable_ki_protection
    async def _start(
        self, serve: Callable[..., Awaitable[object]], *, task_status: trio.TaskStatus[Any]
    ) -> None:
        with self._scope():
            await serve(task_status=task_status)

    def _scope(self) -> trio.CancelScope:
        scope = trio.CancelScope(shield=True)
        self._scopes.append(scope)
        return scope


def leave_hard(running: Sequence[str], grace_s: float) -> NoReturn:
    """Exit the process: a shutdown is past its stated time, and nothing else ends a plain function (law 5).

    What is committed stays; the attempts in `running` are lost as in a crash.
    """
    logger.critical(
        "the runtime did not come to rest within shutdown_grace_s=%g: %s; the process exits now, and these"
        " attempts are lost as in a crash. Use perdure.process_step for what must be stopped in time",
        grace_s,
        "; ".join(running) or "nothing it knows of is running",
    )
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(EXIT_OVERRUN)


def only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error in `group` where there is one only, however deep."""
    error = group.exceptions[0]
    if len(group.exceptions) > 1:
        return group
    if not isinstance(error, BaseExceptionGroup):
        return error
    return only(cast("BaseExceptionGroup[BaseException]", error))
