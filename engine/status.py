"""Where an instance stands, as programs and people are told."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from perdure.errors import PerdureError
from perdure.storage.failure import failure_summary
from perdure.storage.peek import peek_state
from perdure.storage.records import FINISHED, CatalogRow, InstanceState, Status


class InstanceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where an instance stands. `reason` says why, `wake_at` until when; `error` is a summary."""

    status: Status
    reason: str | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    wake_at: datetime | None


def status_at_rest(row: CatalogRow, path: Path) -> InstanceStatus:
    """Return where an instance stands that nobody has in memory. Runs off the loop."""
    # Until its first rest a row knows no more than that it was claimed: what its file says is newer.
    if row.birth is not None and (row.status == "queued" or not path.exists()):
        return status_of(row.status, row.reason, None, row, wake_at_ms=row.start_at_ms)
    try:
        state = peek_state(path)
    except PerdureError as error:
        return status_of(row.status, row.reason or str(error), None, row)
    if state.incarnation != row.incarnation:  # the file is still the one that this instance comes in place of
        return status_of(row.status, row.reason, None, row, wake_at_ms=row.start_at_ms)
    status = state.status if state.status in FINISHED or row.open else row.status
    return status_of(status, row.reason, state.error, state, wake_at_ms=row.wake_at_ms)


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
    )


def _time(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)
