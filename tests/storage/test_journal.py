"""The journal: a step is recorded once, and what was recorded comes back as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perdure.errors import PerdureError
from perdure.limits import VALUE_BYTES_INLINE_MAX
from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate
from perdure.storage.journal import Journal, Step
from perdure.storage.records import Deadline, Stored

Reopen = Callable[[InstanceFile], InstanceFile]
LATER = Deadline(wall_ms=60_000, boot_ms=6_000, boot=3)


@pytest.fixture
def journal(born: InstanceFile, gate: Gate) -> Journal:
    return Journal(born, gate)


def started(journal: Journal, name: str = "fetch", count: int = 1) -> Step:
    return journal.start(
        "do", name, count, at_ms=1_000, input_text="[1]", input_digest="d1", config='{"a":1}'
    )


# -- recorded once -----------------------------------------------------------------------------


AGAIN: dict[str, Callable[[Journal, Step], None]] = {
    "complete": lambda journal, step: journal.complete(step, "2", at_ms=3),
    "end": lambda journal, step: journal.end(step, "failed", at_ms=3, error="{}"),
    "start_again": lambda journal, step: journal.start_again(step, at_ms=3, counted=2),
    "retry_at": lambda journal, step: journal.retry_at(step, LATER, error=None),
}


@pytest.mark.parametrize("again", AGAIN)
@pytest.mark.parametrize("ended", ["completed", "failed", "cancelled"])
def test_a_step_that_has_ended_is_not_written_again(
    journal: Journal, born: InstanceFile, ended: str, again: str
) -> None:
    step = started(journal)
    if ended == "completed":
        journal.complete(step, "1", at_ms=2)
    else:
        journal.end(step, "failed" if ended == "failed" else "cancelled", at_ms=2, error="{}")
    row = born.fetch("SELECT status, attempt, output, ended_at FROM _perdure_steps")

    with pytest.raises(PerdureError, match="recorded already"):
        AGAIN[again](journal, step)
    assert row == born.fetch("SELECT status, attempt, output, ended_at FROM _perdure_steps")


# -- and found again ---------------------------------------------------------------------------


@pytest.mark.parametrize("output", ['{"a":1}', None, b"\x00\xff", '"' + "x" * VALUE_BYTES_INLINE_MAX + '"'])
def test_what_was_recorded_is_found_byte_for_byte(
    journal: Journal, born: InstanceFile, gate: Gate, reopened: Reopen, output: Stored | None
) -> None:
    journal.complete(started(journal), output, at_ms=2_000)

    again = Journal(reopened(born), gate)
    again.load()
    step = again.take("do", "fetch", 1)

    assert step is not None
    assert ("completed", 1, 1, "d1", '{"a":1}') == (
        step.status, step.attempt, step.counted, step.fingerprint, step.config,
    )  # fmt: skip
    assert ("null" if output is None else output) == again.output(step)


def test_each_identity_is_handed_out_once_a_load(journal: Journal) -> None:
    journal.complete(started(journal), "1", at_ms=2)
    journal.load()

    assert journal.take("do", "fetch", 1) is not None
    assert journal.take("do", "fetch", 1) is None
    assert journal.take("do", "fetch", 2) is None
    assert journal.take("sleep", "fetch", 1) is None
    journal.load()
    assert journal.take("do", "fetch", 1) is not None


def test_what_is_left_was_not_asked_for(journal: Journal) -> None:
    for name in ("a", "b", "c"):
        journal.complete(started(journal, name), "1", at_ms=2)
    journal.load()

    journal.take("do", "b", 1)

    assert ["a", "c"] == [step.name for step in journal.left]


def test_a_run_replays_until_the_last_finished_step_was_asked_for(journal: Journal) -> None:
    journal.complete(started(journal, "a"), "1", at_ms=2)
    started(journal, "b")
    journal.load()

    assert journal.replaying
    journal.take("do", "a", 1)
    assert not journal.replaying
    assert journal.take("do", "b", 1) is not None


def test_another_kind_under_the_same_name_is_told(journal: Journal) -> None:
    started(journal, "nap")
    journal.load()

    assert "do" == journal.other_kind("nap", 1)
    assert journal.other_kind("nap", 2) is None
    assert journal.other_kind("other", 1) is None


# -- attempts ----------------------------------------------------------------------------------


def test_every_attempt_is_kept_with_how_it_ended(journal: Journal, born: InstanceFile) -> None:
    step = started(journal)
    journal.attempt_ended(step, "failed", at_ms=1_100, error='{"message":"no"}')
    journal.retry_at(step, LATER, error='{"message":"no"}')
    journal.start_again(step, at_ms=1_200, counted=2)
    journal.attempt_ended(step, "lost", at_ms=None, error=None)
    journal.start_again(step, at_ms=1_300, counted=3)
    journal.complete(step, "1", at_ms=1_400)

    rows = born.fetch("SELECT attempt, outcome, ended_at IS NULL, error FROM attempts ORDER BY attempt")

    assert [(1, "failed", 0, '{"message":"no"}'), (2, "lost", 1, None), (3, "completed", 0, None)] == rows
    assert [("completed", 3)] == born.fetch("SELECT status, attempts FROM steps")


def test_a_step_that_waits_for_its_next_attempt_is_found_waiting(
    journal: Journal, born: InstanceFile, gate: Gate, reopened: Reopen
) -> None:
    step = started(journal)
    journal.attempt_ended(step, "failed", at_ms=1_100, error=None)
    journal.retry_at(step, LATER, error=None)

    again = Journal(reopened(born), gate)
    (waiting,) = again.waiting()

    assert ("fetch", "waiting", LATER) == (waiting.name, waiting.status, waiting.wake)


# -- waiting -----------------------------------------------------------------------------------


def test_a_pause_moves_every_deadline_but_that_of_a_sleep_until(journal: Journal, born: InstanceFile) -> None:
    journal.wait("sleep", "nap", 1, at_ms=1, wake=LATER, detail='{"seconds":60}')
    journal.wait("sleep", "until", 1, at_ms=1, wake=Deadline(wall_ms=60_000), detail='{"until":1}')
    journal.wait("event", "ever", 1, at_ms=1, wake=None, detail='{"type":"x"}')
    done = journal.wait("sleep", "done", 1, at_ms=1, wake=LATER)
    journal.complete(done, None, at_ms=2)

    journal.shift(500)

    rows = {step.name: step.wake for step in journal.waiting()}
    assert Deadline(wall_ms=60_500, boot_ms=6_500, boot=3) == rows["nap"]
    assert Deadline(wall_ms=60_000) == rows["until"]
    assert rows["ever"] is None
    assert [(6_000,)] == born.fetch("SELECT wake_boot FROM _perdure_steps WHERE name = 'done'")


def test_waits_for_events_come_in_the_order_in_which_they_were_asked_for(journal: Journal) -> None:
    for name in ("b", "a"):
        journal.wait("event", name, 1, at_ms=1, wake=None, detail='{"type":"x"}')
    journal.wait("sleep", "nap", 1, at_ms=1, wake=LATER)
    journal.load()

    assert ["b", "a"] == [step.name for step in journal.waiting_events()]


def test_steps_that_are_open_can_be_cancelled_together(journal: Journal, born: InstanceFile) -> None:
    started(journal, "open")
    journal.wait("sleep", "nap", 1, at_ms=1, wake=LATER)
    journal.complete(started(journal, "done"), "1", at_ms=2)

    journal.cancel_open(at_ms=9)

    rows = born.fetch("SELECT name, status FROM steps ORDER BY seq")
    assert [("open", "cancelled"), ("nap", "cancelled"), ("done", "completed")] == rows


# -- numbers -----------------------------------------------------------------------------------


def test_numbers_go_on_counting_in_the_next_owner(
    journal: Journal, born: InstanceFile, gate: Gate, reopened: Reopen
) -> None:
    journal.complete(started(journal, "a"), "1", at_ms=2)
    stamp = born.stamp

    file = reopened(born)
    again = Journal(file, gate)
    step = started(again, "b")

    assert 2 == step.seq
    assert stamp + 1 == file.stamp
    assert [(stamp, stamp), (stamp + 1, None)] == file.fetch(
        "SELECT started_commit, ended_commit FROM _perdure_steps ORDER BY seq"
    )


def test_progress_counts_what_was_recorded(journal: Journal) -> None:
    assert 0 == journal.progress
    journal.complete(started(journal, "a"), "1", at_ms=2)
    journal.end(started(journal, "b"), "failed", at_ms=2, error="{}")
    journal.add_finished("value", "now", 1, at_ms=3, output="1")

    assert 3 == journal.progress
