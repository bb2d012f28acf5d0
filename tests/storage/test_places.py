"""Places: what is claimed never goes beyond a rule, whoever waits is let out, and looking walks nobody."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.moves import Newborn
from perdure.storage.places import ACTIVE, HELD, HOLDING, Rule
from perdure.storage.records import Birth, Deadline, Key, Status

NOW_MS = 1_000_000


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(open_catalog(tmp_path / "catalog.sqlite", checkpointer=True))
    yield catalog
    catalog.close()


def govern(catalog: Catalog, **rules: Rule) -> None:
    catalog.moves.places.rules = rules
    for name, rule in rules.items():
        catalog.moves.places.declare(name, rule)


def queue(
    catalog: Catalog,
    ids: Sequence[str],
    *,
    workflow: str = "W",
    lane: str | None = "",
    priority: int = 0,
    at_ms: int = 0,
    start_at_ms: int | None = None,
) -> None:
    newborns = [
        Newborn(
            birth=Birth(
                workflow=workflow, id=id_, incarnation=number, created_at_ms=at_ms + number, lane=lane,
                priority=priority,
            ),
            params="null",
            start_at_ms=start_at_ms,
        )
        for number, id_ in enumerate(ids)
    ]  # fmt: skip
    assert all(catalog.moves.add_all(newborns))


def claim(catalog: Catalog, *workflows: str, room: int = 100, now_ms: int = NOW_MS) -> list[str]:
    rows = catalog.claim_movable(
        1, boot_ms=now_ms, wall_ms=now_ms, workflows=workflows or ("W",), due_max=room, queued_max=room
    )
    return [row.id for row in rows]


def settle(catalog: Catalog, id_: str, status: Status = "complete", *, wake_ms: int | None = None) -> None:
    wake = None if wake_ms is None else Deadline(wall_ms=wake_ms)
    catalog.settle(
        Key("W", id_), status, reason=None, started_at_ms=1, ended_at_ms=None, wake=wake, version=None
    )


def ids(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def test_no_more_than_the_limit_are_claimed_and_the_next_when_one_has_ended(catalog: Catalog) -> None:
    govern(catalog, W=Rule(limit=2))
    queue(catalog, ids("w", 5))

    assert ["w0", "w1"] == claim(catalog)
    assert [] == claim(catalog)
    assert (None, None) == catalog.next_moves(["W"], NOW_MS)
    settle(catalog, "w1")
    assert (None, 0) == catalog.next_moves(["W"], NOW_MS)
    assert ["w2"] == claim(catalog)


@pytest.mark.parametrize("status", ["waiting", "paused"])
def test_one_that_waits_keeps_its_place_unless_only_active_ones_count(
    catalog: Catalog, status: Status
) -> None:
    for active_only, claimed in ((False, []), (True, ["w1"])):
        catalog.connection.execute("DELETE FROM _perdure_instances")
        govern(catalog, W=Rule(limit=1, active_only=active_only))
        queue(catalog, ids("w", 2))
        claim(catalog)
        settle(catalog, "w0", status, wake_ms=NOW_MS * 2)
        assert claimed == claim(catalog)


def test_one_that_wakes_needs_a_place_again_where_only_active_ones_count(catalog: Catalog) -> None:
    govern(catalog, W=Rule(limit=1, active_only=True))
    queue(catalog, ids("w", 3))
    claim(catalog)
    settle(catalog, "w0", "waiting", wake_ms=NOW_MS)
    (running,) = claim(catalog, room=1)
    assert [] == claim(catalog)
    assert (None, None) == catalog.next_moves(["W"], NOW_MS)
    settle(catalog, running)
    assert [{"w0": "w1", "w1": "w0"}[running]] == claim(catalog)


def test_a_sleeper_that_has_its_place_wakes_though_the_limit_is_reached(catalog: Catalog) -> None:
    govern(catalog, W=Rule(limit=1))
    queue(catalog, ids("w", 2))
    claim(catalog)
    settle(catalog, "w0", "waiting", wake_ms=NOW_MS)

    assert ["w0"] == claim(catalog)


def test_a_key_bounds_its_own_instances_alone(catalog: Catalog) -> None:
    govern(catalog, W=Rule(per_key=1))
    queue(catalog, ids("a", 3), lane="a")
    queue(catalog, ids("b", 2), lane="b", at_ms=100)
    queue(catalog, ids("free", 2), at_ms=200)

    assert ["a0", "b0", "free0", "free1"] == claim(catalog)
    assert [] == claim(catalog)
    settle(catalog, "a0", "errored")
    assert ["a1"] == claim(catalog)
    settle(catalog, "b0", "terminated")
    settle(catalog, "a1", "dead")
    assert ["a2", "b1"] == sorted(claim(catalog))


def test_a_key_with_room_for_several_fills_up(catalog: Catalog) -> None:
    govern(catalog, W=Rule(per_key=3))
    queue(catalog, ids("a", 5), lane="a")

    assert ["a0", "a1", "a2"] == [id_ for _ in range(5) for id_ in claim(catalog)]


def test_priority_goes_before_age(catalog: Catalog) -> None:
    govern(catalog, K=Rule(per_key=1))
    queue(catalog, ids("low", 2), workflow="P", lane=None)
    queue(catalog, ["high"], workflow="P", lane=None, priority=5, at_ms=500)
    queue(catalog, ["a0", "a1"], workflow="K", lane="a")
    queue(catalog, ["urgent"], workflow="K", lane="a", priority=5, at_ms=500)

    assert ["high", "low0", "low1"] == claim(catalog, "P")
    assert ["urgent"] == claim(catalog, "K")


def test_a_start_that_was_delayed_waits_like_any_other_once_its_time_has_come(catalog: Catalog) -> None:
    govern(catalog, W=Rule(limit=1, per_key=1))
    queue(catalog, ["now"], lane="a")
    queue(catalog, ["later0", "later1"], lane="a", start_at_ms=NOW_MS, at_ms=10)

    assert ["now"] == claim(catalog)
    assert [] == claim(catalog)
    assert (None, None) == catalog.next_moves(["W"], NOW_MS)
    began: list[str] = []
    for last in ("now", "later0"):
        settle(catalog, last)
        began += claim(catalog)
    assert ["later0", "later1"] == began


def test_a_full_workflow_holds_up_no_other(catalog: Catalog) -> None:
    govern(catalog, W=Rule(limit=1))
    queue(catalog, ids("w", 50), start_at_ms=5)
    queue(catalog, ids("x", 50), workflow="W", at_ms=10)
    queue(catalog, ids("v", 3), workflow="V", lane=None, at_ms=500)

    assert {"v0", "v1", "v2"} <= set(claim(catalog, "V", "W", room=10))


def test_no_stretch_of_the_period_sees_more_starts_than_the_rate(catalog: Catalog) -> None:
    govern(catalog, W=Rule(rate=10, rate_ms=60_000))
    queue(catalog, ids("w", 100))
    starts: list[int] = []
    now_ms = NOW_MS
    while len(starts) < 60:
        found = claim(catalog, room=7, now_ms=now_ms)
        starts += [now_ms] * len(found)
        for id_ in found:
            settle(catalog, id_)
        if not found:
            _, next_ms = catalog.next_moves(["W"], now_ms)
            assert next_ms is not None
            assert next_ms > now_ms
            now_ms = next_ms
        else:
            now_ms += 1_500

    for first in starts:
        assert 10 >= sum(first <= at_ms < first + 60_000 for at_ms in starts)
    assert now_ms - NOW_MS < 60_000 * 6.5


def test_a_clock_that_is_set_back_does_not_stop_the_starts(catalog: Catalog) -> None:
    govern(catalog, W=Rule(rate=1, rate_ms=1_000))
    queue(catalog, ids("w", 3))

    assert ["w0"] == claim(catalog, now_ms=NOW_MS)
    assert [] == claim(catalog, now_ms=NOW_MS - 500)
    assert ["w1"] == claim(catalog, now_ms=NOW_MS + 1_000)
    assert ["w2"] == claim(catalog, now_ms=10)


def test_a_death_of_the_process_gives_no_place_to_another(catalog: Catalog) -> None:
    govern(catalog, W=Rule(limit=1))
    queue(catalog, ids("w", 2))
    claim(catalog)
    catalog.crashed()

    assert ["w0"] == claim(catalog)
    assert [] == claim(catalog)


def test_what_is_removed_gives_its_place_to_the_next(catalog: Catalog) -> None:
    govern(catalog, W=Rule(per_key=1))
    queue(catalog, ids("a", 3), lane="a")
    claim(catalog)
    settle(catalog, "a0", "paused")
    catalog.remove(Key("W", "a0"))

    assert ["a1"] == claim(catalog)


def test_a_visit_takes_no_place(catalog: Catalog) -> None:
    govern(catalog, W=Rule(limit=1))
    queue(catalog, ids("w", 2))
    claim(catalog)
    visited = catalog.claim(Key("W", "w1"), 1, keep_status=True)
    settle(catalog, "w0")

    assert visited is not None
    assert 1 == catalog.moves.places.free("W", NOW_MS)[0]


def test_a_rule_that_is_new_counts_those_that_are_there(catalog: Catalog) -> None:
    queue(catalog, ids("w", 3), lane=None)
    claim(catalog, room=1)
    places = catalog.moves.places
    assert places.declare("W", Rule(limit=1))
    assert not places.declare("W", Rule(limit=1))
    places.rules = {"W": Rule(limit=1)}

    assert [] == claim(catalog)


def test_a_rule_that_goes_lets_everybody_out(catalog: Catalog) -> None:
    govern(catalog, W=Rule(per_key=1))
    queue(catalog, ids("a", 30), lane="a")
    places = catalog.moves.places
    places.rules = {}
    assert places.declare("W", None)
    assert (20, 9, 0) == tuple(places.let_out("W", 20) for _ in range(3))

    assert 30 == len(claim(catalog))


def test_people_are_told_what_is_waited_for(catalog: Catalog) -> None:
    govern(catalog, W=Rule(limit=2, per_key=1), R=Rule(rate=1, rate_ms=60_000))
    queue(catalog, ["a0", "a1"], lane="a")
    queue(catalog, ["b0", "c0"], lane="b", at_ms=100)
    queue(catalog, ["r0", "r1"], workflow="R")
    why = catalog.moves.places.why

    def told(workflow: str, id_: str) -> str | None:
        row = catalog.find(Key(workflow, id_))
        assert row is not None
        return why(row)

    claim(catalog, room=1)
    assert "1 of W with key 'a' run already (limit 1)" == told("W", "a1")
    claim(catalog)
    claim(catalog, "R")
    assert "2 of W run already (limit 2)" == told("W", "c0")
    assert "at most 1 of R start in 60 s" == told("R", "r1")
    assert told("W", "a0") is None


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_the_rule_holds_and_nobody_is_forgotten(catalog: Catalog, seed: int) -> None:
    chance = random.Random(seed)
    rule = Rule(limit=6, per_key=2, active_only=seed % 2 == 1)
    govern(catalog, W=rule)
    names = iter(f"i{number}" for number in range(10_000))
    now_ms = NOW_MS
    for _ in range(300):
        now_ms += 10
        if chance.random() < 0.5:
            queue(
                catalog, [next(names)], lane=chance.choice(["", "a", "b", "c"]), at_ms=now_ms,
                priority=chance.randrange(3), start_at_ms=now_ms + 50 if chance.random() < 0.2 else None,
            )  # fmt: skip
        claim(catalog, room=chance.randrange(1, 5), now_ms=now_ms)
        opened = [row.id for row in catalog.opened()]
        if opened and chance.random() < 0.8:
            status: Status = chance.choice(["complete", "errored", "waiting", "waiting", "dead"])
            settle(
                catalog, chance.choice(opened), status, wake_ms=now_ms + 30 if status == "waiting" else None
            )
        if chance.random() < 0.02:
            catalog.crashed()
        rows = catalog.select(workflow="W")
        running = [row for row in rows if row.status in (ACTIVE if rule.active_only else HOLDING)]
        assert len(running) <= 6
        for lane in "abc":
            assert 2 >= sum(row.lane == lane for row in running)
    for _ in range(200):
        now_ms += 100
        for id_ in claim(catalog, now_ms=now_ms):
            settle(catalog, id_)
        for row in catalog.opened():
            settle(catalog, row.id)
    left = [row for row in catalog.select(workflow="W") if row.status not in ("complete", "errored", "dead")]
    assert [] == left


@pytest.mark.parametrize("count", [200, 20_000])
def test_looking_walks_none_of_those_that_wait(catalog: Catalog, count: int) -> None:
    govern(catalog, W=Rule(limit=2), K=Rule(per_key=1), A=Rule(limit=1, active_only=True))
    with_rows = (("W", ""), ("K", "a"), ("A", ""))
    catalog.connection.execute("BEGIN")
    for workflow, lane in with_rows:
        queue(catalog, ids(workflow, count), workflow=workflow, lane=lane)
    catalog.connection.execute("COMMIT")
    names = ("W", "K", "A")
    assert 4 == len(claim(catalog, *names))
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    catalog.connection.set_progress_handler(step, 10)
    for _ in range(3):
        assert [] == claim(catalog, *names)
        assert (None, None) == catalog.next_moves(names, NOW_MS)
    settle(catalog, "W0")
    assert ["W2"] == claim(catalog, *names)
    catalog.settle(
        Key("K", "K0"), "complete", reason=None, started_at_ms=1, ended_at_ms=1, wake=None, version=None
    )
    assert ["K1"] == claim(catalog, *names)
    catalog.connection.set_progress_handler(None, 0)

    assert steps < 600
    assert count - 3 < sum(row.reason == HELD for row in catalog.select(workflow="K"))
