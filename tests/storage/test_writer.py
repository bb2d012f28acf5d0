"""The catalog's writer: many writes, one transaction, and no refused one undoes its neighbours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from perdure.errors import InstanceExistsError, StateError
from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.records import Birth, Key
from perdure.storage.writer import CatalogWriter, write_now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite"


@pytest.fixture
def reading(path: Path) -> Iterator[Catalog]:
    """Return the catalog over a connection of its own: it sees what is committed."""
    open_catalog(path, checkpointer=True).close()
    catalog = Catalog(open_catalog(path, checkpointer=False))
    yield catalog
    catalog.close()


@pytest.fixture
def writing(path: Path) -> Iterator[Catalog]:
    catalog = Catalog(open_catalog(path, checkpointer=True))
    yield catalog
    catalog.close()


@pytest.fixture
async def writer(writing: Catalog, path: Path) -> AsyncIterator[CatalogWriter]:
    writer = CatalogWriter(writing, path=path, batch_max=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        yield writer
        nursery.cancel_scope.cancel()


def birth(id_: str) -> Birth:
    return Birth(workflow="W", id=id_, incarnation=1, created_at_ms=0)


def ids(catalog: Catalog) -> list[str]:
    return sorted(row.id for row in catalog.select())


async def test_a_write_is_committed_when_it_returns(writer: CatalogWriter, reading: Catalog) -> None:
    await writer.write(lambda catalog: catalog.add(birth("a"), None))
    row = await writer.write(lambda catalog: catalog.claim(Key("W", "a"), 1))

    assert row is not None
    assert 1 == row.epoch
    assert ["a"] == ids(reading)


async def test_writes_that_wait_share_a_transaction_and_keep_their_order(
    writer: CatalogWriter, reading: Catalog
) -> None:
    done: list[int] = []

    async def add(number: int) -> None:
        await writer.write(lambda _: done.append(number))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(add, number)

    statistics = writer.statistics()
    assert (20, 0) == (statistics.writes, statistics.waiting)
    assert 2 >= statistics.transactions
    assert list(range(20)) == sorted(done)


async def test_a_refused_write_does_not_undo_its_neighbours(writer: CatalogWriter, reading: Catalog) -> None:
    refused: list[str] = []

    async def add(id_: str) -> None:
        try:
            await writer.write(lambda catalog: catalog.add(birth(id_), None))
        except InstanceExistsError as error:
            refused.append(error.instance_id)

    async with trio.open_nursery() as nursery:
        for id_ in ("a", "b", "a", "c"):
            nursery.start_soon(add, id_)

    assert ["a"] == refused
    assert ["a", "b", "c"] == ids(reading)


async def test_a_write_that_raises_leaves_nothing_of_itself(writer: CatalogWriter, reading: Catalog) -> None:
    def half(catalog: Catalog) -> None:
        catalog.add(birth("half"), None)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await writer.write(half)
    assert [] == ids(reading)


async def test_a_write_handed_in_is_carried_out_though_its_caller_is_cancelled(
    writer: CatalogWriter, reading: Catalog
) -> None:
    with trio.move_on_after(0):
        await writer.write(lambda catalog: catalog.add(birth("a"), None))
    await writer.write(lambda _: None)

    assert ["a"] == ids(reading)


async def test_a_transaction_that_fails_is_told_to_all_who_shared_it(
    writer: CatalogWriter, writing: Catalog
) -> None:
    failed: list[str] = []

    def broken(catalog: Catalog) -> None:
        catalog.connection.execute("ROLLBACK")  # as SQLite itself does when the disk is full

    async def write(name: str) -> None:
        try:
            await writer.write(broken if name == "broken" else lambda catalog: catalog.add(birth(name), None))
        except StateError:
            failed.append(name)

    async with trio.open_nursery() as nursery:
        for name in ("a", "broken", "b"):
            nursery.start_soon(write, name)

    assert ["a", "b", "broken"] == sorted(failed)
    assert [] == ids(writing)
    await writer.write(lambda catalog: catalog.add(birth("later"), None))
    assert ["later"] == ids(writing)


async def test_a_batch_has_a_bound(writing: Catalog, path: Path) -> None:
    writer = CatalogWriter(writing, path=path, batch_max=3)

    async def add(id_: str) -> None:
        await writer.write(lambda catalog: catalog.add(birth(id_), None))

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as callers:
            for number in range(7):
                callers.start_soon(add, f"i{number}")
            await trio.testing.wait_all_tasks_blocked()
            assert writer.busy
            nursery.start_soon(writer.run)
        nursery.cancel_scope.cancel()

    assert (7, 3) == (writer.statistics().writes, writer.statistics().transactions)
    assert not writer.busy


def test_a_short_lived_program_writes_in_a_transaction_of_its_own(
    writing: Catalog, reading: Catalog, path: Path
) -> None:
    write_now(writing, lambda catalog: catalog.add(birth("a"), None), path=path)
    with pytest.raises(InstanceExistsError):
        write_now(writing, lambda catalog: catalog.add(birth("a"), None), path=path)
    with pytest.raises(StateError):
        write_now(writing, lambda catalog: catalog.connection.execute("SELECT nonsense"), path=path)
    with pytest.raises(ZeroDivisionError):
        write_now(writing, lambda _: 1 / 0, path=path)

    assert ["a"] == ids(reading)
    write_now(writing, lambda catalog: catalog.add(birth("b"), None), path=path)
    assert ["a", "b"] == ids(reading)


async def test_who_writes_when_too_much_waits_is_held_up_and_not_refused(
    writing: Catalog, path: Path
) -> None:
    writer = CatalogWriter(writing, path=path, batch_max=2, waiting_max=3)
    done: list[str] = []

    async def add(id_: str) -> None:
        await writer.write(lambda catalog: catalog.add(birth(id_), None))
        done.append(id_)

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as callers:
            for number in range(9):
                callers.start_soon(add, f"i{number}")
            await trio.testing.wait_all_tasks_blocked()
            assert 3 == writer.statistics().waiting
            nursery.start_soon(writer.run)
        nursery.cancel_scope.cancel()

    assert 9 == len(done) == len(ids(writing))


async def test_who_is_cancelled_while_held_up_has_written_nothing(writing: Catalog, path: Path) -> None:
    writer = CatalogWriter(writing, path=path, batch_max=2, waiting_max=1)

    async with trio.open_nursery() as nursery:

        async def add() -> None:
            await writer.write(lambda catalog: catalog.add(birth("a"), None))

        nursery.start_soon(add)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await writer.write(lambda catalog: catalog.add(birth("given up"), None))
        nursery.start_soon(writer.run)
        await writer.write(lambda _: None)
        nursery.cancel_scope.cancel()

    assert ["a"] == ids(writing)
