"""`repair_state`: whatever became of the catalog, the files tell what the instances are (law 9)."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from perdure import Runtime, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.engine.repair import NOT_IN_FILES, repair_state
from perdure.errors import InstanceDeadError, InstanceNotFoundError, StateLockedError, StateUnusableError
from perdure.storage.locks import FolderLock
from perdure.testing import VirtualClock, open_test_runtime

EVERY = ["Trip/asleep", "Trip/awaited", "Trip/held", "Trip/home"]


class Trip(WorkflowEntrypoint[None]):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> str:
        packed = await step.do("pack", lambda: f"{event.payload}, packed")
        if event.payload == "asleep":
            await step.sleep("night", "1 day")
        if event.payload in ("awaited", "held"):
            await step.wait_for_event("call", type="call", timeout=None)
        return packed


class Frozen(VirtualClock):
    """A clock that does not jump: who sleeps stays asleep."""

    async def wait(self, delay_ms: float | None, changed: trio.Event) -> None:
        del delay_ms
        await changed.wait()


@pytest.fixture
async def state(tmp_path: Path) -> Path:
    """Make a folder: an instance at home, one asleep, one held, one that waits, and one still to start."""
    folder = tmp_path / "state"
    async with open_test_runtime(folder, workflows=[Trip], clock=Frozen()) as runtime:
        for name in ("home", "asleep", "held", "awaited"):
            await runtime.create(Trip, params=name, id=name)
        await runtime.create(
            Trip, params="later", id="later", at=datetime(2030, 1, 1, tzinfo=UTC) + timedelta(days=2)
        )
        await (await runtime.get(Trip, "home")).result()
        for name in ("asleep", "held", "awaited"):
            instance = await runtime.get(Trip, name)
            while not await instance.sql("SELECT 1 FROM steps WHERE status = 'waiting'"):
                pass
        await (await runtime.get(Trip, "held")).pause()
    return folder


@contextlib.contextmanager
def catalog_of(state: Path) -> Generator[sqlite3.Connection, None, None]:
    with contextlib.closing(sqlite3.connect(state / "catalog.sqlite", isolation_level=None)) as connection:
        yield connection


def drop_catalog(state: Path) -> None:
    (state / "catalog.sqlite").unlink()


def spoil(path: Path, page: int | None = None) -> None:
    """Write over one page, or all behind the first: a disk that went bad."""
    with path.open("r+b") as file:
        file.seek(4096 if page is None else 4096 * (page - 1))
        file.write(b"\xa5" * (path.stat().st_size - 4096 if page is None else 4096))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def journey_ends(runtime: Runtime) -> dict[str, str]:
    """Let every instance that is under way come to its end."""
    ends: dict[str, str] = {}
    for row in runtime.rows():
        instance = await runtime.get(Trip, row.id)
        if row.status == "paused":
            await instance.resume()
        if row.id in ("held", "awaited"):
            await instance.send_event("call")
        ends[row.id] = str(await instance.result())
    return ends


def lose_rows(state: Path) -> None:
    with catalog_of(state) as catalog:
        catalog.execute("DELETE FROM _perdure_instances WHERE id <> 'later'")


@pytest.mark.parametrize("lose", [drop_catalog, lose_rows])
async def test_every_instance_with_a_file_goes_on_after_the_catalog_was_lost(
    state: Path, lose: Callable[[Path], None]
) -> None:
    lose(state)

    report = repair_state(state)

    assert EVERY == sorted(report.restored)
    assert not report.needs_a_person
    async with open_test_runtime(state, workflows=[Trip]) as runtime:
        ends = await journey_ends(runtime)
        (row,) = await (await runtime.get(Trip, "asleep")).sql(
            "SELECT attempts FROM steps WHERE name = 'pack'"
        )
    ends.pop("later", None)
    assert {name: f"{name}, packed" for name in ("home", "asleep", "held", "awaited")} == ends
    assert 1 == row.attempts


async def test_a_paused_instance_stays_paused_and_a_finished_one_finished(state: Path) -> None:
    drop_catalog(state)
    repair_state(state)

    with catalog_of(state) as catalog:
        rows = dict(catalog.execute("SELECT id, status FROM _perdure_instances"))

    assert rows == {"home": "complete", "asleep": "running", "held": "paused", "awaited": "running"}


async def test_what_no_file_can_tell_is_said(state: Path) -> None:
    drop_catalog(state)

    report = repair_state(state)

    assert list(NOT_IN_FILES) == report.lost
    async with open_test_runtime(state, workflows=[Trip], clock=Frozen()) as runtime:
        with pytest.raises(InstanceNotFoundError):
            await runtime.get(Trip, "later")


async def test_a_damaged_catalog_is_kept_and_its_queue_saved_as_far_as_it_can_be_read(state: Path) -> None:
    with catalog_of(state) as catalog:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = '_perdure_workers'"
        (page,) = catalog.execute(query).fetchone()
    spoil(state / "catalog.sqlite", page=page)

    report = repair_state(state)

    assert "damaged" == report.catalog
    assert report.moved_to is not None
    assert Path(report.moved_to).name in names_in(state)
    assert (1, EVERY) == (report.queued, sorted(report.restored))
    async with open_test_runtime(state, workflows=[Trip]) as runtime:
        assert "later, packed" == await (await runtime.get(Trip, "later")).result()


async def test_a_catalog_that_is_no_database_any_more_is_replaced(state: Path) -> None:
    (state / "catalog.sqlite").write_bytes(b"not a database at all" * 1000)

    report = repair_state(state)

    assert ("damaged", 0, EVERY) == (report.catalog, report.queued, sorted(report.restored))


async def test_a_row_at_odds_with_its_file_is_corrected_and_one_without_a_file_dropped(state: Path) -> None:
    with catalog_of(state) as catalog:
        catalog.execute("UPDATE _perdure_instances SET status = 'waiting', wake_at = 1 WHERE id = 'home'")
        catalog.execute(
            "UPDATE _perdure_instances SET status = 'complete', wake_at = NULL WHERE id = 'asleep'"
        )
        catalog.execute("UPDATE _perdure_instances SET epoch = 0 WHERE id = 'awaited'")
    (state / "Trip" / "held.sqlite").unlink()

    report = repair_state(state)

    corrected = {problem.name: problem.what for problem in report.corrected}
    assert corrected == {
        "Trip/home": "waiting -> complete",
        "Trip/asleep": "complete -> running",
        "Trip/awaited": "times, epoch or incarnation",
    }
    assert ["Trip/held"] == report.dropped
    assert ([], 1) == (report.restored, report.queued)


async def test_a_folder_in_order_is_left_as_it_is(state: Path) -> None:
    with catalog_of(state) as catalog:
        before = catalog.execute("SELECT * FROM _perdure_instances").fetchall()

    report = repair_state(state)

    with catalog_of(state) as catalog:
        assert before == catalog.execute("SELECT * FROM _perdure_instances").fetchall()
    assert ("intact", 0) == (report.catalog, report.changes)


async def test_a_second_repair_finds_nothing_more(state: Path) -> None:
    drop_catalog(state)
    repair_state(state)

    assert 0 == repair_state(state).changes


async def test_a_dry_run_says_the_same_and_changes_nothing(state: Path) -> None:
    drop_catalog(state)

    foretold = repair_state(state, dry_run=True)

    assert not (state / "catalog.sqlite").exists()
    assert repair_state(state).restored == foretold.restored


async def test_a_damaged_file_is_reported_and_the_others_are_restored(state: Path) -> None:
    drop_catalog(state)
    spoil(state / "Trip" / "asleep.sqlite")

    report = repair_state(state)

    assert ["Trip/asleep.sqlite"] == [problem.name for problem in report.damaged]
    assert ["Trip/awaited", "Trip/held", "Trip/home"] == sorted(report.restored)
    assert report.needs_a_person


async def test_an_instance_whose_file_is_damaged_is_not_run(state: Path) -> None:
    spoil(state / "Trip" / "awaited.sqlite")

    repair_state(state)

    async with open_test_runtime(state, workflows=[Trip], clock=Frozen()) as runtime:
        with pytest.raises(InstanceDeadError, match="damaged"):
            await (await runtime.get(Trip, "awaited")).result()
        assert "home, packed" == await (await runtime.get(Trip, "home")).result()


async def test_a_copy_beside_the_file_does_not_take_its_place(state: Path) -> None:
    shutil.copy(state / "Trip" / "home.sqlite", state / "Trip" / "home-copy.sqlite")
    drop_catalog(state)

    report = repair_state(state)

    (left,) = report.left_alone
    assert ("Trip/home-copy.sqlite", True) == (left.name, "Trip/home.sqlite" in left.what)
    assert 1 == report.restored.count("Trip/home")


async def test_a_file_of_a_newer_perdure_and_one_of_another_program_are_left_alone(state: Path) -> None:
    with contextlib.closing(sqlite3.connect(state / "Trip" / "held.sqlite", isolation_level=None)) as newer:
        newer.execute("PRAGMA user_version=99")
    with contextlib.closing(sqlite3.connect(state / "Trip" / "other.sqlite", isolation_level=None)) as other:
        other.execute("CREATE TABLE birds (name TEXT)")

    report = repair_state(state)

    assert ["newer", "foreign"] == [problem.what.partition(":")[0] for problem in report.left_alone]
    assert [] == report.dropped


async def test_what_a_crash_left_in_the_wal_counts(state: Path, tmp_path: Path) -> None:
    path = state / "Trip" / "home.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("UPDATE _perdure_instance SET status = 'errored'")
        crashed = tmp_path / "crashed"
        crashed.mkdir()
        for name in names_in(path.parent):
            if name.startswith("home.sqlite") and not name.endswith("-shm"):
                shutil.copy(path.parent / name, crashed / name)
    path.unlink()
    for name in names_in(crashed):
        shutil.copy(crashed / name, path.parent / name)

    report = repair_state(state)

    assert ["complete -> errored"] == [problem.what for problem in report.corrected]
    assert "home.sqlite-wal" not in names_in(path.parent)


def test_a_folder_without_a_file_of_ours_is_refused_unchanged(tmp_path: Path) -> None:
    (tmp_path / "Music").mkdir()
    with contextlib.closing(sqlite3.connect(tmp_path / "Music" / "songs.sqlite")) as songs:
        songs.execute("CREATE TABLE songs (title TEXT)")

    with pytest.raises(StateUnusableError, match="nothing to repair"):
        repair_state(tmp_path)

    assert ["Music"] == names_in(tmp_path)


def test_a_catalog_of_another_program_is_refused_unchanged(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "catalog.sqlite", isolation_level=None)) as songs:
        songs.execute("PRAGMA application_id=7")
        songs.execute("CREATE TABLE songs (title TEXT)")

    with pytest.raises(StateUnusableError, match="another program"):
        repair_state(tmp_path)

    assert ["catalog.sqlite"] == names_in(tmp_path)


async def test_a_folder_that_a_process_has_is_refused(state: Path) -> None:
    with FolderLock.acquire(state / "owner.lock"), pytest.raises(StateLockedError):
        repair_state(state)
