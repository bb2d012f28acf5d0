"""The mailbox: which event goes to which wait, over an instance's real file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from perdure.actors.mailbox import Mailbox, Wait, delivered, wait_detail
from perdure.storage.disk import Disk
from perdure.storage.files import create_file, open_file
from perdure.storage.gate import Gate
from perdure.storage.journal import Journal
from perdure.storage.lifecycle import bear
from perdure.storage.mail import Mail
from perdure.storage.records import Birth, Deadline, Stored
from perdure.testing import VirtualClock


class Post:
    """An instance's mailbox with what it stands on."""

    def __init__(self, path: Path) -> None:
        create_file(path, disk=Disk(), durable=False)
        self.file = open_file(path, disk=Disk(), durability="process")
        gate = Gate(durability="process", threads_max=1)
        bear(self.file, gate, Birth(workflow="W", id="a", incarnation=1, created_at_ms=0), None, epoch=1)
        self.clock = VirtualClock()
        self.journal = Journal(self.file, gate)
        self.mail = Mail(self.file, gate)
        self.mailbox = Mailbox(self.mail, self.journal, self.clock)

    def wait(
        self, name: str, *, type_: str = "item", where: Callable[[Stored], bool] | None = None,
        seconds: float | None = None, race: int | None = None,
    ) -> Wait:  # fmt: skip
        """Return a wait that has been asked for and not registered yet."""
        wake = None
        if seconds is not None:
            ms = round(seconds * 1000)
            wake = Deadline(
                wall_ms=self.clock.wall_ms() + ms, boot_ms=self.clock.boot_ms() + ms, boot=self.clock.boot
            )
        detail = wait_detail(type_, where=where is not None, race=race)
        step = self.journal.wait("event", name, 1, at_ms=self.clock.wall_ms(), wake=wake, detail=detail)
        return Wait(step, where)

    def send(self, payload: object, *, type_: str = "item") -> None:
        self.mailbox.receive(type_, msgspec.json.encode(payload).decode(), token=None)

    def got(self, wait: Wait) -> object:
        """Return what a wait has got; None where it still waits."""
        if wait.step.status != "completed":
            return None
        return msgspec.json.decode(self.journal.output(wait.step))


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Post]:
    post = Post(tmp_path / "a.sqlite")
    yield post
    post.file.close()


def test_the_oldest_event_goes_to_the_wait_that_was_asked_for_first(post: Post) -> None:
    waits = [post.wait(name) for name in ("a", "b", "c")]
    for wait in reversed(waits):  # trio starts tasks in any order
        post.mailbox.register(wait)
    post.send(1)
    post.send(2)

    assert [1, 2, None] == [post.got(wait) for wait in waits]


def test_an_event_that_decides_a_race_ends_the_other_waits_of_it(post: Post) -> None:
    waits = [post.wait(name, race=7) for name in ("a", "b")] + [post.wait("after")]
    for wait in waits:
        post.mailbox.register(wait)
    post.send(1)
    post.send(2)

    assert [1, None, 2] == [post.got(wait) for wait in waits]
    assert "cancelled" == waits[1].step.status


def test_a_wait_gets_one_event_and_says_which(post: Post) -> None:
    wait = post.wait("a")
    post.mailbox.register(wait)
    post.send(1)
    post.send(2)

    assert (1, True) == (post.got(wait), wait.arrived.is_set())
    assert (1, post.clock.wall_ms()) == (delivered(wait.step).event, delivered(wait.step).received_at_ms)
    assert ["2"] == [event.payload for event in post.mail.undelivered]


def test_types_are_kept_apart(post: Post) -> None:
    wait = post.wait("a", type_="order")
    post.mailbox.register(wait)
    post.send(1, type_="item")
    assert post.got(wait) is None
    post.send(2, type_="order")

    assert 2 == post.got(wait)


def test_a_predicate_passes_over_what_it_refuses(post: Post) -> None:
    wait = post.wait("even", where=lambda stored: int(stored) % 2 == 0)
    other = post.wait("any")
    post.mailbox.register(wait)
    post.mailbox.register(other)
    for number in (1, 3, 4):
        post.send(number)

    assert (4, 1) == (post.got(wait), post.got(other))
    assert ["3"] == [event.payload for event in post.mail.undelivered]


def test_a_predicate_that_raises_ends_its_wait_and_takes_nothing(post: Post) -> None:
    def fragile(stored: Stored) -> bool:
        if stored == "1":
            raise KeyError("missing")
        return True

    wait = post.wait("fragile", where=fragile)
    post.mailbox.register(wait)
    post.send(1)
    post.send(2)

    assert isinstance(wait.error, KeyError)
    assert wait.arrived.is_set()
    assert "waiting" == wait.step.status
    assert ["1", "2"] == [event.payload for event in post.mail.undelivered]


def test_a_wait_whose_predicate_is_not_here_yet_keeps_its_place(post: Post) -> None:
    first, second = post.wait("even", where=lambda stored: int(stored) % 2 == 0), post.wait("any")
    post.journal.load()  # as after a restart: both are recorded, and one has been asked for again
    post.mailbox.forget_waits()
    post.mailbox.register(second)
    post.send(4)
    assert post.got(second) is None

    post.mailbox.register(first)

    assert (4, None) == (post.got(first), post.got(second))


def test_a_wait_that_the_run_has_not_asked_for_again_is_served(post: Post) -> None:
    post.wait("a")
    post.journal.load()
    post.mailbox.forget_waits()

    post.send(1)

    assert [] == post.mail.undelivered
    step = post.journal.take("event", "a", 1)
    assert step is not None
    assert ("completed", "1") == (step.status, post.journal.output(step))


@pytest.mark.parametrize(("passed_s", "expected"), [(59, 1), (60, 1), (61, None)])
def test_an_event_beats_the_timeout_by_when_it_was_received(
    post: Post, passed_s: float, expected: int | None
) -> None:
    wait = post.wait("a", seconds=60)
    post.clock.advance(passed_s)
    post.send(1)
    post.clock.advance(3600)  # nobody looks before

    post.mailbox.register(wait)

    assert expected == post.got(wait)


def test_a_wait_that_was_withdrawn_gets_nothing(post: Post) -> None:
    wait = post.wait("a")
    post.mailbox.register(wait)
    post.journal.end(wait.step, "cancelled", at_ms=1, error=None)
    post.mailbox.withdraw(wait)
    post.send(1)

    assert post.got(wait) is None
    assert not wait.arrived.is_set()


def test_a_wait_keeps_its_place_from_the_moment_its_call_is_made(post: Post) -> None:
    first, second = post.wait("even", where=lambda stored: int(stored) % 2 == 0), post.wait("any")
    post.journal.load()
    post.mailbox.forget_waits()
    for name in ("even", "any"):  # the calls of a new run are made, and none of them runs yet
        assert post.journal.take("event", name, 1) is not None
    post.send(4)
    post.mailbox.register(second)
    assert post.got(second) is None

    post.mailbox.register(first)

    assert (4, None) == (post.got(first), post.got(second))


def test_a_wait_keeps_its_place_while_its_run_is_being_stopped(post: Post) -> None:
    first, second = post.wait("even", where=lambda stored: int(stored) % 2 == 0), post.wait("any")
    for wait in (first, second):
        post.mailbox.register(wait)

    post.mailbox.withdraw(first)  # its task has ended already, the other one's has not
    post.send(4)

    assert (4, None) == (post.got(first), post.got(second))
