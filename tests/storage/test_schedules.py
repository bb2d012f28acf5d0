"""The table of schedules: an occurrence is settled once, and how far one has come only grows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.moves import Newborn
from perdure.storage.records import Birth, Key
from perdure.storage.schedules import Fired, Occurrence, OverlapPolicy

KEY = Key("W", "daily")


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(open_catalog(tmp_path / "catalog.sqlite", checkpointer=True))
    catalog.schedules.put(KEY, "{}", last_at_ms=100, next_at_ms=200)
    yield catalog
    catalog.close()


def occurrence(at_ms: int, *, name: str = "daily") -> Occurrence:
    birth = Birth(workflow="W", id=f"{name}-{at_ms}", incarnation=at_ms, created_at_ms=at_ms)
    return Occurrence(at_ms=at_ms, newborn=Newborn(birth=birth, params="null"))


def fire(catalog: Catalog, *times_ms: int, overlap: OverlapPolicy = "allow") -> Fired:
    return catalog.schedules.fire(
        KEY, [occurrence(at_ms) for at_ms in times_ms], next_at_ms=900, overlap=overlap
    )


def last_ms(catalog: Catalog) -> int | None:
    row = catalog.schedules.find(KEY)
    assert row is not None
    return row.last_at_ms


def finish(catalog: Catalog, id_: str) -> None:
    catalog.settle(
        Key("W", id_), "complete", reason=None, started_at_ms=1, ended_at_ms=2, wake=None, version=None
    )


def test_an_occurrence_is_settled_once_whoever_comes_again(catalog: Catalog) -> None:
    assert ["daily-200", "daily-300"] == fire(catalog, 200, 300).created
    assert [] == fire(catalog, 200, 300).created
    assert [] == fire(catalog, 50).created
    assert (300, 2) == (last_ms(catalog), len(catalog.select()))


def test_a_paused_or_forgotten_one_creates_nothing(catalog: Catalog) -> None:
    catalog.schedules.pause(KEY)
    assert [] == fire(catalog, 200).created
    catalog.schedules.resume(KEY, 250)
    assert ["daily-300"] == fire(catalog, 200, 300).created
    catalog.schedules.remove(KEY)
    assert [] == fire(catalog, 400).created


def test_resuming_one_that_runs_changes_nothing(catalog: Catalog) -> None:
    catalog.schedules.resume(KEY, 999)

    assert 100 == last_ms(catalog)


def test_skip_settles_without_an_instance_while_one_has_not_ended(catalog: Catalog) -> None:
    assert ["daily-200"] == fire(catalog, 200, 300, overlap="skip").created
    assert 300 == last_ms(catalog)
    finish(catalog, "daily-200")
    assert ["daily-400"] == fire(catalog, 400, overlap="skip").created


def test_queue_stops_before_the_first_that_has_to_wait(catalog: Catalog) -> None:
    fired = fire(catalog, 200, 300, 400, overlap="queue")

    assert Fired(created=["daily-200"], waits_for="daily-200", stopped_at_ms=300) == fired
    assert 200 == last_ms(catalog)


def test_instances_of_other_schedules_do_not_count(catalog: Catalog) -> None:
    others = [occurrence(200, name=name).newborn for name in ("daily-late", "dail", "daily2", "Daily")]
    catalog.moves.add_all([each for each in others if each is not None])

    assert catalog.schedules.unfinished(KEY) is None
    assert ["daily-200"] == fire(catalog, 200, overlap="skip").created
    assert "daily-200" == catalog.schedules.unfinished(KEY)


def test_one_of_which_no_instance_can_be_made_is_settled_all_the_same(catalog: Catalog) -> None:
    nothing = Occurrence(at_ms=200, newborn=None)
    catalog.schedules.fire(KEY, [nothing], next_at_ms=300, overlap="allow")

    assert (200, []) == (last_ms(catalog), catalog.select())


@pytest.mark.parametrize("count", [200, 20_000])
def test_looking_for_an_unfinished_one_walks_no_history(catalog: Catalog, count: int) -> None:
    catalog.connection.execute("BEGIN")
    newborns = [occurrence(1_000_000_000_000 + number).newborn for number in range(count)]
    catalog.moves.add_all([each for each in newborns if each is not None])
    catalog.connection.execute("UPDATE _perdure_instances SET status = 'complete'")
    catalog.connection.execute("COMMIT")
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    catalog.connection.set_progress_handler(step, 10)
    assert catalog.schedules.unfinished(KEY) is None
    catalog.connection.set_progress_handler(None, 0)

    assert steps < 250
