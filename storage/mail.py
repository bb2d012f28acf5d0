"""The mailbox on disk: the events and the control commands that one instance has received.

The only module that touches the message table. An event that no wait has asked for yet stays in
it, visible as undelivered; a command has been carried out when it stands there.

Invariants:
    An event is delivered at most once; delivering it again raises.
    A message is known by its token: bringing it again changes nothing.
"""

from __future__ import annotations

from typing import Final

from perdure.errors import PerdureError
from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate
from perdure.storage.records import Deadline, EventRow, Stored
from perdure.storage.values import get_value, put_value

LAST: Final = """
    SELECT coalesce(max(seq), 0), coalesce(max(max(received_commit, coalesce(delivered_commit, 0))), 0)
    FROM _perdure_messages"""
UNDELIVERED: Final = """
    SELECT seq, name, payload, payload_ref, received_at, received_boot, received_boot_id, kind
    FROM _perdure_messages
    WHERE delivered_to IS NULL AND (kind = 'event' OR kind = 'command' AND name IN ('terminate', 'restart'))
    ORDER BY seq"""
KNOWN: Final = "SELECT 1 FROM _perdure_messages WHERE token = ?"
ADD: Final = """
    INSERT INTO _perdure_messages (kind, name, payload, payload_ref, received_at, received_boot,
        received_boot_id, token, received_commit)
    VALUES ('event', ?, ?, ?, ?, ?, ?, ?, ?)"""
ADD_COMMAND: Final = """
    INSERT INTO _perdure_messages (kind, name, received_at, actor, payload, token, received_commit)
    VALUES ('command', ?, ?, ?, ?, ?, ?)"""
ADD_PAST: Final = """
    INSERT INTO _perdure_messages (kind, name, received_at, payload, received_commit, delivered_to)
    VALUES ('past', ?, ?, ?, ?, ?)"""
LAST_COMMAND: Final = """
    SELECT max(received_at) FROM _perdure_messages WHERE kind = 'command' AND name = ?"""
DISCARD: Final = """
    UPDATE _perdure_messages SET delivered_to = 0, delivered_commit = ?
    WHERE delivered_to IS NULL AND kind = 'event'"""
REPEAT: Final = """
    INSERT INTO _perdure_messages (kind, name, payload, payload_ref, received_at, received_boot,
        received_boot_id, token, received_commit)
    SELECT kind, name, payload, payload_ref, ?, ?, ?, ?, ? FROM _perdure_messages WHERE token = ?"""
DELIVER: Final = """
    UPDATE _perdure_messages SET delivered_to = ?, delivered_commit = ? WHERE seq = ? AND delivered_to IS
        NULL"""


def is_known(file: InstanceFile, token: str) -> bool:
    """Whether the message with this token has come before, be it an event or a command."""
    return bool(file.fetch(KNOWN, (token,)))


def add_command(
    file: InstanceFile, command: str, *, at_ms: int, actor: str | None, token: str | None, detail: str | None
) -> None:
    """Write down a control command. The caller has touched the gate."""
    file.execute(ADD_COMMAND, (command, at_ms, actor, detail, token, file.stamp))


def add_past(
    file: InstanceFile,
    what: str,
    *,
    at_ms: int,
    commit: int,
    detail: str | None,
    generation: int,
    is_end: bool,
) -> None:
    """Keep a fact of the instance's own row for its history: a restart is about to write over it.

    An end comes behind all else of its commit, a start before it: the sign of `delivered_to` tells them
    apart, and the generation keeps each at its place.
    """
    file.execute(ADD_PAST, (what, at_ms, detail, commit, generation if is_end else -generation))


def last_command_ms(file: InstanceFile, command: str) -> int | None:
    """Return when a command was last given, or None where it never was."""
    ((at_ms,),) = file.fetch(LAST_COMMAND, (command,))
    return None if at_ms is None else int(at_ms)


class Mail:
    """The events of one instance, oldest first.

    `terminated`: whether somebody had terminated it, since its last restart, when the file was read. Where
    it has not ended since, its process died, or its file failed, in between.
    """

    def __init__(self, file: InstanceFile, gate: Gate) -> None:
        self.terminated = False
        self._file = file
        self._gate = gate
        self._undelivered: dict[int, EventRow] = {}
        if file.newborn is not None:
            return
        ((last, last_commit),) = file.fetch(LAST)
        file.stamp = max(file.stamp, last_commit + 1)
        if last:
            self._read()

    def _read(self) -> None:
        file = self._file
        for seq, type_, payload, reference, at_ms, boot_ms, boot, kind in file.fetch(UNDELIVERED):
            if kind == "command":  # one with a payload rolls back, which stands in the instance's own row
                self.terminated = type_ == "terminate" and (self.terminated or payload is None)
                continue
            received = Deadline(wall_ms=at_ms, boot_ms=boot_ms, boot=boot)
            self._undelivered[seq] = EventRow(
                seq=seq, type=type_, payload=get_value(file, payload, reference), received=received
            )

    @property
    def undelivered(self) -> list[EventRow]:
        """The events that no wait has got yet, oldest first."""
        return list(self._undelivered.values())

    def add(self, type_: str, payload: Stored, *, at: Deadline, token: str | None) -> EventRow | None:
        """Record an event as received; None where its token says that it was recorded before."""
        if token is not None and self.knows(token):
            return None
        self._gate.touch(self._file)
        inline, reference, _ = put_value(self._file, payload)
        times = (at.wall_ms, at.boot_ms, at.boot)
        added = self._file.execute(ADD, (type_, inline, reference, *times, token, self._file.stamp))
        assert added.lastrowid is not None
        event = EventRow(seq=added.lastrowid, type=type_, payload=payload, received=at)
        self._undelivered[event.seq] = event
        return event

    def begin_anew(self, birth_token: str, generation: int, *, at: Deadline) -> None:
        """Deliver nothing of what has come so far: the instance begins anew, in that `generation`.

        An undelivered event stays as delivered to nobody (0). The one that the instance was created
        with belongs to its beginning, and comes again.
        """
        self._gate.touch(self._file)
        stamp = self._file.stamp
        self._file.execute(DISCARD, (stamp,))
        times = (at.wall_ms, at.boot_ms, at.boot)
        self._file.execute(REPEAT, (*times, f"{birth_token}-{generation}", stamp, birth_token))
        self._undelivered.clear()
        self._read()

    def knows(self, token: str) -> bool:
        """Whether the message with this token brought its event."""
        return is_known(self._file, token)

    def deliver(self, event: EventRow, step_seq: int) -> None:
        """Record that the wait with `step_seq` got the event."""
        self._gate.touch(self._file)
        if self._file.execute(DELIVER, (step_seq, self._file.stamp, event.seq)).rowcount != 1:
            raise PerdureError(f"event {event.seq} of type {event.type!r} was delivered already")
        del self._undelivered[event.seq]
