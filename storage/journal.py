"""The journal: what one workflow instance has already done.

One instance owns one SQLite file, and no other module touches the step and attempt tables in
it, but `restarts.py`, which supersedes rows. A step call puts two things to the journal: "has this
been done?" and "write down that it has". An ordinary step costs one insert and one update: its current
attempt stands in its own row, and only attempts that something came after are moved to a table of their own.

Invariants:
    A step is recorded once. Recording it again raises.
    What `take` returns is what was recorded, byte for byte.
    Each identity is handed out once per run of `run()`; what is left was not asked for.
    Nothing here awaits, and nothing here commits: the gate does, once a tick.
"""

from __future__ import annotations

import contextlib
from typing import Final

from perdure.errors import PerdureError, StateError
from perdure.limits import VALUE_BYTES_INLINE_MAX
from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate
from perdure.storage.records import AttemptOutcome, Deadline, LongText, StepKind, StepStatus, Stored
from perdure.storage.steps import STEP_KINDS, Identity, Step, step_of
from perdure.storage.streams import Extent, StreamTable, detail_of
from perdure.storage.values import get_value, put_value, stored_bytes

__all__ = ["Journal", "Step"]

SCAN: Final = """
    SELECT seq, kind, name, count, status, attempt, counted, coalesce(input_digest, input), output,
        output_ref, error,
        started_at, attempt_at, attempt_commit, wake_at, wake_boot, boot, config, detail
    FROM _perdure_steps WHERE superseded IS NULL AND seq > ? ORDER BY seq"""
WAITING: Final = SCAN.replace("seq > ?", "status = 'waiting'")
COMPENSATED: Final = SCAN.replace("seq > ?", "(kind = 'rollback' OR detail LIKE '%\"rollback\":true%')")
LAST: Final = """
    SELECT coalesce(max(seq), 0),
        max(coalesce(max(max(started_commit, coalesce(attempt_commit, 0), coalesce(ended_commit, 0))), 0),
            (SELECT coalesce(max(max(started_commit, coalesce(ended_commit, 0))), 0) FROM _perdure_attempts))
    FROM _perdure_steps"""
START: Final = """
    INSERT INTO _perdure_steps (seq, kind, name, count, status, attempt, counted, input, input_digest,
        started_at, attempt_at, config, detail, sensitive, started_commit, attempt_commit)
    VALUES (?1, ?2, ?3, ?4, 'running', 1, 1, ?5, ?6, ?7, ?7, ?8, ?9, ?10, ?11, ?11)"""
WAIT: Final = """
    INSERT INTO _perdure_steps (seq, kind, name, count, status, attempt, counted, started_at, wake_at,
        wake_boot, boot, config, detail, started_commit)
    VALUES (?, ?, ?, ?, 'waiting', 0, 0, ?, ?, ?, ?, ?, ?, ?)"""
WAIT_WITH_INPUT: Final = """
    INSERT INTO _perdure_steps (seq, kind, name, count, status, attempt, counted, started_at, wake_at,
        wake_boot, boot, config, detail, started_commit, input, input_digest)
    VALUES (?, ?, ?, ?, 'waiting', 0, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
ADD_FINISHED: Final = """
    INSERT INTO _perdure_steps (seq, kind, name, count, status, attempt, counted, input, input_digest,
        output, output_ref, output_bytes, started_at, ended_at, detail, sensitive, started_commit,
        ended_commit)
    VALUES (?, ?, ?, ?, 'completed', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
OPEN_STREAM: Final = """
    INSERT INTO _perdure_steps (seq, kind, name, count, status, attempt, counted, started_at, sensitive,
        started_commit)
    VALUES (?, 'stream', ?, ?, 'running', 0, 0, ?, ?, ?)"""
REOPEN_STREAM: Final = """
    UPDATE _perdure_steps SET status = 'running', ended_at = NULL, ended_commit = NULL, output_bytes = NULL
    WHERE seq = ?"""
FINISH_STREAM: Final = """
    UPDATE _perdure_steps SET status = 'completed', output_bytes = ?, ended_at = ?, ended_commit = ?,
        wake_at = NULL, detail = json_patch(ifnull(detail, '{}'), ?)
    WHERE seq = ? AND status IN ('running', 'waiting')"""
RESTART: Final = """
    UPDATE _perdure_steps SET status = 'running', attempt = ?, counted = ?, attempt_at = ?,
        attempt_commit = ?, error = NULL, heartbeat = NULL, wake_at = NULL, wake_boot = NULL, boot = NULL
    WHERE seq = ? AND status IN ('running', 'waiting')"""
FINISH: Final = """
    UPDATE _perdure_steps SET status = 'completed', output = ?, output_ref = ?, output_bytes = ?,
        ended_at = ?, ended_commit = ?, wake_at = NULL
    WHERE seq = ? AND status IN ('running', 'waiting')"""
END: Final = """
    UPDATE _perdure_steps SET status = ?, error = ?, ended_at = ?, ended_commit = ?, wake_at = NULL
    WHERE seq = ? AND status IN ('running', 'waiting')"""
DETAIL: Final = "UPDATE _perdure_steps SET detail = ? WHERE seq = ?"
RETRY_AT: Final = """
    UPDATE _perdure_steps SET status = 'waiting', counted = ?, error = ?, wake_at = ?, wake_boot = ?, boot = ?
    WHERE seq = ? AND status = 'running'"""
ADD_ATTEMPT: Final = """
    INSERT INTO _perdure_attempts (step_seq, attempt, started_at, ended_at, outcome, error, heartbeat,
        started_commit, ended_commit)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, (SELECT heartbeat FROM _perdure_steps WHERE seq = ?1), ?7, ?8)"""
HEARTBEAT: Final = "UPDATE _perdure_steps SET heartbeat = ? WHERE seq = ?"
LAST_HEARTBEAT: Final = """
    SELECT heartbeat FROM _perdure_attempts WHERE step_seq = ? AND attempt < ? AND heartbeat IS NOT NULL
    ORDER BY attempt DESC LIMIT 1"""
CANCEL_OPEN: Final = """
    UPDATE _perdure_steps SET status = 'cancelled', ended_at = ?, ended_commit = ?, wake_at = NULL
    WHERE status IN ('running', 'waiting') AND superseded IS NULL AND kind <> ?"""
CHILDREN_LEFT: Final = """
    SELECT detail FROM _perdure_steps
    WHERE kind = 'child' AND status IN ('waiting', 'cancelled') AND (superseded IS NOT NULL OR NOT ?)"""
SHIFT: Final = """
    UPDATE _perdure_steps SET wake_at = wake_at + ?, wake_boot = wake_boot + ?
    WHERE status = 'waiting' AND wake_at IS NOT NULL AND coalesce(json_extract(detail, '$.until'), 0) = 0"""


class Journal:
    """Every step of one instance, in the order of their starts."""

    def __init__(self, file: InstanceFile, gate: Gate) -> None:
        self._file = file
        self._gate = gate
        self._recorded: dict[Identity, Step] = {}
        self.unasked = self._recorded  # as `take` sees it, for the one caller to whom a call of it is dear
        self._as_read = False
        self._read = 0  # how many steps `load` has found, and how many of them are not finished
        self._unfinished = 0
        self._seq = 0
        if file.newborn is None:
            ((self._seq, last_commit),) = file.fetch(LAST)
            file.stamp = max(file.stamp, last_commit + 1)
        self.progress = 0
        self._first_stamp = file.stamp
        self._streams: StreamTable | None = None

    # -- reading ---------------------------------------------------------------------------

    def load(self) -> None:
        """Read all steps in one scan; what was taken before can be taken again."""
        if self._as_read and len(self._recorded) == self._read:
            return
        self._recorded.clear()
        self._unfinished = 0
        for row in self._file.fetch(SCAN, (0,)) if self._seq else ():
            step = step_of(row)
            self._recorded[step.kind, step.name, step.count] = step
            self._unfinished += not step.finished or step.kind == "patch"  # which code may leave out
        self._read = len(self._recorded)
        self._as_read = True

    def forget(self) -> None:
        """Have the next `load` read the file again: rows were superseded."""
        self._as_read = False

    def set_aside(self) -> None:
        """Have nothing asked for any more, until the next `load`: the calls of `run()` are over."""
        self._as_read = False
        self._recorded.clear()
        self._unfinished = 0

    def take(self, kind: StepKind, name: str, count: int) -> Step | None:
        """Return the record of a step and hand it over, or None where there is none."""
        return self._recorded.pop((kind, name, count), None)

    def other_kind(self, name: str, count: int) -> str | None:
        """Return the kind under which this name is recorded and was not asked for yet."""
        if not self._recorded:
            return None
        return next((kind for kind in STEP_KINDS if (kind, name, count) in self._recorded), None)

    @property
    def replaying(self) -> bool:
        """Whether finished steps are still to be asked for in this run."""
        return len(self._recorded) > self._unfinished or any(
            step.finished and step.kind != "patch" for step in self._recorded.values()
        )

    @property
    def left(self) -> list[Step]:
        """The recorded steps that this run has not asked for, in order."""
        return list(self._recorded.values())

    def take_patch(self, change: str) -> Step | None:
        """Return what was decided for a change of the code, or None where nothing was."""
        self._as_read = False
        return self._recorded.pop(("patch", change, 1), None)

    @property
    def left_count(self) -> int:
        """How many recorded steps this run has not asked for."""
        return len(self._recorded)

    @property
    def has_left(self) -> bool:
        """Whether this run has still to ask for something that was recorded before, patches apart."""
        return any(step.kind != "patch" and step.status != "cancelled" for step in self._recorded.values())

    def waiting_events(self) -> list[Step]:
        """Return the waits for events that are recorded as waiting and not asked for yet, in order."""
        return [s for s in self._recorded.values() if s.kind == "event" and s.status == "waiting"]

    def waiting(self) -> list[Step]:
        """Return every step that waits, as the file has it, in order."""
        return [step_of(row) for row in self._file.fetch(WAITING)]

    def children_left(self, *, superseded: bool) -> list[str | None]:
        """Return the details of child steps that have no outcome: all, or of those superseded."""
        return [detail for (detail,) in self._file.fetch(CHILDREN_LEFT, (superseded,))]

    def compensated(self) -> list[Step]:
        """Return every step that has a rollback handler, and every rollback, as the file has them."""
        return [step_of(row) for row in self._file.fetch(COMPENSATED)]

    def output(self, step: Step) -> Stored:
        """Return the recorded output of a completed step."""
        if step.output is not None:
            return step.output
        value = get_value(self._file, step.output, step.output_ref)
        return "null" if value is None else value

    # -- writing ---------------------------------------------------------------------------

    def start(
        self,
        kind: StepKind,
        name: str,
        count: int,
        *,
        at_ms: int,
        input_text: str | None = None,
        input_digest: str | None = None,
        config: str | None = None,
        detail: str | None = None,
        sensitive: str | None = None,
    ) -> Step:
        """Record that attempt 1 of a new step starts."""
        self._gate.touch(self._file)
        stamp = self._file.stamp
        step = self._new(kind, name, count, "running", at_ms)
        step.attempt = step.counted = 1
        step.attempt_at_ms, step.attempt_commit = at_ms, stamp
        step.fingerprint, step.config, step.detail = input_digest or input_text, config, detail
        self._file.execute(
            START,
            (step.seq, kind, name, count, input_text, input_digest, at_ms, config, detail, sensitive, stamp),
        )
        return step

    def wait(
        self,
        kind: StepKind,
        name: str,
        count: int,
        *,
        at_ms: int,
        wake: Deadline | None,
        config: str | None = None,
        detail: str | None = None,
        input_: tuple[str | None, str | None] | None = None,
    ) -> Step:
        """Record that a new step waits, until `wake` at the latest where that is given.

        `input_` is the text and the digest of what it was asked with, where that is to be recorded.
        """
        self._gate.touch(self._file)
        step = self._new(kind, name, count, "waiting", at_ms)
        step.wake, step.detail, step.config = wake, detail, config
        wall, boot_ms, boot = (wake.wall_ms, wake.boot_ms, wake.boot) if wake else (None, None, None)
        row = (step.seq, kind, name, count, at_ms, wall, boot_ms, boot, config, detail, self._file.stamp)
        if input_ is None:
            self._file.execute(WAIT, row)
        else:
            self._file.execute(WAIT_WITH_INPUT, (*row, *input_))
            step.fingerprint = input_[1] or input_[0]
        return step

    def add_finished(
        self,
        kind: StepKind,
        name: str,
        count: int,
        *,
        at_ms: int,
        output: Stored,
        attempts: int = 0,
        started_at_ms: int | None = None,
        input_text: str | None = None,
        input_digest: str | None = None,
        detail: str | None = None,
        sensitive: str | None = None,
    ) -> Step:
        """Record a step that starts and completes in one commit."""
        self._gate.touch(self._file)
        inline, reference, size = put_value(self._file, output)
        started = at_ms if started_at_ms is None else started_at_ms
        step = self._new(kind, name, count, "completed", started)
        stamp = self._file.stamp
        self._file.execute(
            ADD_FINISHED,
            (
                step.seq,
                kind,
                name,
                count,
                attempts,
                attempts,
                input_text,
                input_digest,
                inline,
                reference,
                size,
                started,
                at_ms,
                detail,
                sensitive,
                stamp,
                stamp,
            ),
        )
        step.output, step.output_ref = inline, reference
        self.progress += 1
        return step

    def start_again(self, step: Step, *, at_ms: int, counted: int) -> None:
        """Record that the next attempt of a step starts. Attempts before it are recorded already."""
        self._gate.touch(self._file)
        step.attempt += 1
        step.counted = counted
        step.status, step.wake, step.error = "running", None, None
        step.attempt_at_ms, step.attempt_commit = at_ms, self._file.stamp
        self._once(step, RESTART, (step.attempt, counted, at_ms, self._file.stamp, step.seq))

    def attempt_ended(
        self, step: Step, outcome: AttemptOutcome, *, at_ms: int | None, error: str | None
    ) -> None:
        """Record how the current attempt ended, where the step goes on after it."""
        self._gate.touch(self._file)
        stamp = self._file.stamp
        self._file.execute(
            ADD_ATTEMPT,
            (step.seq, step.attempt, step.attempt_at_ms, at_ms, outcome, error, step.attempt_commit, stamp),
        )
        self._void(step, at_ms)

    def retry_at(self, step: Step, wake: Deadline, *, error: str | None) -> None:
        """Record that the next attempt of a step waits until `wake`."""
        self._gate.touch(self._file)
        step.status, step.wake, step.error = "waiting", wake, error
        self._once(step, RETRY_AT, (step.counted, error, wake.wall_ms, wake.boot_ms, wake.boot, step.seq))

    def complete(self, step: Step, output: Stored | LongText | Extent | None, *, at_ms: int) -> None:
        """Record that a step has completed, with its output; `Extent` stands for a stream."""
        if output.__class__ is not str:
            if isinstance(output, Extent):
                self.complete_stream(step, output, at_ms=at_ms)
                return
            self._make_way(output)
        self._gate.touch(self._file)
        inline, reference, size = put_value(self._file, output)  # pyright: ignore[reportArgumentType]  # no stream any more; a look at each result would cost
        step.status, step.output, step.output_ref = "completed", inline, reference
        self._once(step, FINISH, (inline, reference, size, at_ms, self._file.stamp, step.seq))
        self.progress += 1

    def end(self, step: Step, status: StepStatus, *, at_ms: int, error: str | None) -> None:
        """Record that a step has failed or was cancelled."""
        self._gate.touch(self._file)
        step.status, step.error = status, error
        self._once(step, END, (status, error, at_ms, self._file.stamp, step.seq))
        if status == "failed":
            self._void(step, at_ms)
        self.progress += 1

    def set_detail(self, step: Step, detail: str) -> None:
        """Replace what a kind of step keeps besides its output."""
        self._gate.touch(self._file)
        step.detail = detail
        self._as_read = False
        self._file.execute(DETAIL, (detail, step.seq))

    def heartbeat(self, step: Step, details: str) -> None:
        """Record what the attempt under way has said last."""
        self._gate.touch(self._file)
        self._file.execute(HEARTBEAT, (details, step.seq))

    def last_heartbeat(self, step: Step) -> str | None:
        """Return what an attempt before the current one has said last."""
        rows = self._file.fetch(LAST_HEARTBEAT, (step.seq, step.attempt))
        return rows[0][0] if rows else None

    def shift(self, by_ms: int) -> None:
        """Move every waiting deadline, but those of `sleep_until`, by the length of a pause."""
        self._gate.touch(self._file)
        self._as_read = False
        self._file.execute(SHIFT, (by_ms, by_ms))

    def cancel_open(self, *, at_ms: int, but: StepKind | None = None) -> None:
        """Record every step that is still open, but those of one kind, as cancelled: it is over for them."""
        self._gate.touch(self._file)
        self._as_read = False
        self._file.execute(CANCEL_OPEN, (at_ms, self._file.stamp, but or ""))

    # -- streams ---------------------------------------------------------------------------

    @property
    def streams(self) -> StreamTable:
        """The chunks of the instance's streams."""
        if self._streams is None:
            self._streams = StreamTable(self._file, self._gate)
        return self._streams

    def open_stream(self, name: str, count: int, *, at_ms: int, sensitive: str | None) -> Step:
        """Record that a new stream is open."""
        self._gate.touch(self._file)
        step = self._new("stream", name, count, "running", at_ms)
        self._file.execute(OPEN_STREAM, (step.seq, name, count, at_ms, sensitive, self._file.stamp))
        return step

    def reopen_stream(self, step: Step) -> None:
        """Record that a closed stream is open again: a step that writes to it is run again."""
        self._gate.touch(self._file)
        self._as_read = False
        step.status = "running"
        self._once(step, REOPEN_STREAM, (step.seq,))

    def complete_stream(self, step: Step, extent: Extent, *, at_ms: int) -> None:
        """Record that a stream is closed, or that a step has completed whose result is one."""
        self._gate.touch(self._file)
        step.status, step.detail = "completed", detail_of(extent)
        self._once(step, FINISH_STREAM, (extent.bytes, at_ms, self._file.stamp, step.detail, step.seq))
        self.progress += 1

    def _void(self, step: Step, at_ms: int | None) -> None:
        """Mark what the attempt has written to streams as superseded: it has not succeeded."""
        began_here = step.attempt_commit is not None and step.attempt_commit >= self._first_stamp
        if self._streams is not None or not began_here:
            self.streams.void(
                step.seq, step.attempt, at_ms=at_ms or step.attempt_at_ms or 0, began_here=began_here
            )

    # -- inside ----------------------------------------------------------------------------

    def _new(self, kind: StepKind, name: str, count: int, status: StepStatus, at_ms: int) -> Step:
        self._seq += 1
        self._as_read = False
        step = Step()
        step.seq, step.kind, step.name, step.count = self._seq, kind, name, count
        step.status, step.started_at_ms, step.attempt, step.counted = status, at_ms, 0, 0
        step.fingerprint = step.output = step.output_ref = step.error = step.wake = None
        step.attempt_at_ms = step.attempt_commit = step.config = step.detail = None
        return step

    def _make_way(self, output: Stored | LongText | None) -> None:
        """Have a file that is in memory only written before a large value goes into it, not with it."""
        if self._file.unwritten is None or output is None or stored_bytes(output) <= VALUE_BYTES_INLINE_MAX:
            return
        with contextlib.suppress(StateError):  # it stays in memory, and whoever commits it is told
            self._gate.try_write_out(self._file)

    def _once(self, step: Step, sql: str, values: tuple[object, ...]) -> None:
        self._as_read = False
        if self._file.execute(sql, values).rowcount != 1:
            raise PerdureError(
                f"step {step.name!r} (seq {step.seq}) is not open in the journal: it was recorded already"
            )
