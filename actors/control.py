"""Commands to one warm instance: events, pause, resume, terminate, restart, and its deletion.

Each writes what was asked, and who asked, into the file's open transaction, and stops the run under
way where it has to. The actor reads from the file, and from `ending`, what is to become of it; the
caller passes the gate before the command is acknowledged.

Invariants:
    A command is one transaction: it stands whole in the file, with its effect, or not at all.
    A command is known by its token, and takes effect once.
    A refused command has written nothing (law 13).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, get_args

import msgspec

from perdure.actors.bounds import Bounds
from perdure.actors.host import Host, deadline_in
from perdure.actors.mailbox import Mailbox
from perdure.actors.offspring import Children
from perdure.actors.rollback import InstanceRollback
from perdure.actors.run import Run
from perdure.errors import InstanceFinishedError, InvalidArgumentError, StepNotFoundError
from perdure.storage.continuations import clear
from perdure.storage.files import InstanceFile
from perdure.storage.journal import Journal
from perdure.storage.lifecycle import Lifecycle
from perdure.storage.names import check_step_name
from perdure.storage.records import FINISHED, Deadline, Key, StepKind, Stored
from perdure.storage.restarts import Target, cancel_superseded, find_target, step_names, supersede
from perdure.storage.values import stored_bytes

Ending = Literal["terminate", "shutdown", "delete"]
KINDS: Final[tuple[str, ...]] = get_args(StepKind)
COUNT_MAX: Final = 2**31 - 1
"""Of the uses of one name."""
TOLD_MAX: Final = 12
"""How many step names an error lists."""


class RestartFrom(msgspec.Struct, frozen=True, array_like=True):
    """From where an instance is restarted: the `count`th use of a step's name, or the very beginning."""

    step: str | None = None
    count: int = 1
    kind: str = "do"

    def check(self) -> None:
        """Refuse what can be no step. Raises `InvalidArgumentError`, `InvalidNameError`."""
        if self.step is None:
            if self.count != 1 or self.kind != "do":
                raise InvalidArgumentError(
                    "restart: count and kind say which step is meant; name it with from_step as well"
                )
            return
        check_step_name(self.step)
        if type(self.count) is not int or not 1 <= self.count <= COUNT_MAX:
            raise InvalidArgumentError(
                f"restart: count={self.count!r}: it must be a whole number from 1 to {COUNT_MAX:,}"
            )
        if self.kind not in KINDS:
            raise InvalidArgumentError(f"restart: kind={self.kind!r}: it must be one of {', '.join(KINDS)}")


class Control:
    """What commands do to one warm instance. `run` tells which run is under way, if any is.

    `ending` says that the instance, or its life in this process, is to end; `touched`, that somebody has
    given a command since whoever unset it.
    """

    def __init__(
        self,
        key: Key,
        file: InstanceFile,
        host: Host,
        *,
        lifecycle: Lifecycle,
        journal: Journal,
        mailbox: Mailbox,
        children: Children,
        rollback: InstanceRollback,
        bounds: Bounds | None,
        run: Callable[[], Run | None],
    ) -> None:
        asked = mailbox.terminated and lifecycle.state.status not in FINISHED
        self.ending: Ending | None = "terminate" if asked else None
        self.touched = False
        self.deletion_token: str | None = None
        self._key = key
        self._file = file
        self._host = host
        self._lifecycle = lifecycle
        self._journal = journal
        self._mailbox = mailbox
        self._children = children
        self._rollback = rollback
        self._bounds = bounds
        self._run = run

    def receive(self, type_: str, payload: Stored, *, token: str | None) -> None:
        """Put an event into the file and hand it on.

        Raises `InstanceFinishedError`, and `LimitExceededError` where it is too large.
        """
        if not self._was_done(f"event {type_!r}", token):
            if self._bounds is not None:
                size = stored_bytes(payload)
                what = f"an event of type {type_!r} takes {size:,} bytes"
                self._bounds.check("event_bytes_max", what, size)
            self._mailbox.receive(type_, payload, token=token)

    def pause(self, *, who: str | None, token: str | None) -> None:
        """Let steps under way finish, start no more, freeze the timers."""
        pausing = self._lifecycle.state.status in ("paused", "waiting_for_pause")
        if self._was_done("pause", token) or pausing or not self._command("pause", who, token):
            return
        now = deadline_in(self._host.clock, 0)
        run = self._run()
        by = f"by {who}" if who else None
        if run is None or run.pause():
            self._lifecycle.set_status("paused", reason=by, paused=now)
        else:
            self._lifecycle.set_status("waiting_for_pause", reason=by, paused=now)

    def resume(self, *, who: str | None, token: str | None) -> None:
        """Take a pause back: waiting deadlines move by its length. Nothing, where there is no pause."""
        state = self._lifecycle.state
        if self._was_done("resume", token) or state.status not in ("paused", "waiting_for_pause", "dead"):
            return
        if not self._command("resume", who, token):
            return
        if state.paused is not None and state.status == "paused":
            self._journal.shift(max(0, deadline_in(self._host.clock, 0).since(state.paused)))
        run = self._run()
        if run is not None:
            run.unpause()
        self._lifecycle.set_status("running")

    def terminate(self, *, who: str | None, token: str | None, rollback: bool = False) -> None:
        """End the instance: attempts under way are cancelled, and waited for.

        With `rollback` what its steps did is undone before it ends, and it goes on until that is done.
        """
        detail = '{"rollback":true}' if rollback else None
        if self._was_done("terminate", token) or not self._command("terminate", who, token, detail=detail):
            return
        if rollback and self._lifecycle.state.started_at_ms is not None:
            self._roll_back()
            return
        self.ending = "terminate"
        run = self._run()
        if run is not None:
            run.stop("terminate")
        else:
            at_ms = self._host.clock.wall_ms()
            self._rollback.break_off()
            self._journal.cancel_open(at_ms=at_ms)
            self._lifecycle.end("terminated", at_ms=at_ms)

    def _roll_back(self) -> None:
        """Begin the rollback; one that is under way goes on as it is."""
        if not self._rollback.under_way:
            self._rollback.terminate()
            run = self._run()
            if run is not None:
                run.stop("terminate")

    def restart(self, origin: RestartFrom, *, who: str | None, token: str | None) -> None:
        """Have the instance run again, from the beginning or from one of its steps, whatever its status.

        All of it is one transaction with the command's own row. A run under way is stopped; what its
        attempts still write lands in rows that no later run looks at, or is known as interrupted.

        Raises `StepNotFoundError`.
        """
        if token is not None and self._lifecycle.knows(token):
            return
        target = None if origin.step is None else self._find(origin)
        state = self._lifecycle.state
        detail: dict[str, Any] = {"generation": state.generation + 1, "status": state.status}
        if origin.step is not None:
            detail |= {"from_step": origin.step, "count": origin.count, "kind": origin.kind}
        timeout = self._timeout_anew()
        self._command("restart", who, token, detail=msgspec.json.encode(detail).decode())
        supersede(self._file, self._host.gate, state.generation + 1, target)
        if target is None:
            self._mailbox.begin_anew(f"birth-{state.incarnation}", state.generation + 1)
        self._lifecycle.begin_anew(timeout)
        if self.ending == "terminate":
            self.ending = None
        self._journal.forget()
        self._journal.load()
        self._mailbox.forget_waits()
        run = self._run()
        if run is not None:
            run.stop("restart")
        else:
            self.old_run_ended()

    def old_run_ended(self) -> None:
        """Close what a run that was stopped by a restart has left open: nothing looks at it any more."""
        at_ms = self._host.clock.wall_ms()
        cancel_superseded(self._file, self._host.gate, at_ms=at_ms)
        self._journal.streams.void_superseded(at_ms=at_ms)
        self._children.superseded()

    def continue_as_new(self, latest: str | None, params: Stored, which: Literal["latest", "same"]) -> None:
        """Begin the next generation with other params and an empty journal. In one transaction.

        Only from `run()`, with no step open. Events that nobody has got yet are there for what comes.
        """
        state = self._lifecycle.state
        version = latest if which == "latest" else state.version
        generation = state.generation + 1
        detail = msgspec.json.encode({"generation": generation, "version": version}).decode()
        self._command("continued as new", "run()", None, detail=detail)
        clear(self._file, self._host.gate, generation=generation, keep_patches=which == "same")
        self._lifecycle.continue_as_new(params, version)
        self._journal.forget()
        run = self._run()
        assert run is not None
        run.stop("restart")

    def delete(self, token: str | None) -> None:
        """End the life of an instance that is to be removed. Its file goes once that is at rest."""
        self.ending, self.deletion_token = "delete", token
        run = self._run()
        if run is not None:
            run.stop("delete")

    def _find(self, origin: RestartFrom) -> Target:
        assert origin.step is not None
        target = find_target(self._file, origin.kind, origin.step, origin.count)
        if target is not None:
            return target
        there = step_names(self._file, TOLD_MAX + 1)
        named = [f"{kind} {name!r}" + (f" ({uses} times)" if uses > 1 else "") for kind, name, uses in there]
        told = ", ".join(named[:TOLD_MAX]) + (" and more" if named[TOLD_MAX:] else "")
        use = f" (use {origin.count})" if origin.count > 1 else ""
        raise StepNotFoundError(
            f"{self._key} has no {origin.kind} step {origin.step!r}{use} to restart from; it has:"
            f" {told or 'no step yet'}",
            step=origin.step,
        )

    def _timeout_anew(self) -> Deadline | None:
        """Return the deadline of the whole run, as long from now as it was from its last beginning."""
        state = self._lifecycle.state
        if state.timeout is None:
            return None
        begun_ms = self._lifecycle.last_restart_ms() or state.created_at_ms
        return deadline_in(self._host.clock, (state.timeout.wall_ms - begun_ms) / 1000)

    def _command(
        self, command: str, who: str | None, token: str | None, *, detail: str | None = None
    ) -> bool:
        return self._lifecycle.command(
            command, at_ms=self._host.clock.wall_ms(), actor=who, token=token, detail=detail
        )

    def _was_done(self, what: str, token: str | None) -> bool:
        """Whether a finished instance got this very command before it ended: its reply was lost.

        Raises `InstanceFinishedError` for any other command to a finished one.
        """
        status = self._lifecycle.state.status
        if status in FINISHED:
            if token is not None and (self._lifecycle.knows(token) or self._mailbox.knows(token)):
                return True
            raise InstanceFinishedError(
                f"{self._key} has finished ({status}), so {what} cannot reach it; restart() runs it again",
                workflow=self._key.workflow,
                instance_id=self._key.id,
            )
        return False
