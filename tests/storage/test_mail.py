"""The mailbox on disk: each event once, in the order in which it came."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perdure.errors import PerdureError
from perdure.limits import VALUE_BYTES_INLINE_MAX
from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate
from perdure.storage.mail import Mail
from perdure.storage.records import Deadline

Reopen = Callable[[InstanceFile], InstanceFile]
NOW = Deadline(wall_ms=5_000, boot_ms=50, boot=3)
MESSAGE = "the message that brings it"


def test_events_are_kept_in_order_with_their_times(born: InstanceFile, gate: Gate, reopened: Reopen) -> None:
    mail = Mail(born, gate)
    for payload in ("1", '"' + "x" * VALUE_BYTES_INLINE_MAX + '"', "3"):
        mail.add("item", payload, at=NOW, token=None)

    again = Mail(reopened(born), gate)

    assert mail.undelivered == again.undelivered
    assert [1, 2, 3] == [event.seq for event in again.undelivered]
    assert [NOW] * 3 == [event.received for event in again.undelivered]


def test_an_event_is_delivered_once(born: InstanceFile, gate: Gate) -> None:
    mail = Mail(born, gate)
    event = mail.add("item", "1", at=NOW, token=None)
    assert event is not None

    mail.deliver(event, 9)

    assert [] == mail.undelivered
    with pytest.raises(PerdureError, match="delivered already"):
        mail.deliver(event, 10)
    assert [(9,)] == born.fetch("SELECT delivered_to FROM events")


def test_a_delivered_event_is_not_there_for_the_next_owner(
    born: InstanceFile, gate: Gate, reopened: Reopen
) -> None:
    mail = Mail(born, gate)
    first = mail.add("item", "1", at=NOW, token=None)
    mail.add("item", "2", at=NOW, token=None)
    assert first is not None
    mail.deliver(first, 9)

    again = Mail(reopened(born), gate)

    assert [2] == [event.seq for event in again.undelivered]
    third = again.add("item", "3", at=NOW, token=None)
    assert third is not None
    assert 3 == third.seq


def test_the_message_that_brought_an_event_is_known_by_its_token(
    born: InstanceFile, gate: Gate, reopened: Reopen
) -> None:
    mail = Mail(born, gate)
    assert not mail.knows(MESSAGE)
    assert mail.add("item", "1", at=NOW, token=MESSAGE) is not None
    assert mail.add("item", "1", at=NOW, token=MESSAGE) is None

    again = Mail(reopened(born), gate)

    assert again.knows(MESSAGE)
    assert again.add("item", "1", at=NOW, token=MESSAGE) is None
    assert 1 == len(again.undelivered)
