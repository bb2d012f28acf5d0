"""Files are opened and closed in threads, many at a time; what was asked for is done, whoever still waits."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import AsyncGenerator

import pytest
import trio
import trio.testing

from perdure.storage.opening import FileHost


@contextlib.asynccontextmanager
async def serving(host: FileHost) -> AsyncGenerator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.run)
        yield nursery
        nursery.cancel_scope.cancel()


def half(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


async def test_each_request_is_answered_with_what_its_own_function_returned_or_raised() -> None:
    host = FileHost("perdure hosted", threads_max=3)
    halves: list[int] = []
    odd: list[str] = []

    async def ask(number: int) -> None:
        try:
            halves.append(await host.do(functools.partial(half, number)))
        except ValueError as error:
            odd.append(str(error))

    async with serving(host), trio.open_nursery() as asking:
        for number in range(20):
            asking.start_soon(ask, number)

    assert list(range(10)) == sorted(halves)
    assert sorted(f"{number} is odd" for number in range(1, 20, 2)) == sorted(odd)


async def test_what_waits_together_is_shared_by_the_threads() -> None:
    host, meeting = FileHost("perdure hosted", threads_max=2), threading.Barrier(2, timeout=60)
    async with serving(host), trio.open_nursery() as asking:
        for _ in range(2):
            asking.start_soon(host.do, meeting.wait)

    assert 0 == meeting.n_waiting


async def test_a_request_is_carried_out_though_who_asked_was_cancelled() -> None:
    host, let_go = FileHost("perdure hosted", threads_max=1), threading.Event()
    told: list[bool] = []

    async def ask() -> None:
        told.append(await host.do(let_go.wait))

    async with serving(host), trio.open_nursery() as asking:
        asking.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        asking.cancel_scope.cancel()
        await trio.lowlevel.cancel_shielded_checkpoint()
        assert [] == told
        let_go.set()

    assert [True] == told


async def test_a_host_with_work_is_busy() -> None:
    host, let_go = FileHost("perdure hosted", threads_max=1), threading.Event()
    assert not host.busy
    async with serving(host):
        async with trio.open_nursery() as asking:
            asking.start_soon(host.do, let_go.wait)
            await trio.testing.wait_all_tasks_blocked()
            assert host.busy
            asking.start_soon(host.do, let_go.wait)
            await trio.testing.wait_all_tasks_blocked()
            assert host.busy
            let_go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert not host.busy


async def test_what_waits_when_the_host_ends_is_carried_out_first() -> None:
    host, let_go = FileHost("perdure hosted", threads_max=1), threading.Event()
    told: list[int] = []

    async def ask(number: int) -> None:
        told.append(await host.do(functools.partial(half, number)))

    async with trio.open_nursery() as nursery, trio.open_nursery() as asking:
        nursery.start_soon(host.run)
        asking.start_soon(host.do, let_go.wait)
        await trio.testing.wait_all_tasks_blocked()
        asking.start_soon(ask, 8)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        let_go.set()

    assert [4] == told


async def test_what_is_asked_of_a_host_that_has_ended_is_done_all_the_same() -> None:
    host = FileHost("perdure hosted", threads_max=1)
    async with serving(host):
        pass

    assert 4 == await host.do(functools.partial(half, 8))
    with pytest.raises(ValueError, match="7 is odd"):
        await host.do(functools.partial(half, 7))
