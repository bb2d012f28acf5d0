"""Who sleeps and wakes next: looked at ahead of time, without those that would not wait by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.moves import Newborn
from perdure.storage.records import Birth, Deadline, Key, Status

NOW_MS = 1_000_000
BOOT = 7


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(open_catalog(tmp_path / "catalog.sqlite", checkpointer=True))
    yield catalog
    catalog.close()


def add(catalog: Catalog, id_: str, *, workflow: str = "W", start_at_ms: int | None = None) -> Key:
    birth = Birth(workflow=workflow, id=id_, incarnation=1, created_at_ms=0)
    catalog.moves.add_all([Newborn(birth=birth, params="null", start_at_ms=start_at_ms)])
    return Key(workflow, id_)


def rest(
    catalog: Catalog, key: Key, wake: Deadline, status: Status = "waiting", started: bool = True
) -> None:
    catalog.settle(
        key,
        status,
        reason=None,
        started_at_ms=0 if started else None,
        ended_at_ms=None,
        wake=wake,
        version=None,
    )


def asleep(catalog: Catalog, *, limit: int = 10, workflows: tuple[str, ...] = ("W",)) -> list[str]:
    rows = catalog.ahead.asleep(boot_ms=NOW_MS, wall_ms=NOW_MS, workflows=workflows, limit=limit)
    return [row.id for row in rows]


def test_those_that_wake_first_come_first_whichever_clock_they_follow(catalog: Catalog) -> None:
    rest(catalog, add(catalog, "last"), Deadline(wall_ms=NOW_MS - 1))
    rest(catalog, add(catalog, "first"), Deadline(wall_ms=5, boot_ms=NOW_MS - 3, boot=BOOT))
    rest(catalog, add(catalog, "second"), Deadline(wall_ms=NOW_MS - 2))
    rest(catalog, add(catalog, "later"), Deadline(wall_ms=NOW_MS + 1))

    assert ["first", "second", "last"] == asleep(catalog)
    assert ["first", "second"] == asleep(catalog, limit=2)


def test_who_would_not_wait_by_himself_is_not_looked_at_ahead(catalog: Catalog) -> None:
    soon = Deadline(wall_ms=NOW_MS - 1)
    add(catalog, "queued")
    add(catalog, "starts", start_at_ms=NOW_MS - 1)
    rest(catalog, add(catalog, "rests after a failed write"), soon, status="running")
    rest(catalog, add(catalog, "waits for its start"), soon, started=False)
    rest(catalog, add(catalog, "of a class that is not here", workflow="Other"), soon)

    assert [] == asleep(catalog)


def test_the_next_wake_up_is_that_of_a_sleeper_whoever_is_queued(catalog: Catalog) -> None:
    add(catalog, "queued")
    assert (None, None) == catalog.ahead.next_wakes(["W"])

    rest(catalog, add(catalog, "by the wall"), Deadline(wall_ms=NOW_MS))
    rest(catalog, add(catalog, "by the boot"), Deadline(wall_ms=1, boot_ms=5, boot=BOOT))

    assert (5, NOW_MS) == catalog.ahead.next_wakes(["W"])
    assert (None, None) == catalog.ahead.next_wakes(["Other"])


def test_who_is_claimed_ahead_is_open_and_not_found_again(catalog: Catalog) -> None:
    rest(catalog, add(catalog, "a"), Deadline(wall_ms=NOW_MS))

    rows = catalog.ahead.asleep(boot_ms=NOW_MS, wall_ms=NOW_MS, workflows=["W"], limit=10)
    (claimed,) = catalog.claim_all(rows, 1)

    assert (1, 1, 1) == (claimed.open, claimed.owner, claimed.epoch)
    assert [] == asleep(catalog)
