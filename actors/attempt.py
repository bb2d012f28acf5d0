"""One attempt of a step: its function, run once under its timeout, and what it may know of itself.

Made by the step call when the gate has opened, and gone when the function has ended. Nobody else
runs a step function. What ran, and how that ended, is for the call to record.

Invariants:
    `Attempt.run` and `Attempt.run_now` return, or raise, only when the function has ended (law 5).
    An attempt's `StepContext` is one object, however often and however it is asked for.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import trio

from perdure.actors.callee import Callee
from perdure.actors.context import CURRENT, StepContext, StepName
from perdure.actors.host import deadline_in
from perdure.actors.retry import StepConfig
from perdure.actors.run import Run
from perdure.errors import StepTimeoutError
from perdure.storage.journal import Step


class Attempt:
    """The attempt under way of the recorded step `step`, as which `current_step` finds it."""

    __slots__ = ("_began_s", "_config", "_context", "_number", "_run", "_seq", "count", "name")

    def __init__(self, run: Run, step: Step, config: StepConfig) -> None:
        self.name = step.name
        self.count = step.count
        self._run = run
        self._seq = step.seq
        self._number = step.attempt
        self._config = config
        self._began_s = time.monotonic()
        self._context: StepContext | None = None

    @property
    def context(self) -> StepContext:
        """What the function may know. Made when first asked for, as most functions never do."""
        if self._context is None:
            run = self._run
            self._context = StepContext(
                StepName(self.name, self.count),
                attempt=self._number,
                config=self._config,
                idempotency_key=f"{run.idempotency_prefix}-{self._seq}",
                instance=run.instance,
                deadline_s=self._began_s + self._config.timeout_s,
                log=run.log,
            )
        return self._context

    def run_now(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run a function whose `Callee.never_waits`: no deadline could strike in it, and no cancellation."""
        token = CURRENT.set(self)
        try:
            return self._run.host.functions.call_now(fn, args)
        finally:
            CURRENT.reset(token)

    async def run(self, callee: Callee, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run the function once. Raises what it raises, and `StepTimeoutError`."""
        timeout_s = self._config.timeout_s
        if callee.wants_context:
            args, keywords = callee.arguments(args, self.context)
            if keywords:
                fn = functools.partial(fn, **keywords)
        token = CURRENT.set(self)
        value: Any = None
        try:
            with trio.CancelScope(deadline=trio.current_time() + timeout_s) as scope:
                if callee.kind == "plain":
                    value = await self._run_plain(fn, args, timeout_s)
                else:
                    value = await self._run.host.functions.call(callee.kind, fn, args)
        finally:
            CURRENT.reset(token)
        if scope.cancelled_caught:
            raise StepTimeoutError(
                f"attempt {self._number} of step {self.name!r} took longer than its timeout of"
                f" {timeout_s:g} s",
                step=self.name,
                attempt=self._number,
            )
        return value

    async def _run_plain(self, fn: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> Any:
        """Run a function in a thread. Nothing can stop it: it is told, and waited for (law 5)."""
        run = self._run
        context = self.context

        def overdue() -> None:
            context.cancel()  # timers go by whole milliseconds: its own deadline may be a fraction away
            context.log.warning(
                "the plain function of step %r is overdue: it has run for longer than its timeout of %g s"
                " and cannot be stopped; use perdure.process_step to have it killed in time",
                self.name,
                timeout_s,
            )
            run.overdue_begins(self.name)

        timer = run.host.timers.at(deadline_in(run.host.clock, timeout_s), overdue)
        try:
            return await run.host.functions.call(
                "plain", fn, args, library=run.library, on_cancel=context.cancel,
                still_counts=lambda: run.stopping == "shutdown" and not context.was_told,
            )  # fmt: skip
        finally:
            timer.cancel()
            run.overdue_ends(self.name)
