"""The instance's own row: written once, changed by its owner, the same for the next one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.errors import InstanceDamagedError, StorageWriteError
from perdure.limits import VALUE_BYTES_INLINE_MAX
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile, create_file, open_file
from perdure.storage.gate import Gate
from perdure.storage.journal import Journal
from perdure.storage.lifecycle import Lifecycle, bear, is_born, read_state
from perdure.storage.mail import Mail
from perdure.storage.records import Birth, Deadline, InstanceState

Reopen = Callable[[InstanceFile], InstanceFile]
THEN = Deadline(wall_ms=9_000, boot_ms=90, boot=3)
MESSAGE = "the message that asks for it"


def test_what_an_instance_is_born_with_is_read_back(tmp_path: Path, gate: Gate, reopened: Reopen) -> None:
    path = tmp_path / "new.sqlite"
    create_file(path, disk=Disk(), durable=False)
    file = open_file(path, disk=Disk(), durability="process")
    birth = Birth(
        workflow="Letters", id="ä/1", incarnation=2**61, created_at_ms=1, version="v2", parent="A/b",
        tags='["x"]', timeout=THEN,
    )  # fmt: skip
    assert not is_born(file)
    bear(file, gate, birth, b"\x00", epoch=4)
    assert is_born(file)

    state = read_state(reopened(file))

    assert ("Letters", "ä/1", 2**61, 4, "v2") == (
        state.workflow, state.id, state.incarnation, state.epoch, state.version,
    )  # fmt: skip
    assert ("queued", b"\x00", 1, "A/b", '["x"]', THEN) == (
        state.status, state.params, state.created_at_ms, state.parent, state.tags, state.timeout,
    )  # fmt: skip


def test_a_newborn_is_known_without_a_query_as_it_is_found_later(
    tmp_path: Path, gate: Gate, reopened: Reopen
) -> None:
    path = tmp_path / "new.sqlite"
    create_file(path, disk=Disk(), durable=False)
    file = open_file(path, disk=Disk(), durability="process", is_new=True)
    birth = Birth(workflow="Letters", id="one", incarnation=7, created_at_ms=1, tags='["x"]', timeout=THEN)
    bear(file, gate, birth, '"' + "x" * VALUE_BYTES_INLINE_MAX + '"', epoch=4)
    asked: list[str] = []
    file.connection.set_trace_callback(asked.append)

    life, mail, journal = Lifecycle(file, gate), Mail(file, gate), Journal(file, gate)
    journal.load()
    stamp = file.stamp
    file.connection.set_trace_callback(None)

    assert [] == asked
    file = reopened(file)
    assert life.state == Lifecycle(file, gate).state
    assert mail.undelivered == Mail(file, gate).undelivered
    assert stamp + 1 == file.stamp


def test_a_file_found_without_its_row_is_read_all_the_same(
    tmp_path: Path, gate: Gate, reopened: Reopen
) -> None:
    path = tmp_path / "new.sqlite"
    create_file(path, disk=Disk(), durable=False)
    file = open_file(path, disk=Disk(), durability="process")
    Journal(file, gate).start("do", "written though the first row is lost", 1, at_ms=1)

    file = reopened(file)
    bear(file, gate, Birth(workflow="Letters", id="one", incarnation=7, created_at_ms=1), None, epoch=1)

    assert 2 == Journal(file, gate).start("do", "next", 1, at_ms=2).seq


def test_what_is_read_after_the_first_commit_is_what_the_file_says(born: InstanceFile, gate: Gate) -> None:
    Lifecycle(born, gate).started(2_000, None)

    assert 2_000 == Lifecycle(born, gate).state.started_at_ms


def test_each_change_stands_in_the_state_and_in_the_file(
    born: InstanceFile, gate: Gate, reopened: Reopen
) -> None:
    life = Lifecycle(born, gate)
    life.started(2_000, None)
    life.run_again()
    life.set_status("paused", reason="lunch", wake_at_ms=3_000, paused=THEN)
    life.own(5)

    again = read_state(reopened(born))

    assert life.state == again
    assert ("paused", "lunch", 3_000, THEN, 2_000, 1, 5) == (
        again.status, again.reason, again.wake_at_ms, again.paused, again.started_at_ms, again.replays,
        again.epoch,
    )  # fmt: skip


def test_an_outcome_is_kept(born: InstanceFile, gate: Gate, reopened: Reopen) -> None:
    life = Lifecycle(born, gate)
    life.set_status("waiting", wake_at_ms=3_000, paused=THEN)
    life.end("complete", at_ms=4_000, output='"done"')

    again = read_state(reopened(born))

    assert life.state == again
    assert ("complete", '"done"', 4_000, None, None) == (
        again.status, again.output, again.ended_at_ms, again.wake_at_ms, again.paused,
    )  # fmt: skip


def test_a_status_that_stands_already_is_not_written_again(born: InstanceFile, gate: Gate) -> None:
    life = Lifecycle(born, gate)
    life.set_status("waiting", reason="an event")
    born.commit()

    life.set_status("waiting", reason="an event")

    assert not born.in_transaction


def test_a_first_start_is_recorded_once(born: InstanceFile, gate: Gate) -> None:
    life = Lifecycle(born, gate)
    life.started(2_000, None)
    life.started(3_000, None)

    assert 2_000 == read_state(born).started_at_ms


def test_a_command_is_carried_out_once(born: InstanceFile, gate: Gate, reopened: Reopen) -> None:
    life = Lifecycle(born, gate)
    assert life.command("pause", at_ms=1, actor="ada", token=MESSAGE)
    assert not life.command("pause", at_ms=2, actor="ada", token=MESSAGE)

    again = Lifecycle(reopened(born), gate)

    assert again.knows(MESSAGE)
    assert not again.command("pause", at_ms=3, actor="ada", token=MESSAGE)
    assert again.command("pause", at_ms=4, actor="ada", token=None)


def test_commits_go_on_counting_in_the_next_owner(born: InstanceFile, gate: Gate, reopened: Reopen) -> None:
    life = Lifecycle(born, gate)
    life.command("pause", at_ms=1, actor=None, token=None)
    stamp = born.stamp

    file = reopened(born)
    Lifecycle(file, gate)
    Mail(file, gate)

    assert stamp + 1 == file.stamp


def test_a_file_that_another_owner_took_is_not_written(born: InstanceFile, gate: Gate) -> None:
    life = Lifecycle(born, gate)
    other = open_file(born.path, disk=Disk(), durability="process")
    other.epoch = 1
    Lifecycle(other, gate).own(2)
    other.commit()
    other.close()

    with pytest.raises(StorageWriteError, match="taken over by another owner"):
        life.set_status("running")
    assert 2 == read_state_from_outside(born.path).epoch


def test_a_file_without_its_instance_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "new.sqlite"
    create_file(path, disk=Disk(), durable=False)

    with pytest.raises(InstanceDamagedError, match="has lost its instance"):
        read_state_from_outside(path)


def read_state_from_outside(path: Path) -> InstanceState:
    file = open_file(path, disk=Disk(), durability="process")
    try:
        return read_state(file)
    finally:
        file.close()
