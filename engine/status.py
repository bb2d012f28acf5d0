"""Where an instance stands, as programs and people are told."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from perdure.errors import PerdureError
from perdure.storage.failure import failure_summary
from perdure.storage.peek import peek_state
from perdure.storage.records import FINISHED, CatalogRow, InstanceState, Status, decode_rollback


class RollbackResult(msgspec.Struct, frozen=True, kw_only=True):
    """How the rollback of an instance ended; `error` is a summary of what stopped it."""

    outcome: Literal["complete", "failed"]
    error: str | None


class InstanceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where an instance stands. `reason` says why, `wake_at` until when; `error` is a summary.

    `expires_at` is when the file of one that has ended goes, where that is not kept for ever.

    `rollback` is None where nothing was rolled back, and while that is under way. `version` is that of
    the class when `run()` was first called; before, of the class that the instance was created with.
    """

    status: Status
    reason: str | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    wake_at: datetime | None
    expires_at: datetime | None = None
    rollback: RollbackResult | None = None
    version: str | None = None


def status_at_rest(row: CatalogRow, path: Path) -> InstanceStatus:
    """Return where an instance stands that nobody has in memory. Runs off the loop."""
    status = _at_rest(row, path)
    if row.expires_at_ms is None:
        return status
    return msgspec.structs.replace(status, expires_at=_time(row.expires_at_ms))


def _at_rest(row: CatalogRow, path: Path) -> InstanceStatus:
    if row.archived is not None:  # its row is all that is left
        return status_of(row.status, row.reason, None, row)
    # Until its first rest a row knows no more than that it was claimed: what its file says is newer.
    if row.birth is not None and (row.status == "queued" or not path.exists()):
        reason = "its start" if row.reason is None and row.start_at_ms is not None else row.reason
        return status_of(row.status, reason, None, row, wake_at_ms=row.start_at_ms)
    try:
        state = peek_state(path)
    except PerdureError as error:
        return status_of(row.status, row.reason or str(error), None, row)
    if state.incarnation != row.incarnation:  # the file is still the one that this instance comes in place of
        return status_of(row.status, row.reason, None, row, wake_at_ms=row.start_at_ms)
    status = state.status if state.status in FINISHED or row.open else row.status
    if state.status in FINISHED and row.status not in FINISHED:  # the catalog has still to be told
        return status_of(status, state.reason, state.error, state)
    reason = state.reason if row.open else row.reason
    return status_of(status, reason, state.error, state, wake_at_ms=row.wake_at_ms)


def with_reason(status: InstanceStatus, why: str | None) -> InstanceStatus:
    """Return a status that says what a queued instance waits for; `why` is None where that is no place."""
    return status if why is None else msgspec.structs.replace(status, reason=why)


def status_of(
    status: Status,
    reason: str | None,
    error: str | None,
    times: InstanceState | CatalogRow,
    *,
    wake_at_ms: int | None = None,
) -> InstanceStatus:
    """Return a status with the times of a row, as aware datetimes."""
    wake_ms = wake_at_ms if wake_at_ms is not None else times.wake_at_ms
    return InstanceStatus(
        status=status,
        reason=reason,
        error=None if error is None else ": ".join(failure_summary(error)),
        created_at=datetime.fromtimestamp(times.created_at_ms / 1000, UTC),
        started_at=_time(times.started_at_ms),
        ended_at=_time(times.ended_at_ms),
        wake_at=_time(wake_ms),
        rollback=_rollback(times.rollback) if isinstance(times, InstanceState) else None,
        version=times.version,
    )


def _rollback(text: str | None) -> RollbackResult | None:
    state = decode_rollback(text)
    if state is None or state.outcome == "running":
        return None
    error = bytes(state.error).decode()
    return RollbackResult(
        outcome=state.outcome, error=None if error == "null" else ": ".join(failure_summary(error))
    )


def _time(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)
