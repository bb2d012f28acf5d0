"""Who moves next: in turn between workflows, oldest first, and neither sleepers nor queue wait for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.moves import Newborn
from perdure.storage.records import Birth, Deadline, Key

NOW_MS = 1_000_000


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(open_catalog(tmp_path / "catalog.sqlite", checkpointer=True))
    yield catalog
    catalog.close()


def newborn(id_: str, *, workflow: str = "W", at_ms: int = 0, start_at_ms: int | None = None) -> Newborn:
    birth = Birth(workflow=workflow, id=id_, incarnation=hash(id_) & 0xFFFF, created_at_ms=at_ms)
    return Newborn(birth=birth, params="null", start_at_ms=start_at_ms)


def queue(catalog: Catalog, workflow: str, count: int, *, at_ms: int = 0) -> None:
    catalog.moves.add_all([
        newborn(f"{workflow}{number}", workflow=workflow, at_ms=at_ms + number) for number in range(count)
    ])  # fmt: skip


def put_to_sleep(catalog: Catalog, count: int, *, wake_ms: int = 0) -> None:
    catalog.moves.add_all([newborn(f"asleep{number}", workflow="S") for number in range(count)])
    for number in range(count):
        wake = Deadline(wall_ms=wake_ms + number)
        catalog.settle(
            Key("S", f"asleep{number}"), "waiting", reason=None, started_at_ms=0, ended_at_ms=None, wake=wake,
            version=None,
        )  # fmt: skip


def claimed(catalog: Catalog, workflows: list[str], *, room: int, queued_max: int = 200) -> list[str]:
    """Claim what moves next, and let go of it as ended."""
    rows = catalog.claim_movable(
        1, boot_ms=NOW_MS, wall_ms=NOW_MS, workflows=workflows, due_max=room, queued_max=queued_max
    )
    for row in rows:
        catalog.settle(
            row.key, "complete", reason=None, started_at_ms=0, ended_at_ms=0, wake=None, version=None
        )
    return [row.id for row in rows]


def test_a_workflow_that_floods_the_queue_does_not_hold_up_another(catalog: Catalog) -> None:
    queue(catalog, "A", 1_000)
    queue(catalog, "B", 3, at_ms=5_000)

    assert ["A0", "B0", "A1", "B1", "A2", "B2"] == claimed(catalog, ["A", "B"], room=6)
    assert ["A3", "A4", "A5"] == claimed(catalog, ["A", "B"], room=3)


def test_workflows_take_turns_even_where_there_is_room_for_one(catalog: Catalog) -> None:
    queue(catalog, "A", 10)
    queue(catalog, "B", 10)
    queue(catalog, "C", 10)

    began = [claimed(catalog, ["A", "B", "C"], room=1)[0] for _ in range(6)]

    assert ["A0", "B0", "C0", "A1", "B1", "C1"] == began


def test_a_workflow_alone_has_all_the_room(catalog: Catalog) -> None:
    queue(catalog, "A", 1_000)

    assert [f"A{number}" for number in range(200)] == claimed(catalog, ["A", "B", "C"], room=500)


def test_a_flood_of_sleepers_that_wake_leaves_the_queue_its_share(catalog: Catalog) -> None:
    put_to_sleep(catalog, 100)
    queue(catalog, "A", 100)

    began = claimed(catalog, ["A", "S"], room=40)

    assert [f"A{number}" for number in range(10)] == [id_ for id_ in began if id_.startswith("A")]
    assert [f"asleep{number}" for number in range(30)] == [id_ for id_ in began if id_.startswith("asleep")]


def test_a_flood_of_the_queue_does_not_hold_up_sleepers_that_wake(catalog: Catalog) -> None:
    queue(catalog, "A", 1_000)
    put_to_sleep(catalog, 20)

    began = claimed(catalog, ["A", "S"], room=40)

    assert 20 == sum(id_.startswith("asleep") for id_ in began)
    assert 20 == sum(id_.startswith("A") for id_ in began)


def test_both_move_where_there_is_room_for_one(catalog: Catalog) -> None:
    put_to_sleep(catalog, 100)
    queue(catalog, "A", 100)

    began = [claimed(catalog, ["A", "S"], room=1)[0] for _ in range(8)]

    assert ["A0", "A1"] == [id_ for id_ in began if id_.startswith("A")]


def test_sleepers_wake_in_the_order_of_their_wake_ups_on_either_clock(catalog: Catalog) -> None:
    catalog.moves.add_all([newborn(id_) for id_ in ("wall", "boot", "until", "later")])
    for id_, wake, until_ms in (
        ("wall", Deadline(wall_ms=NOW_MS - 20), None),
        ("boot", Deadline(wall_ms=0, boot_ms=NOW_MS - 30, boot=1), None),
        ("until", Deadline(wall_ms=0, boot_ms=NOW_MS + 10, boot=1), NOW_MS - 10),
        ("later", Deadline(wall_ms=NOW_MS + 1), None),
    ):
        catalog.settle(
            Key("W", id_), "waiting", reason=None, started_at_ms=0, ended_at_ms=None, wake=wake, version=None,
            until_ms=until_ms,
        )  # fmt: skip

    assert ["boot", "wall", "until"] == claimed(catalog, ["W"], room=10)
    assert (None, NOW_MS + 1) == catalog.next_moves(["W"])


def test_a_start_that_was_delayed_joins_the_queue_when_its_time_comes(catalog: Catalog) -> None:
    catalog.moves.add_all([
        newborn("early", at_ms=0, start_at_ms=50), newborn("first", at_ms=10), newborn("last", at_ms=90),
        newborn("not yet", at_ms=0, start_at_ms=NOW_MS + 1),
    ])  # fmt: skip

    assert ["first", "early", "last"] == claimed(catalog, ["W"], room=10)
    assert (None, NOW_MS + 1) == catalog.next_moves(["W"])


def test_what_no_class_is_there_for_moves_nobody_and_hides_nobody(catalog: Catalog) -> None:
    put_to_sleep(catalog, 50)
    queue(catalog, "Gone", 50)
    queue(catalog, "A", 1, at_ms=900)

    assert ["A0"] == claimed(catalog, ["A"], room=10)
    assert (None, None) == catalog.next_moves(["A"])


def test_what_waits_is_counted_up_to_a_bound(catalog: Catalog) -> None:
    queue(catalog, "A", 30)
    catalog.moves.add_all(
        [newborn("started", start_at_ms=NOW_MS), newborn("not yet", start_at_ms=NOW_MS + 1)]
    )
    put_to_sleep(catalog, 20, wake_ms=NOW_MS - 9)

    assert (31, 10) == catalog.moves.count(boot_ms=0, wall_ms=NOW_MS, limit=1_000)
    assert (5, 5) == catalog.moves.count(boot_ms=0, wall_ms=NOW_MS, limit=5)


def test_of_a_batch_those_are_told_that_stand_there_as_they_were_given(catalog: Catalog) -> None:
    assert [True, True] == catalog.moves.add_all([newborn("a"), newborn("b")])
    other = Newborn(birth=Birth(workflow="W", id="b", incarnation=-1, created_at_ms=0), params="null")

    assert [True, False, True] == catalog.moves.add_all([newborn("a"), other, newborn("c")])


@pytest.mark.parametrize("count", [100, 5_000])
def test_looking_walks_no_row_that_cannot_move(catalog: Catalog, count: int) -> None:
    catalog.moves.add_all(
        [newborn(f"later{number}", start_at_ms=NOW_MS + number) for number in range(1, count)]
    )
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    catalog.connection.set_progress_handler(step, 10)
    assert (None, NOW_MS + 1) == catalog.next_moves(["W"])
    assert [] == claimed(catalog, ["W"], room=10)
    catalog.connection.set_progress_handler(None, 0)

    assert steps < 100
