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
from perdure.actors.heartbeat import Heartbeats, last_heartbeat
from perdure.actors.host import deadline_in
from perdure.actors.retry import StepConfig
from perdure.actors.run import INTERRUPTING, Run
from perdure.actors.step_stream import StepStream, taking
from perdure.actors.streams import StreamWriter
from perdure.errors import StepTimeoutError, WorkflowCodeError
from perdure.storage.journal import Step


class Attempt:
    """The attempt under way of the recorded step `step`, as which `current_step` finds it."""

    __slots__ = ("_beats", "_began_s", "_config", "_context", "_number", "_run", "_step", "count", "name")

    def __init__(self, run: Run, step: Step, config: StepConfig) -> None:
        self.name = step.name
        self.count = step.count
        self._run = run
        self._step = step
        self._number = step.attempt
        self._config = config
        self._began_s = time.monotonic()
        self._context: StepContext | None = None
        self._beats: Heartbeats | None = None

    @property
    def context(self) -> StepContext:
        """What the function may know. Made when first asked for, as most functions never do."""
        if self._context is None:
            run = self._run
            self._beats = Heartbeats(run, self._step, sensitive=self._config.sensitive is not None)
            self._context = StepContext(
                StepName(self.name, self.count),
                attempt=self._number,
                config=self._config,
                idempotency_key=f"{run.idempotency_prefix}-{self._step.seq}",
                instance=run.instance,
                deadline_s=self._began_s + self._config.timeout_s,
                log=run.log,
                beat=self._beats.beat,
                last_heartbeat=last_heartbeat(run, self._step),
            )
        return self._context

    def run_now(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run a function whose `Callee.never_waits`: no deadline could strike in it, and no cancellation."""
        token = CURRENT.set(self)
        try:
            return self._run.host.functions.call_now(fn, args)
        finally:
            CURRENT.reset(token)
            if self._beats is not None:
                self._beats.end()

    async def run(self, callee: Callee, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run the function once. Raises what it raises, and `StepTimeoutError`."""
        timeout_s = self._config.timeout_s
        silence_s = None if self._config.heartbeat_timeout is None else self._config.heartbeat_timeout_s
        if silence_s is not None or self._number > 1:
            _ = self.context  # in the loop: its last heartbeat is in the file
        if callee.wants_context:
            args, keywords = callee.arguments(args, self.context)
            if keywords:
                fn = functools.partial(fn, **keywords)
        token = CURRENT.set(self)
        value: Any = None
        try:
            with trio.CancelScope(deadline=trio.current_time() + timeout_s) as scope:
                if silence_s is not None and self._beats is not None:
                    self._beats.watch(scope, silence_s)
                if callee.streams:
                    value = await self._run_stream(callee, fn, args, timeout_s)
                elif callee.kind == "plain":
                    value = await self._run_plain(fn, args, timeout_s)
                elif callee.kind == "process":
                    value = await self._run.host.functions.call(
                        "process", fn, args, on_beat=self.context.heartbeat
                    )
                else:
                    value = await self._run.host.functions.call(callee.kind, fn, args)
        finally:
            CURRENT.reset(token)
            if self._beats is not None:
                self._beats.end()
        if scope.cancelled_caught:
            raise self._timed_out(timeout_s, silence_s)
        return value

    def _timed_out(self, timeout_s: float, silence_s: float | None) -> StepTimeoutError:
        text = f"took longer than its timeout of {timeout_s:g} s"
        if self._beats is not None and self._beats.missed:
            text = f"sent no heartbeat for longer than its heartbeat_timeout of {silence_s:g} s"
        return StepTimeoutError(
            f"attempt {self._number} of step {self.name!r} {text}", step=self.name, attempt=self._number
        )

    async def _run_stream(
        self, callee: Callee, fn: Callable[..., Any], args: tuple[Any, ...], timeout_s: float
    ) -> StepStream[Any]:
        """Run a function that yields its result, writing down each chunk before asking for the next."""
        run = self._run
        coder = run.host.codec.coder(callee.items)
        out: StreamWriter[Any] = StreamWriter(
            run, self._step, coder, sensitive=self._config.sensitive in ("output", "both")
        )
        mocked = None if run.host.modifiers is None else run.host.modifiers.chunks()
        if mocked is not None:
            for chunk in mocked:
                await out.write(chunk)
            return StepStream(run, self._step, coder, out.extent)
        if callee.generates and callee.kind != "asyncio":
            source = fn(*args)  # which runs nothing of it yet
        elif callee.kind == "plain":
            source = await self._run_plain(fn, args, timeout_s)
        else:
            source = await run.host.functions.call(callee.kind, fn, args)
        context = self.context
        kind, take = taking(source, callee.kind, run.library, out, lambda: context.cancelled)
        if kind == "plain":
            await self._run_plain(take, (), timeout_s)
        else:
            await run.host.functions.call(kind, take, ())
        return StepStream(run, self._step, coder, out.extent)

    @property
    def place(self) -> tuple[int, int]:
        """The seq of its step, and its number. Raises `WorkflowCodeError` once it has ended."""
        if self._step.attempt != self._number or self._step.status != "running":
            raise WorkflowCodeError(
                f"a stream was written after attempt {self._number} of step {self.name!r} had ended"
            )
        return self._step.seq, self._number

    async def _run_plain(self, fn: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> Any:
        """Run a function in a thread. Nothing can stop it: it is told, and waited for (law 5)."""
        run = self._run
        context = self.context
        beats = self._beats
        assert beats is not None  # made with the context

        def overdue(why: str = f"has run for longer than its timeout of {timeout_s:g} s") -> None:
            context.cancel()  # timers go by whole milliseconds: its own deadline may be a fraction away
            context.log.warning(
                "the plain function of step %r is overdue: it %s"
                " and cannot be stopped; use perdure.process_step to have it killed in time",
                self.name,
                why,
            )
            run.overdue_begins(self.name)

        def cancelled() -> None:
            context.cancel()
            if beats.missed and run.stopping is None:
                overdue("sends no heartbeat")

        timer = run.host.timers.at(deadline_in(run.host.clock, timeout_s), overdue)
        try:
            return await run.host.functions.call(
                "plain", fn, args, library=run.library, on_cancel=cancelled,
                still_counts=lambda: run.stopping in INTERRUPTING and not context.was_told,
            )  # fmt: skip
        finally:
            timer.cancel()
            run.overdue_ends(self.name)
