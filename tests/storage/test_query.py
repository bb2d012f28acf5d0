"""Queries read, on time, without a trace; what is not one read is refused."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from perdure.errors import QueryError, QueryRefusedError, QueryTimeoutError, RuntimeClosedError
from perdure.storage.query import QueryHost, RowStream, open_query_host
from perdure.storage.rows import Row

ENDLESS = "with recursive n(x) as (select 1 union all select x + 1 from n) select {} from n"
COUNT_FOREVER = ENDLESS.format("count(*)")
ROWS_FOREVER = ENDLESS.format("x")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path / "tides-1.sqlite", ["fetch", "sleep", "write"])


def make(path: Path, names: list[str]) -> Path:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("pragma journal_mode = wal")
        db.execute("create table _perdure_step (seq integer primary key, name text, count integer)")
        db.execute("create view steps as select seq, name, count from _perdure_step")
        db.executemany("insert into _perdure_step (name, count) values (?, 1)", [(name,) for name in names])
        db.commit()
    return path


@contextlib.contextmanager
def no_thread_is_left() -> Generator[None, None, None]:
    def of_queries() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if "connection_worker" in thread.name}

    before = of_queries()
    yield
    for thread in of_queries() - before:
        thread.join(timeout=5)  # it has answered its last call: only its own end is left
        assert not thread.is_alive()


def side_files(path: Path) -> list[str]:
    return sorted(other.name for other in path.parent.iterdir() if other != path)


def content(path: Path) -> bytes:
    return path.read_bytes()


async def ask(path: Path, query: str, bindings: Any = (), *, immutable: bool = False) -> list[Row]:
    async with open_query_host() as host:
        return await host.fetch(path, query, bindings, timeout_s=10, immutable=immutable)


# -- what may be asked ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "query", "bindings"),
    [
        ([["fetch"]], "select name from steps where seq = ?", [1]),
        ([["sleep"]], "select name from steps where seq = :seq", {"seq": 2}),
        ([[None, 1.5, "x", b"y"]], "values (?, ?, ?, ?)", (None, 1.5, "x", b"y")),
        ([[3]], "with s as (select * from steps) select count(*) from s", ()),
        ([["b"]], 'select value from json_each(\'["a", "b"]\') where key = 1', ()),
        ([["$.x", 1]], """select '$.x', '{"x": 1}' ->> '$.x'""", ()),
        ([["ok"]], "pragma integrity_check", ()),
        ([["wal"]], "PRAGMA Journal_Mode", ()),
        ([["seq"], ["name"], ["count"]], "select name from pragma_table_info('steps')", ()),
        ([], "select * from steps where false", ()),
    ],
)
async def test_whatever_only_reads_is_answered(
    path: Path, expected: list[list[Any]], query: str, bindings: Any
) -> None:
    assert expected == [list(row) for row in await ask(path, query, bindings)]


async def test_a_query_can_be_explained(path: Path) -> None:
    assert ["SCAN _perdure_step"] == [
        row.detail for row in await ask(path, "explain query plan select * from steps")
    ]


async def test_virtual_tables_can_be_read(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("create virtual table place using rtree (id, low, high)")
        db.execute("insert into place values (7, 1, 2)")
        db.commit()
    assert [7] == [row.id for row in await ask(path, "select id from place")]


REFUSED = {
    "it would write": [
        "insert into _perdure_step (name) values ('x')",
        "with n as (select 1) insert into _perdure_step (seq) select * from n",
        "update _perdure_step set name = 'x' returning seq",
        "delete from _perdure_step where false",
        *("create table mine (a)", "create temp table mine (a)", "drop view steps", "analyze"),
    ],
    "reach other files": ["attach 'other.sqlite' as other", "vacuum", "vacuum into 'other.sqlite'"],
    "its own transaction": ["begin", "savepoint s"],
    "load_extension": ["select load_extension('x')"],
    "not one that only reads": [
        *("pragma user_version = 7", "pragma journal_mode = delete", "pragma query_only(0)"),
        *("pragma wal_checkpoint(truncate)", "pragma writable_schema = 1", "pragma nonsense"),
    ],
    "more than one statement": ["select 1; select 2", "select 1; delete from _perdure_step"],
    "returns no rows": ["", "-- nothing"],
}


@pytest.mark.parametrize(("why", "query"), [(why, query) for why in REFUSED for query in REFUSED[why]])
@pytest.mark.parametrize("immutable", [False, True])
async def test_what_is_not_a_single_read_is_refused_and_changes_nothing(
    path: Path, why: str, query: str, immutable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    before = content(path)
    with pytest.raises(QueryRefusedError, match=why) as caught:
        await ask(path, query, immutable=immutable)
    assert query == caught.value.query
    assert before == content(path)
    assert "other.sqlite" not in side_files(path)


# -- what can go wrong ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "query", "bindings"),
    [
        ("no such table: step; there are steps$", "select * from step", ()),
        ("no such column: nmae$", "select nmae from steps", ()),
        ('near "selec": syntax error', "selec 1", ()),
        ("(?i)binding", "select ?", ()),
        ("a timedelta cannot be bound.*integer milliseconds", "select ?", [timedelta(1)]),
        ("not one str", "select ?", "x"),
        ("too large|too big", "select ?", [2**70]),
        ("malformed JSON", "select json_extract('{', '$')", ()),
    ],
)
async def test_an_error_in_sql_keeps_its_text_and_says_what_helps(
    path: Path, expected: str, query: str, bindings: Any
) -> None:
    with pytest.raises(QueryError, match=expected) as caught:
        await ask(path, query, bindings)
    assert query == caught.value.query
    assert not isinstance(caught.value, QueryRefusedError)


async def test_an_error_in_the_middle_of_the_rows_comes_where_it_happens(path: Path) -> None:
    query = "select case seq when 3 then json('{') else seq end as seq from steps"
    with pytest.raises(QueryError, match="malformed JSON"):
        await ask(path, query)


def spoil_the_pages(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (path.stat().st_size - 4096))


def spoil_the_header(path: Path) -> None:
    path.write_bytes(b"not a database " * 100)


def put_a_folder_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("expected", "spoil"),
    [
        ("does not exist", Path.unlink),
        ("damaged or no database", spoil_the_header),
        ("damaged or no database", spoil_the_pages),
        ("disk I/O error|cannot be read", put_a_folder_there),
    ],
)
async def test_a_file_that_cannot_be_read_is_named_and_left_alone(
    path: Path, expected: str, spoil: Callable[[Path], object]
) -> None:
    spoil(path)
    with no_thread_is_left(), pytest.raises(QueryError, match=expected) as caught:
        await ask(path, "select * from steps")
    assert str(path) in str(caught.value)


async def test_odd_characters_in_a_path_stay_part_of_the_path(tmp_path: Path) -> None:
    path = make(tmp_path / "%54ides?mode=rwc#1 %.sqlite", ["fetch"])
    assert 1 == len(await ask(path, "select * from steps"))


# -- time, cancellation and memory ---------------------------------------------------------


@pytest.mark.parametrize("query", [COUNT_FOREVER, ENDLESS.format("sum(length(hex(zeroblob(1000000 + x))))")])
async def test_a_query_that_takes_too_long_is_interrupted(path: Path, query: str) -> None:
    async with open_query_host() as host:
        with no_thread_is_left(), pytest.raises(QueryTimeoutError, match="longer than 0.05 s") as caught:
            await host.fetch(path, query, timeout_s=0.05)
        assert isinstance(caught.value, TimeoutError)
        assert 3 == len(await host.fetch(path, "select * from steps", timeout_s=10))


async def test_a_cancelled_query_has_stopped_and_its_thread_is_gone(path: Path) -> None:
    async with open_query_host() as host:
        with no_thread_is_left(), trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(host.fetch, path, COUNT_FOREVER, timeout_s=math.inf))
                while not host.statistics().threads_busy:
                    await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        assert (0, 1, 0) == counts(host)


def counts(host: QueryHost) -> tuple[int, int, int]:
    now = host.statistics()
    return now.running, now.finished, now.threads_busy


async def test_a_query_cancelled_before_it_begins_leaves_nothing(path: Path) -> None:
    async with open_query_host() as host:
        with no_thread_is_left(), trio.CancelScope() as scope:
            scope.cancel()
            await host.fetch(path, COUNT_FOREVER, timeout_s=10)
        assert scope.cancelled_caught
        assert 0 == host.statistics().running


async def test_a_stream_of_endless_rows_can_be_left_in_the_middle(path: Path) -> None:
    async with open_query_host() as host:
        with no_thread_is_left():
            async with host.stream(path, ROWS_FOREVER, timeout_s=math.inf) as rows:
                assert ("x",) == rows.columns
                assert list(range(1, 5001)) == [(await anext(rows)).x for _ in range(5000)]
        assert (0, 1, 0) == counts(host)


async def test_a_stream_gives_every_row_once_in_order(path: Path) -> None:
    query = "with recursive n(x) as (select 1 union all select x + 1 from n limit 5000) select x from n"
    async with open_query_host() as host, host.stream(path, query, timeout_s=30) as rows:
        assert list(range(1, 5001)) == [row.x async for row in rows]
        assert [] == await rows.next_batch()


async def test_large_rows_come_in_small_batches(path: Path) -> None:
    query = ROWS_FOREVER.replace("select x from", "select zeroblob(100000) from")
    async with open_query_host() as host, host.stream(path, query, timeout_s=30) as rows:
        sizes = [len(await rows.next_batch()) for _ in range(4)]
    assert [16, 2, 2, 2] == sizes


async def test_pauses_of_the_reader_count_and_the_file_is_let_go(
    path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with open_query_host() as host, host.stream(path, ROWS_FOREVER, timeout_s=30) as rows:
        await rows.next_batch()
        mock_clock.jump(31)
        while host.statistics().running:
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(QueryTimeoutError):
            await exhaust(rows)


async def test_a_query_that_has_read_everything_no_longer_times_out(
    path: Path, mock_clock: trio.testing.MockClock
) -> None:
    query = "with recursive n(x) as (select 1 union all select x + 1 from n limit 20) select x from n"
    async with open_query_host() as host, host.stream(path, query, timeout_s=30) as rows:
        await trio.testing.wait_all_tasks_blocked()
        while host.statistics().threads_busy:
            await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(31)  # the second batch, which is the last, is waiting for the first to be taken
        await trio.testing.wait_all_tasks_blocked()
        assert list(range(1, 21)) == [row.x async for row in rows]


async def test_more_queries_than_may_run_wait_for_their_turn(path: Path) -> None:
    async with open_query_host(queries_max=1) as host:
        async with host.stream(path, ROWS_FOREVER, timeout_s=math.inf):
            with pytest.raises(QueryTimeoutError):
                await host.fetch(path, "select * from steps", timeout_s=0.05)
        assert 3 == len(await host.fetch(path, "select * from steps", timeout_s=10))


async def test_statistics_show_the_oldest_reader(path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with open_query_host() as host:
        assert host.statistics().oldest_started_s is None
        started_s = trio.current_time()
        async with host.stream(path, ROWS_FOREVER, timeout_s=math.inf):
            mock_clock.jump(5)
            await host.fetch(path, "select * from steps", timeout_s=10)
            now = host.statistics()
        assert (1, started_s, 1) == (now.running, now.oldest_started_s, now.finished)
        assert (0, 2, 0) == counts(host)


# -- beside a writer -----------------------------------------------------------------------


async def test_a_writer_commits_while_a_stream_is_open_and_the_stream_keeps_its_snapshot(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("insert into _perdure_step (name) select 'x' from pragma_function_list limit 100")
        before = writer.execute("select count(*) from steps").fetchone()[0]
        async with open_query_host() as host:
            async with host.stream(path, "select * from steps", timeout_s=30) as rows:
                writer.execute("insert into _perdure_step (name) values ('later')")
                assert before == len([row async for row in rows])
            (row,) = await host.fetch(path, "select count(*) as n from steps", timeout_s=10)
        assert before + 1 == row.n


async def test_closing_a_reader_keeps_the_locks_of_the_writer(path: Path) -> None:
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('begin immediate')"
    attempt = [sys.executable, "-c", code, str(path)]
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("begin immediate")
        await ask(path, "select * from steps")
        done = await trio.run_process(attempt, check=False, capture_stderr=True)
        assert b"database is locked" in done.stderr
        writer.execute("rollback")
        assert 0 == (await trio.run_process(attempt, check=False)).returncode


async def test_a_reader_never_checkpoints_what_a_killed_writer_left(path: Path) -> None:
    code = """if True:
        import os, sqlite3, sys
        db = sqlite3.connect(sys.argv[1], isolation_level=None)
        db.execute("insert into _perdure_step (name) values ('last')")
        os.kill(os.getpid(), 9)
    """
    await trio.run_process([sys.executable, "-c", code, str(path)], check=False)
    wal = path.with_name(path.name + "-wal")
    before = content(path), content(wal)
    assert "last" == (await ask(path, "select name from steps order by seq desc"))[0].name
    assert before == (content(path), content(wal))


async def test_only_an_immutable_read_of_a_closed_file_leaves_nothing_beside_it(path: Path) -> None:
    assert [] == side_files(path)
    assert 3 == len(await ask(path, "select * from steps", immutable=True))
    assert [] == side_files(path)
    assert 3 == len(await ask(path, "select * from steps"))
    assert [f"{path.name}-shm", f"{path.name}-wal"] == side_files(path)


# -- the host ------------------------------------------------------------------------------


async def test_a_closed_host_says_so_to_new_queries_and_to_open_streams(path: Path) -> None:
    closing = trio.Event()

    async def keep_host(task_status: trio.TaskStatus[QueryHost]) -> None:
        async with open_query_host() as host:
            task_status.started(host)
            await closing.wait()

    async with trio.open_nursery() as nursery:
        host: QueryHost = await nursery.start(keep_host)
        with no_thread_is_left():
            async with host.stream(path, ROWS_FOREVER, timeout_s=math.inf) as rows:
                closing.set()
                with pytest.raises(RuntimeClosedError):
                    await exhaust(rows)
        with pytest.raises(RuntimeClosedError):
            await host.fetch(path, "select 1", timeout_s=10)


async def exhaust(rows: RowStream) -> None:
    async for _ in rows:
        pass


@pytest.mark.parametrize("is_used", [False, True])
async def test_an_error_of_the_body_leaves_the_host_as_it_is(path: Path, is_used: bool) -> None:
    async def fail() -> None:
        async with open_query_host() as host:
            if is_used:
                await host.fetch(path, "select 1", timeout_s=10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        await fail()
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


async def test_a_cancelled_host_ends_with_its_queries(path: Path) -> None:
    with no_thread_is_left(), trio.CancelScope() as scope:
        async with open_query_host() as host, host.stream(path, ROWS_FOREVER, timeout_s=math.inf) as rows:
            await rows.next_batch()
            scope.cancel()
            await exhaust(rows)
    assert scope.cancelled_caught


def run_python(code: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_opening_a_host_does_not_load_what_queries_stand_on() -> None:
    code = """if True:
        import sys, trio
        from perdure.storage.query import open_query_host
        async def main():
            async with open_query_host():
                print({"trio_asyncio", "aiosqlite"} & set(sys.modules))
        trio.run(main)
    """
    assert "set()" == run_python(code)


def test_asyncio_in_a_thread_keeps_its_own_loop_after_a_query(path: Path) -> None:
    code = """if True:
        import asyncio, sys, trio
        from perdure.storage.query import open_query_host
        async def name_of_loop():
            return type(asyncio.get_running_loop()).__module__
        async def main():
            async with open_query_host() as host:
                await host.fetch(sys.argv[1], "select 1", timeout_s=10)
                print(await trio.to_thread.run_sync(lambda: asyncio.run(name_of_loop())))
        trio.run(main)
    """
    assert "asyncio.unix_events" == run_python(code, path)


def test_queries_work_in_a_trio_that_is_the_guest_of_an_asyncio_loop(path: Path) -> None:
    code = """if True:
        import asyncio, sys, trio
        from perdure.storage.query import open_query_host
        async def ask():
            async with open_query_host() as host:
                return len(await host.fetch(sys.argv[1], "select * from steps", timeout_s=10))
        async def main():
            done = asyncio.get_running_loop().create_future()
            trio.lowlevel.start_guest_run(
                ask,
                run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe,
                done_callback=done.set_result,
                host_uses_signal_set_wakeup_fd=True,
            )
            print((await done).unwrap())
        asyncio.run(main())
    """
    assert "3" == run_python(code, path)
