"""The instance's own row: what it is, where it stands, how it ended.

The only module that touches the instance table. Commands stand in the mailbox.

Invariants:
    There is exactly one row, written when the file is born and never deleted.
    A finished instance keeps its outcome; only a restart makes it unfinished again, and the history keeps it.
    A command is carried out once, known by its token.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec.structs import replace

from perdure.errors import InstanceDamagedError
from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate
from perdure.storage.mail import add_command, add_past, is_known, last_command_ms
from perdure.storage.records import Birth, Deadline, InstanceState, RollbackState, Status, Stored
from perdure.storage.values import get_value, put_value

BORN: Final = """
    INSERT INTO _perdure_instance (one, workflow, id, incarnation, epoch, version, status, params,
        params_ref, created_at, parent, tags, timeout_at, timeout_boot, timeout_boot_id, schedule, retention,
        created_commit)
    VALUES (1, ?, ?, ?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
READ: Final = """
    SELECT workflow, id, incarnation, epoch, version, status, reason, params, params_ref, output,
        output_ref, error, created_at, started_at, ended_at, wake_at, paused_at, paused_boot,
        paused_boot_id, replays, parent, tags, timeout_at, timeout_boot, timeout_boot_id,
        generation, schedule, rollback, retention,
        max(created_commit, coalesce(started_commit, 0), coalesce(ended_commit, 0))
    FROM _perdure_instance"""
OWN: Final = "UPDATE _perdure_instance SET epoch = ?"
STARTED: Final = """
    UPDATE _perdure_instance SET status = 'running', reason = NULL, version = ?, started_at = ?,
        started_commit = ?
    WHERE started_at IS NULL"""
RUN_AGAIN: Final = "UPDATE _perdure_instance SET replays = replays + 1"
STATUS: Final = """
    UPDATE _perdure_instance SET status = ?, reason = ?, wake_at = ?, paused_at = ?, paused_boot = ?,
        paused_boot_id = ?"""
ENDED: Final = """
    UPDATE _perdure_instance SET status = ?, reason = ?, output = ?, output_ref = ?, output_bytes = ?,
        error = ?, ended_at = ?, ended_commit = ?, wake_at = NULL, paused_at = NULL"""

ROLLBACK: Final = "UPDATE _perdure_instance SET rollback = ?"

PAST: Final = """
    SELECT started_at, started_commit, ended_at, ended_commit, status, json_extract(error, '$.message')
    FROM _perdure_instance"""
CONTINUE: Final = """
    UPDATE _perdure_instance SET generation = generation + 1, status = 'queued', reason = NULL, params = ?,
        params_ref = ?, version = ?, started_at = NULL, started_commit = NULL, wake_at = NULL"""
BEGIN_ANEW: Final = """
    UPDATE _perdure_instance SET generation = generation + 1, status = 'queued', reason = NULL, output = NULL,
        output_ref = NULL, output_bytes = NULL, error = NULL, started_at = NULL, started_commit = NULL,
        ended_at = NULL, ended_commit = NULL, wake_at = NULL, paused_at = NULL, paused_boot = NULL,
        paused_boot_id = NULL, rollback = NULL, version = NULL, timeout_at = ?, timeout_boot = ?,
        timeout_boot_id = ?"""


class Lifecycle:
    """The state of one instance; `state` is the row as last written."""

    def __init__(self, file: InstanceFile, gate: Gate) -> None:
        self._file = file
        self._gate = gate
        if file.newborn is not None:
            self.state = file.newborn
            return
        self.state, last_commit = _read(file)
        file.epoch = self.state.epoch
        file.stamp = max(file.stamp, last_commit + 1)

    def own(self, epoch: int) -> None:
        """Take the file over as its owner of `epoch`; an older owner's writes are refused from then on."""
        self._gate.touch(self._file)
        self._file.execute(OWN, (epoch,))
        self._file.epoch = epoch
        self.state = replace(self.state, epoch=epoch)

    def started(self, at_ms: int, version: str | None) -> None:
        """Record the first start of `run()`, and of which version its class is.

        It may be newer than the one it was created under; a continuation keeps the version it was given.
        """
        self._gate.touch(self._file)
        state = self.state
        if state.generation > 1 and state.version is not None:
            version = state.version
        self._file.execute(STARTED, (version, at_ms, self._file.stamp))
        self.state = replace(state, status="running", reason=None, started_at_ms=at_ms, version=version)

    def run_again(self) -> None:
        """Record that `run()` is called once more from the top."""
        self._gate.touch(self._file)
        self._file.execute(RUN_AGAIN)
        self.state = replace(self.state, replays=self.state.replays + 1)

    def set_status(
        self,
        status: Status,
        *,
        reason: str | None = None,
        wake_at_ms: int | None = None,
        paused: Deadline | None = None,
    ) -> None:
        """Record an unfinished status, why, until when, and where it is paused since when."""
        state = self.state
        if (state.status, state.reason, state.wake_at_ms, state.paused) == (
            status,
            reason,
            wake_at_ms,
            paused,
        ):
            return
        self._gate.touch(self._file)
        self._file.execute(STATUS, (status, reason, wake_at_ms, *_columns(paused)))
        self.state = replace(state, status=status, reason=reason, wake_at_ms=wake_at_ms, paused=paused)

    def set_rollback(self, rollback: RollbackState) -> None:
        """Record how the rollback of the instance stands."""
        text = msgspec.json.encode(rollback).decode()
        self._gate.touch(self._file)
        self._file.execute(ROLLBACK, (text,))
        self.state = replace(self.state, rollback=text)

    def end(
        self,
        status: Status,
        *,
        at_ms: int,
        output: Stored | None = None,
        error: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Record how the instance ended."""
        self._gate.touch(self._file)
        inline, reference, size = put_value(self._file, output)
        self._file.execute(ENDED, (status, reason, inline, reference, size, error, at_ms, self._file.stamp))
        self.state = replace(
            self.state, status=status, reason=reason, output=output, error=error, ended_at_ms=at_ms,
            wake_at_ms=None, paused=None,
        )  # fmt: skip

    def command(
        self, command: str, *, at_ms: int, actor: str | None, token: str | None, detail: str | None = None
    ) -> bool:
        """Record a control command; False where its token says that it was carried out before."""
        if token is not None and self.knows(token):
            return False
        self._gate.touch(self._file)
        add_command(self._file, command, at_ms=at_ms, actor=actor, token=token, detail=detail)
        return True

    def begin_anew(self, timeout: Deadline | None) -> None:
        """Make the instance one that has not started, of the next generation, with this deadline.

        How the generation before it started and ended stays in the history.
        """
        self._gate.touch(self._file)
        started_ms, started_commit, ended_ms, ended_commit, status, error = self._file.fetch(PAST)[0]
        if started_commit is not None:
            add_past(
                self._file,
                "instance started",
                at_ms=started_ms,
                commit=started_commit,
                detail=None,
                generation=self.state.generation,
                is_end=False,
            )
        if ended_commit is not None:
            add_past(
                self._file,
                f"instance {status}",
                at_ms=ended_ms,
                commit=ended_commit,
                detail=error,
                generation=self.state.generation,
                is_end=True,
            )
        self._file.execute(BEGIN_ANEW, _columns(timeout))
        self.state = replace(
            self.state, generation=self.state.generation + 1, status="queued", reason=None, output=None,
            error=None, started_at_ms=None, ended_at_ms=None, wake_at_ms=None, paused=None, rollback=None,
            version=None, timeout=timeout,
        )  # fmt: skip

    def continue_as_new(self, params: Stored, version: str | None) -> None:
        """Make the instance one that has not started, of the next generation, with these params.

        Its deadline stands: that is of the instance, however often it continues.
        """
        self._gate.touch(self._file)
        inline, reference, _ = put_value(self._file, params)
        self._file.execute(CONTINUE, (inline, reference, version))
        self.state = replace(
            self.state, generation=self.state.generation + 1, status="queued", reason=None, params=params,
            version=version, started_at_ms=None, wake_at_ms=None,
        )  # fmt: skip

    def last_restart_ms(self) -> int | None:
        """Return when the instance was last restarted, or None where it never was."""
        return last_command_ms(self._file, "restart") if self.state.generation > 1 else None

    def knows(self, token: str) -> bool:
        """Whether the command with this token was carried out."""
        return is_known(self._file, token)


def bear(file: InstanceFile, gate: Gate, birth: Birth, params: Stored | None, *, epoch: int) -> None:
    """Write the instance's own row into its file; the readers of a new one need no query then.

    A file that has no row yet is not always empty: one that was not just made is read all the same.
    """
    file.epoch = epoch
    gate.touch(file)
    inline, reference, _ = put_value(file, params)
    file.execute(
        BORN,
        (
            birth.workflow,
            birth.id,
            birth.incarnation,
            epoch,
            birth.version,
            inline,
            reference,
            birth.created_at_ms,
            birth.parent,
            birth.tags,
            *_columns(birth.timeout),
            birth.schedule,
            birth.retention,
            file.stamp,
        ),
    )
    if not file.is_new:
        return
    file.newborn = InstanceState(
        workflow=birth.workflow,
        id=birth.id,
        incarnation=birth.incarnation,
        epoch=epoch,
        version=birth.version,
        status="queued",
        reason=None,
        params=params,
        output=None,
        error=None,
        created_at_ms=birth.created_at_ms,
        started_at_ms=None,
        ended_at_ms=None,
        wake_at_ms=None,
        paused=None,
        replays=0,
        parent=birth.parent,
        tags=birth.tags,
        timeout=birth.timeout,
        schedule=birth.schedule,
        retention=birth.retention,
    )


def is_born(file: InstanceFile) -> bool:
    """Whether the file holds its instance's row: a kill can fall between the file and the row."""
    return bool(file.fetch("SELECT 1 FROM _perdure_instance"))


def read_state(file: InstanceFile) -> InstanceState:
    """Return the instance's own row. Raises `InstanceDamagedError`."""
    return _read(file)[0]


def _read(file: InstanceFile) -> tuple[InstanceState, int]:
    """Return the instance's own row, and the last of the commits that wrote its facts."""
    rows = file.fetch(READ)
    if not rows:
        raise InstanceDamagedError(f"the file {file.path} has lost its instance: restore it from a copy")
    (row,) = rows
    (
        workflow,
        id_,
        incarnation,
        epoch,
        version,
        status,
        reason,
        params,
        params_ref,
        output,
        output_ref,
        error,
        *times,
    ) = row
    (
        created_at,
        started_at,
        ended_at,
        wake_at,
        paused_at,
        paused_boot,
        paused_boot_id,
        replays,
        parent,
        tags,
        timeout_at,
        timeout_boot,
        timeout_boot_id,
        generation,
        schedule,
        rollback,
        retention,
        last_commit,
    ) = times
    state = InstanceState(
        workflow=workflow,
        id=id_,
        incarnation=incarnation,
        epoch=epoch,
        version=version,
        status=status,
        reason=reason,
        params=get_value(file, params, params_ref),
        output=get_value(file, output, output_ref),
        error=error,
        created_at_ms=created_at,
        started_at_ms=started_at,
        ended_at_ms=ended_at,
        wake_at_ms=wake_at,
        paused=_deadline(paused_at, paused_boot, paused_boot_id),
        replays=replays,
        parent=parent,
        tags=tags,
        timeout=_deadline(timeout_at, timeout_boot, timeout_boot_id),
        generation=generation,
        schedule=schedule,
        rollback=rollback,
        retention=retention,
    )
    return state, last_commit


def _columns(deadline: Deadline | None) -> tuple[int | None, int | None, int | None]:
    return (deadline.wall_ms, deadline.boot_ms, deadline.boot) if deadline else (None, None, None)


def _deadline(wall_ms: int | None, boot_ms: int | None, boot: int | None) -> Deadline | None:
    return None if wall_ms is None else Deadline(wall_ms=wall_ms, boot_ms=boot_ms, boot=boot)
