"""Heartbeats: how a step function says that it is alive, and how far it has got.

One attempt owns one `Heartbeats`; its `StepContext` calls `beat`, from whatever thread the function
runs in. What was said last stands in the step's row, so that the next attempt can go on from there,
also after a kill. An attempt that says nothing for `heartbeat_timeout` is timed out.

Prior art: Temporal's activity heartbeats, with `heartbeat_timeout` and the details of the last attempt.

Invariants:
    At most one heartbeat is written in `INTERVAL_MS`; the last one of an attempt always is.
    Bad details are refused where `beat` was called, and change nothing.
    Nothing is written for an attempt that has ended.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import trio

from perdure.actors.host import TimerHandle, deadline_in
from perdure.actors.run import Run
from perdure.errors import EncodingError, WorkflowCodeError
from perdure.limits import HEARTBEAT_BYTES_MAX
from perdure.storage.journal import Step
from perdure.storage.records import Stored

INTERVAL_MS: Final = 100
"""A loop may say how far it is at each turn: what nobody could read in time is not worth a write."""


class Heartbeats:
    """The heartbeats of one attempt of the recorded step `step`. May be made in any thread."""

    __slots__ = (
        "_attempt", "_ended", "_last_s", "_pending", "_run", "_said", "_scope", "_sensitive", "_step",
        "_timeout_s", "_timer", "_until_s", "_written_ms",
    )  # fmt: skip

    def __init__(self, run: Run, step: Step, *, sensitive: bool) -> None:
        self._run = run
        self._step = step
        self._sensitive = sensitive
        self._attempt = step.attempt
        self._pending: str | None = None
        self._said = False
        self._written_ms: int | None = None
        self._timer: TimerHandle | None = None
        self._ended = False
        self._scope: trio.CancelScope | None = None
        self._timeout_s = self._last_s = self._until_s = 0.0

    def watch(self, scope: trio.CancelScope, timeout_s: float) -> None:
        """Let `scope`, whose deadline is the attempt's own, end when no heartbeat comes for `timeout_s`."""
        self._scope, self._timeout_s = scope, timeout_s
        self._until_s, self._last_s = scope.deadline, trio.current_time()
        self._postpone()

    @property
    def missed(self) -> bool:
        """Whether the attempt ends, or has ended, for want of a heartbeat and not by its timeout."""
        return self._scope is not None and self._last_s + self._timeout_s < self._until_s

    @property
    def waiting(self) -> bool:
        """Whether something was said that has not been written yet."""
        return self._pending is not None

    def beat(self, details: Any) -> None:
        """Take a heartbeat, from any thread. Without details it is a sign of life alone.

        Raises `EncodingError` for details that could not be read back, `WorkflowCodeError` after the end.
        """
        if self._ended:
            raise WorkflowCodeError(
                f"heartbeat() was called after attempt {self._attempt} of step {self._step.name!r} had ended"
            )
        if details is not None or not self._said:
            self._pending = self._encoded(details)
            self._said = True
        try:
            trio.lowlevel.current_task()
        except RuntimeError:  # a worker thread, or the asyncio loop whose guest trio is
            self._run.token.run_sync_soon(self._arrived, idempotent=True)
        else:
            self._arrived()

    def end(self) -> None:
        """Write what has not been written yet: the attempt has ended."""
        self._ended = True
        self._write()

    def _encoded(self, details: Any) -> str:
        coder = self._run.host.codec.coder(Any)
        stored: Stored | None = None
        try:
            stored, _ = coder.record(details)
        except EncodingError:
            if not self._sensitive:
                raise
        if stored is None:  # out here: an error keeps the one that was being handled
            raise EncodingError("the details of a heartbeat cannot be stored (sensitive, so not shown)")
        if isinstance(stored, bytes):
            raise EncodingError(
                "the details of a heartbeat are JSON, not bytes: put them into text", path="$"
            )
        if len(stored) > HEARTBEAT_BYTES_MAX:
            raise EncodingError(
                f"the details of a heartbeat take {len(stored)} bytes, and at most {HEARTBEAT_BYTES_MAX} are"
                " kept: say how far it is, and keep the rest elsewhere",
                path="$",
            )
        return stored

    def _arrived(self) -> None:
        if self._ended:
            return
        if self._scope is not None and not self._scope.cancel_called:
            self._last_s = trio.current_time()
            self._postpone()
        if self._pending is None or self._timer is not None:
            return
        clock = self._run.host.clock
        if self._written_ms is None or clock.boot_ms() - self._written_ms >= INTERVAL_MS:
            self._write()
        else:
            self._timer = self._run.host.timers.at(deadline_in(clock, INTERVAL_MS / 1000), self._write)

    def _postpone(self) -> None:
        assert self._scope is not None
        self._scope.deadline = min(self._until_s, self._last_s + self._timeout_s)

    def _write(self) -> None:
        run, step = self._run, self._step
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pending is None or run.over or run.file.failure is not None:
            return
        if step.status == "running" and step.attempt == self._attempt:
            self._written_ms = run.host.clock.boot_ms()
            run.journal.heartbeat(step, self._pending)
        self._pending = None


def last_heartbeat(run: Run, step: Step) -> Any:
    """Return the details of the last heartbeat of the attempts before this one, None where there is none."""
    if step.attempt == 1:
        return None
    stored = run.journal.last_heartbeat(step)
    return None if stored is None else msgspec.json.decode(stored)
