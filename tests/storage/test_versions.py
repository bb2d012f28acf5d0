"""Files and catalogs of older versions, made from the schemas that they had, are taken to today's."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from perdure.storage import catalog_file, schema
from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.disk import Disk
from perdure.storage.files import create_file, open_file
from perdure.storage.lifecycle import read_state
from perdure.storage.peek import peek_state

VERSIONS: Final = Path(__file__).parent / "versions"


def older(path: Path, kind: str, version: int, application_id: int) -> None:
    """Make a file as it was made when the schema had that version."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript((VERSIONS / f"{kind}_{version}.sql").read_text("utf-8"))
        connection.execute(f"PRAGMA application_id={application_id}")
        connection.execute(f"PRAGMA user_version={version}")
        if kind == "instance":
            connection.execute(
                "INSERT INTO _perdure_instance (one, workflow, id, incarnation, epoch, status, params,"
                " created_at, ended_at, created_commit, output) VALUES (1, 'Tides', 'a', 7, 3, 'complete',"
                " '1', 5, 9, 1, '\"done\"')"
            )
        else:
            connection.execute(
                "INSERT INTO _perdure_instances (workflow, id, incarnation, status, created_at)"
                " VALUES ('Tides', 'a', 7, 'complete', 5)"
            )


def columns(path: Path) -> dict[str, set[str]]:
    """Return the columns of each table and view."""
    with closing(sqlite3.connect(path)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE sql NOT NULL")]
        return {
            name: {column for _, column, *_ in connection.execute(f"PRAGMA table_info({name})")}
            for name in names
        }


@pytest.mark.parametrize("version", range(1, schema.SCHEMA_VERSION))
def test_an_older_instance_becomes_what_a_new_one_is(tmp_path: Path, version: int) -> None:
    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    older(old, "instance", version, schema.APPLICATION_ID)
    create_file(new, disk=Disk(), durable=False)

    file = open_file(old, disk=Disk(), durability="full")
    state = read_state(file)
    assert ("complete", '"done"', 1, None) == (state.status, state.output, state.generation, state.rollback)
    assert [(1,)] == file.fetch("SELECT count(*) FROM history WHERE what = 'instance created'")
    file.close()
    assert columns(new) == columns(old)


@pytest.mark.parametrize("version", range(1, schema.SCHEMA_VERSION))
def test_a_look_into_an_older_file_at_rest_takes_it_along(tmp_path: Path, version: int) -> None:
    path = tmp_path / "old.sqlite"
    older(path, "instance", version, schema.APPLICATION_ID)
    assert ("complete", 1) == (peek_state(path).status, peek_state(path).generation)
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("version", range(1, catalog_file.SCHEMA_VERSION))
def test_an_older_catalog_becomes_what_a_new_one_is(tmp_path: Path, version: int) -> None:
    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    older(old, "catalog", version, catalog_file.APPLICATION_ID)

    for _ in range(2):
        catalog = Catalog(open_catalog(old, checkpointer=True))
        (row,) = catalog.select()
        assert ("a", 7, 0, None) == (row.id, row.incarnation, row.priority, row.lane)
        catalog.close()
    Catalog(open_catalog(new, checkpointer=True)).close()
    assert columns(new) == columns(old)
