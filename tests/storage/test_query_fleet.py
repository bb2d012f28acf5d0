"""A fleet of files is asked like one table; a file that fails is named and spoils nothing."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from perdure.errors import QueryError, QueryRefusedError
from perdure.storage.query import open_query_host


def make(path: Path, names: list[str]) -> Path:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("create table _perdure_step (seq integer primary key, name text, count integer)")
        db.execute("create view steps as select seq, name, count from _perdure_step")
        db.executemany("insert into _perdure_step (name, count) values (?, 1)", [(name,) for name in names])
        db.commit()
    return path


@pytest.fixture
def fleet(tmp_path: Path) -> list[tuple[str, Path, bool]]:
    return [(f"id-{n}", make(tmp_path / f"id-{n}.sqlite", ["fetch"] * n), True) for n in range(1, 8)]


@pytest.mark.parametrize("limit_parallel", [1, 4, 20])
async def test_a_fleet_is_asked_like_one_table(
    fleet: list[tuple[str, Path, bool]], limit_parallel: int
) -> None:
    query = "select count(*) as n from steps where name = :name"
    async with open_query_host() as host:
        found = await host.fetch_all(
            fleet, query, {"name": "fetch"}, timeout_s=30, limit_parallel=limit_parallel
        )
    assert [(f"id-{n}", n) for n in range(1, 8)] == [(row.instance_id, row.n) for row in found.rows]
    assert (("instance_id", "n"), ()) == (found.columns, found.failures)


async def test_a_damaged_file_does_not_spoil_the_others(fleet: list[tuple[str, Path, bool]]) -> None:
    fleet[2][1].write_bytes(b"no database at all")
    fleet[4][1].unlink()
    async with open_query_host() as host:
        found = await host.fetch_all(fleet, "select seq from steps limit 1", label_column="id", timeout_s=30)
    assert ["id-1", "id-2", "id-4", "id-6", "id-7"] == [row.id for row in found.rows]
    assert ["id-3", "id-5"] == [failure.label for failure in found.failures]
    assert [str(fleet[2][1]), str(fleet[4][1])] == [failure.path for failure in found.failures]


async def test_an_error_that_every_file_has_is_raised(fleet: list[tuple[str, Path, bool]]) -> None:
    async with open_query_host() as host:
        with pytest.raises(QueryError, match="no such column: nmae") as caught:
            await host.fetch_all(fleet, "select nmae from steps", timeout_s=30)
    assert [f"none of 7 files answered; this is {fleet[0][1]}"] == caught.value.__notes__


async def test_a_refused_query_is_refused_for_all_at_once(fleet: list[tuple[str, Path, bool]]) -> None:
    async with open_query_host() as host:
        with pytest.raises(QueryRefusedError):
            await host.fetch_all(fleet, "delete from _perdure_step", timeout_s=30)
        assert 0 == host.statistics().running


async def test_files_whose_columns_differ_are_united_under_all_of_them(tmp_path: Path) -> None:
    fleet = [("a", make(tmp_path / "a", ["x"]), False), ("b", make(tmp_path / "b", ["x"]), False)]
    with contextlib.closing(sqlite3.connect(fleet[1][1])) as db:
        db.execute("alter table _perdure_step add column cost default 7")
    async with open_query_host() as host:
        found = await host.fetch_all(fleet, "select * from _perdure_step", timeout_s=30)
        nothing = await host.fetch_all([], "select 1", timeout_s=30)
    assert ("instance_id", "seq", "name", "count", "cost") == found.columns
    assert [("instance_id", "seq", "name", "count"), found.columns] == [row.keys() for row in found.rows]
    assert ([], ("instance_id",), ()) == (nothing.rows, nothing.columns, nothing.failures)
