"""SQL of user code on the instance's file: what is theirs works, what is the runtime's is refused."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from perdure.errors import QueryError, QueryRefusedError, StorageWriteError
from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate
from perdure.storage.sql import Sql


@pytest.fixture
def sql(born: InstanceFile, gate: Gate) -> Sql:
    gate.touch(born)
    return Sql(born)


# -- what is allowed ---------------------------------------------------------------------------


def test_tables_of_the_users_own_are_theirs(sql: Sql, born: InstanceFile) -> None:
    sql.exec("CREATE TABLE account (owner TEXT PRIMARY KEY, balance INTEGER)")
    sql.exec("CREATE INDEX by_balance ON account (balance)")
    sql.exec("CREATE VIEW rich AS SELECT owner FROM account WHERE balance > 100")
    sql.exec("CREATE TABLE log (what TEXT)")
    sql.exec("CREATE TRIGGER note AFTER UPDATE ON account BEGIN INSERT INTO log VALUES (new.owner); END")
    assert 2 == sql.exec("INSERT INTO account VALUES (?, ?), (?, ?)", "ada", 5, "eve", 500).rows_written
    sql.exec("UPDATE account SET balance = balance - 1 WHERE owner = ?", "ada")
    sql.exec("ALTER TABLE account ADD COLUMN note TEXT")
    sql.exec("ALTER TABLE log RENAME TO diary")

    assert [("eve",)] == sql.exec("SELECT owner FROM rich").raw()
    assert {"what": "ada"} == sql.exec("SELECT what FROM diary").one()
    sql.exec("DELETE FROM account")
    sql.exec("DROP TABLE account")
    born.commit()
    with closing(sqlite3.connect(born.path)) as other:
        assert [("ada",)] == other.execute("SELECT what FROM diary").fetchall()


def test_what_the_runtime_has_may_be_read(sql: Sql) -> None:
    assert "one" == sql.exec("SELECT id FROM instance").one()["id"]
    assert [] == sql.exec("SELECT * FROM steps").to_list()
    assert 0 == len(sql.exec("SELECT * FROM _perdure_steps"))
    assert "id" in [row["name"] for row in sql.exec("PRAGMA table_info(instance)")]


def test_rows_are_read_in_the_form_one_likes(sql: Sql) -> None:
    rows = sql.exec("SELECT 1 AS a, 'x' AS b UNION ALL SELECT 2, 'y'")

    assert ("a", "b") == rows.column_names
    assert [(1, "x"), (2, "y")] == rows.raw()
    assert [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}] == rows.to_list() == list(rows)
    with pytest.raises(QueryError, match="expected one row, the query returned 2"):
        rows.one()


# -- what is refused ---------------------------------------------------------------------------

EVERYTHING = """
    SELECT type, name, tbl_name, sql FROM sqlite_schema
    UNION ALL SELECT type, name, tbl_name, sql FROM sqlite_temp_schema
    UNION ALL SELECT status, epoch, '', '' FROM _perdure_instance"""
REFUSED = {
    "the end of the transaction": ["COMMIT", "ROLLBACK", "BEGIN", "END", "SAVEPOINT x", "RELEASE x"],
    "other files": ["ATTACH 'other.sqlite' AS other", "DETACH main"],
    "pragmas": [
        "PRAGMA journal_mode=DELETE", "PRAGMA synchronous=OFF", "PRAGMA writable_schema=1",
        "PRAGMA user_version=9", "PRAGMA wal_checkpoint(TRUNCATE)",
    ],
    "writes to the runtime's tables": [
        "DELETE FROM _perdure_messages",
        "UPDATE _perdure_instance SET status = 'complete'", "DELETE FROM _perdure_steps",
        "UPDATE _PERDURE_Instance SET epoch = 9", "REPLACE INTO _perdure_chunks VALUES (1, x'00')",
    ],
    "changes of the runtime's schema": [
        "DROP TABLE _perdure_steps", "DROP VIEW steps", "ALTER TABLE _perdure_steps ADD COLUMN mine TEXT",
        "ALTER TABLE _perdure_steps RENAME TO mine", "CREATE INDEX mine ON _perdure_steps (name)",
        "CREATE TRIGGER t AFTER INSERT ON _perdure_steps BEGIN SELECT 1; END",
        "CREATE TEMP TRIGGER t AFTER INSERT ON _perdure_steps BEGIN SELECT 1; END",
        "CREATE TRIGGER t INSTEAD OF INSERT ON steps BEGIN SELECT 1; END",
        "DROP INDEX sqlite_autoindex__perdure_messages_1",
    ],
    "names of the runtime's": [
        "CREATE TABLE steps (n)", "CREATE TABLE IF NOT EXISTS steps (n)", "CREATE TABLE _perdure_mine (n)",
        "CREATE VIEW Instance AS SELECT 1", "CREATE TEMP TABLE _perdure_steps (n)",
        "CREATE TEMP TABLE steps (n)",
        "CREATE TEMP VIEW history AS SELECT 1", "CREATE INDEX _perdure_i ON account (owner)",
        "ALTER TABLE account RENAME TO _perdure_account",
    ],
    "extensions": ["SELECT load_extension('x')"],
}  # fmt: skip


@pytest.mark.parametrize("query", [query for queries in REFUSED.values() for query in queries])
def test_what_is_the_runtimes_is_refused_and_unchanged(sql: Sql, born: InstanceFile, query: str) -> None:
    sql.exec("CREATE TABLE account (owner TEXT)")
    before = born.fetch(EVERYTHING)

    with pytest.raises(QueryError) as refused:
        sql.exec(query)

    assert before == born.fetch(EVERYTHING)
    assert born.in_transaction
    assert born.connection.in_transaction
    assert query == refused.value.query
    if "autoindex" not in query:  # that one SQLite refuses by itself
        assert isinstance(refused.value, QueryRefusedError)


def test_a_trigger_of_the_users_cannot_write_the_runtimes_tables(sql: Sql) -> None:
    sql.exec("CREATE TABLE mine (n)")
    sql.exec(
        "CREATE TRIGGER t AFTER INSERT ON mine BEGIN UPDATE _perdure_instance SET status = 'complete'; END"
    )

    with pytest.raises(QueryRefusedError, match="_perdure_instance belongs to the runtime"):
        sql.exec("INSERT INTO mine VALUES (1)")
    assert 0 == len(sql.exec("SELECT * FROM mine"))


def test_the_runtimes_own_statements_pass_the_guard(sql: Sql, born: InstanceFile) -> None:
    with pytest.raises(QueryRefusedError):
        sql.exec("UPDATE _perdure_instance SET replays = replays + 1")

    born.execute("UPDATE _perdure_instance SET replays = replays + 1")

    assert [(1,)] == born.fetch("SELECT replays FROM instance")


@pytest.mark.parametrize("query", ["SELECT nonsense", "SELEC 1", "SELECT ?", "", "SELECT 1; SELECT 2"])
def test_a_statement_that_fails_is_told_with_its_text(sql: Sql, born: InstanceFile, query: str) -> None:
    if not query:
        assert [] == sql.exec(query).raw()
        return
    with pytest.raises(QueryError) as failed:
        sql.exec(query)
    assert query == failed.value.query
    assert born.failure is None


# -- undoing -----------------------------------------------------------------------------------


def test_a_savepoint_undoes_what_was_written_inside_where_it_raises(sql: Sql) -> None:
    def insert(number: int, error: Exception | None = None) -> None:
        sql.exec("INSERT INTO n VALUES (?)", number)
        if error is not None:
            raise error

    def outer() -> None:
        with sql.savepoint():
            insert(2)
            with pytest.raises(KeyError), sql.savepoint():
                insert(3, KeyError())
            insert(4)

    sql.exec("CREATE TABLE n (n)")
    with pytest.raises(ZeroDivisionError), sql.savepoint():
        insert(1, ZeroDivisionError())
    outer()

    assert [(2,), (4,)] == sql.exec("SELECT n FROM n ORDER BY n").raw()


def test_a_statement_that_fails_has_changed_nothing(sql: Sql) -> None:
    sql.exec("CREATE TABLE n (n INTEGER PRIMARY KEY)")
    sql.exec("INSERT INTO n VALUES (1)")

    with pytest.raises(QueryError, match="UNIQUE"):
        sql.exec("INSERT INTO n VALUES (2), (1)")
    assert [(1,)] == sql.exec("SELECT n FROM n").raw()


def test_a_statement_that_ends_the_transaction_is_a_failed_write(sql: Sql, born: InstanceFile) -> None:
    sql.exec("CREATE TABLE n (n INTEGER PRIMARY KEY)")
    sql.exec("INSERT INTO n VALUES (1)")

    with pytest.raises(QueryError):
        sql.exec("INSERT OR ROLLBACK INTO n VALUES (1)")

    assert isinstance(born.failure, StorageWriteError)
    with pytest.raises(StorageWriteError, match="a statement ended the transaction"):
        born.execute("SELECT 1")
