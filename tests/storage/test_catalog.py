"""The catalog: which instances there are, who owns them, when they wake; and the inbox."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from perdure.errors import InstanceExistsError, StateUnusableError, StateVersionError
from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import SCHEMA_VERSION, open_catalog
from perdure.storage.records import Birth, CatalogRow, Deadline, Key, Message, Reply, Status

KEY = Key(workflow="W", id="a")
BOOT = 7


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite"


@pytest.fixture
def catalog(path: Path) -> Iterator[Catalog]:
    catalog = Catalog(open_catalog(path, checkpointer=True))
    yield catalog
    catalog.close()


def birth(id_: str = "a", at_ms: int = 0, workflow: str = "W") -> Birth:
    return Birth(workflow=workflow, id=id_, incarnation=1, created_at_ms=at_ms)


def row_of(catalog: Catalog, key: Key = KEY) -> CatalogRow:
    row = catalog.find(key)
    assert row is not None
    return row


def settle(
    catalog: Catalog,
    id_: str,
    wake: Deadline | None,
    *,
    until_ms: int | None = None,
    status: Status = "waiting",
) -> None:
    """Queue an instance, claim it and let it come to rest."""
    catalog.add(birth(id_), None)
    catalog.claim(Key("W", id_), 1)
    catalog.settle(
        Key("W", id_), status, reason=None, started_at_ms=1, ended_at_ms=None, wake=wake, until_ms=until_ms,
        version=None,
    )  # fmt: skip


# -- the queue ---------------------------------------------------------------------------------


def test_a_queued_instance_has_what_its_file_will_be_made_of(catalog: Catalog) -> None:
    catalog.add(birth(), b"\x00params", start_at_ms=5)

    row = row_of(catalog)

    assert ("queued", b"\x00params", 5, 0, 0, 0) == (
        row.status, row.params, row.start_at_ms, row.epoch, row.open, row.crashes,
    )  # fmt: skip
    assert row.birth is not None
    assert [row] == catalog.find_id("a")
    assert catalog.find(Key("W", "b")) is None


def test_an_id_in_use_is_refused_whatever_became_of_it(catalog: Catalog) -> None:
    settle(catalog, "a", None, status="complete")
    with pytest.raises(InstanceExistsError) as refused:
        catalog.add(birth(), None)

    assert ("W", "a") == (refused.value.workflow, refused.value.instance_id)
    catalog.add(birth(workflow="Other"), None)
    catalog.add(birth(), None, replace=True)
    assert "queued" == row_of(catalog).status


def test_the_queue_is_served_oldest_first_and_a_delayed_start_counts_from_its_time(catalog: Catalog) -> None:
    catalog.add(birth("late", 1), None, start_at_ms=100)
    catalog.add(birth("second", 3), None)
    catalog.add(birth("first", 2), None)
    catalog.add(birth("other", 1, workflow="Other"), None)

    assert ["first", "second"] == [row.id for row in catalog.moves.queued(99, ["W"], 10)]
    assert ["first", "second", "late"] == [row.id for row in catalog.moves.queued(100, ["W"], 3)]
    assert (None, 0) == catalog.next_moves(["W"])
    assert (None, None) == catalog.next_moves(["None"])


# -- owners ------------------------------------------------------------------------------------


def test_each_claim_has_a_higher_epoch_and_marks_the_row_open(catalog: Catalog) -> None:
    catalog.add(birth(), None)

    claimed = catalog.claim(KEY, 9)
    assert claimed is not None
    assert (1, 9) == (claimed.epoch, claimed.owner)
    assert catalog.claim(KEY, 8) is None
    assert ("running", 9, 1) == (row_of(catalog).status, row_of(catalog).owner, row_of(catalog).open)
    assert [row_of(catalog)] == catalog.opened()
    assert [] == catalog.moves.queued(10**9, ["W"], 10)


def test_a_claim_leaves_a_status_that_is_no_movement(catalog: Catalog) -> None:
    settle(catalog, "a", None, status="paused")
    catalog.claim(KEY, 9)

    assert "paused" == row_of(catalog).status


def test_deaths_are_counted_for_what_was_open_and_forgiven(catalog: Catalog) -> None:
    catalog.add(birth("open"), None)
    catalog.add(birth("queued"), None)
    for _ in range(3):
        catalog.claim(Key("W", "open"), 1)
        catalog.crashed()

    assert (3, 0) == (row_of(catalog, Key("W", "open")).crashes, row_of(catalog, Key("W", "queued")).crashes)
    catalog.forgive(Key("W", "open"))
    assert 0 == row_of(catalog, Key("W", "open")).crashes


# -- at rest -----------------------------------------------------------------------------------


def test_what_came_to_rest_is_closed_and_needs_no_birth_any_more(catalog: Catalog) -> None:
    catalog.add(birth(), '"params"')
    catalog.claim(KEY, 1)
    wake = Deadline(wall_ms=50, boot_ms=5, boot=BOOT)
    catalog.settle(KEY, "waiting", reason="a nap", started_at_ms=1, ended_at_ms=None, wake=wake, version="v1")

    row = row_of(catalog)

    assert ("waiting", "a nap", None, None, 1, 0, "v1") == (
        row.status, row.reason, row.birth, row.params, row.started_at_ms, row.open, row.version,
    )  # fmt: skip
    assert (50, 5, BOOT) == (row.wake_at_ms, row.wake_boot_ms, row.boot)


def test_sleepers_are_due_each_on_its_own_clock(catalog: Catalog) -> None:
    settle(catalog, "measured", Deadline(wall_ms=50, boot_ms=5, boot=BOOT))
    settle(catalog, "until", Deadline(wall_ms=50))
    settle(catalog, "both", Deadline(wall_ms=80, boot_ms=8, boot=BOOT), until_ms=50)
    settle(catalog, "never", None)

    def due(boot_ms: int, wall_ms: int) -> list[str]:
        rows = catalog.moves.due(boot_ms=boot_ms, wall_ms=wall_ms, workflows=["W"], limit=10)
        return sorted(row.id for row in rows)

    assert [] == due(4, 49)
    assert ["measured"] == due(5, 49)
    assert ["both", "until"] == due(4, 50)
    assert ["both", "measured", "until"] == due(8, 50)  # each of them once
    assert [] == catalog.moves.due(boot_ms=99, wall_ms=99, workflows=["Other"], limit=10)
    assert 2 == len(catalog.moves.due(boot_ms=99, wall_ms=99, workflows=["W"], limit=2))
    assert (5, 50) == catalog.next_moves(["W"])


def test_what_is_open_is_not_due(catalog: Catalog) -> None:
    settle(catalog, "a", Deadline(wall_ms=50, boot_ms=5, boot=BOOT), until_ms=1)
    catalog.claim(KEY, 1)

    assert [] == catalog.moves.due(boot_ms=99, wall_ms=99, workflows=["W"], limit=10)
    assert (None, None) == catalog.next_moves(["W"])


def test_after_another_boot_the_wall_clock_decides(catalog: Catalog) -> None:
    settle(catalog, "old", Deadline(wall_ms=50, boot_ms=5, boot=BOOT))
    settle(catalog, "new", Deadline(wall_ms=60, boot_ms=6, boot=BOOT + 1))

    catalog.rebooted(BOOT + 1)

    assert (6, 50) == catalog.next_moves(["W"])
    assert ["old"] == [row.id for row in catalog.moves.due(boot_ms=5, wall_ms=50, workflows=["W"], limit=10)]


def test_what_could_not_be_opened_is_tried_again_later(catalog: Catalog) -> None:
    settle(catalog, "a", Deadline(wall_ms=50), until_ms=1)
    catalog.claim(KEY, 1)
    catalog.postpone(KEY, reason="no room", wake=Deadline(wall_ms=90, boot_ms=9, boot=BOOT))

    assert ("no room", 0) == (row_of(catalog).reason, row_of(catalog).open)
    assert (9, None) == catalog.next_moves(["W"])


def test_what_is_buried_does_not_move(catalog: Catalog) -> None:
    settle(catalog, "a", Deadline(wall_ms=50), until_ms=1)
    catalog.bury(KEY, reason="damaged")

    assert ("dead", "damaged") == (row_of(catalog).status, row_of(catalog).reason)
    assert (None, None) == catalog.next_moves(["W"])


def test_rows_are_listed_newest_first_and_counted(catalog: Catalog) -> None:
    for number in range(3):
        catalog.add(birth(f"i{number}", number), None)
    settle(catalog, "done", None, status="complete")

    assert ["i2", "i1"] == [row.id for row in catalog.select(workflow="W", status="queued", limit=2)]
    assert 4 == len(catalog.select())
    assert [("W", "complete", 1), ("W", "queued", 3)] == catalog.counts()
    catalog.remove(Key("W", "i0"))
    assert 3 == len(catalog.select(workflow="W"))


def test_a_row_is_restored_as_it_was(catalog: Catalog) -> None:
    settle(catalog, "a", Deadline(wall_ms=80, boot_ms=8, boot=BOOT), until_ms=50)
    row = row_of(catalog)
    catalog.remove(KEY)

    catalog.restore(row)

    assert row == catalog.find(KEY)


# -- workers and the inbox ---------------------------------------------------------------------


def test_the_last_owner_of_the_folder_is_known(catalog: Catalog) -> None:
    assert catalog.workers.last() is None
    numbers = [
        catalog.workers.add(pid=pid, boot=BOOT, at_ms=1, doorbell="d", durability="full") for pid in (11, 12)
    ]
    catalog.workers.stop(numbers[-1], 9)

    last = catalog.workers.last()

    assert last is not None
    assert (12, BOOT, "full", 9) == (last.pid, last.boot, last.durability, last.stopped_at_ms)


def test_commands_are_carried_out_in_the_order_they_were_sent_and_answered(catalog: Catalog) -> None:
    for token in ("t1", "t2"):
        message = Message(
            seq=0, token=token, workflow="W", id="a", command="pause", body=None, actor="ada"
        )  # fmt: skip
        catalog.posts.post(message, at_ms=1)

    first, second = catalog.posts.pending()
    catalog.posts.done(first.seq, Reply(ok=False, error="InstanceFinishedError", message="too late"), at_ms=2)

    assert ("t1", "t2") == (first.token, second.token)
    assert [second] == catalog.posts.pending()
    assert Reply(ok=False, error="InstanceFinishedError", message="too late") == catalog.posts.reply("t1")
    assert catalog.posts.reply("t2") is None
    assert catalog.posts.reply("t3") is None


# -- opening -----------------------------------------------------------------------------------


def spoil_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")


def spoil_application(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA application_id=5")


def spoil_bytes(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 300)


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (spoil_version, StateVersionError, "newer Perdure.*upgrade perdure"),
        (spoil_application, StateUnusableError, "a database of another program"),
        (spoil_bytes, StateUnusableError, "run `perdure repair`"),
    ],
)
def test_a_catalog_that_is_not_ours_to_use_is_refused_and_unchanged(
    path: Path, spoil: Callable[[Path], None], error: type[Exception], text: str
) -> None:
    open_catalog(path, checkpointer=True).close()
    spoil(path)
    before = path.read_bytes()

    with pytest.raises(error, match=text):
        open_catalog(path, checkpointer=True)
    assert before == path.read_bytes()


def test_where_there_is_no_catalog_none_is_made_unless_asked_for(path: Path) -> None:
    with pytest.raises(StateUnusableError, match="is not a state folder"):
        open_catalog(path, checkpointer=False, create=False)
    assert not path.exists()


def test_only_the_owner_checkpoints(path: Path) -> None:
    pages: list[int] = []
    for checkpointer in (True, False):
        with closing(open_catalog(path, checkpointer=checkpointer)) as connection:
            pages.append(connection.execute("PRAGMA wal_autocheckpoint").fetchone()[0])
            assert (2,) == connection.execute("PRAGMA synchronous").fetchone()

    assert pages[0] > 0
    assert 0 == pages[1]
