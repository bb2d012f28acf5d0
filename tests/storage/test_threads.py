"""Threads kept for one task's jobs: each job ends, in its place, and no thread outlives the block."""

from __future__ import annotations

import functools
import threading

import pytest
import trio
import trio.testing

from perdure.storage.threads import Threads, open_threads


def alive() -> int:
    return sum(thread.name.startswith("perdure kept") for thread in threading.enumerate())


def square(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number * number


async def test_what_each_job_returns_or_raises_is_told_in_the_order_of_the_jobs() -> None:
    with open_threads("perdure kept", 3) as threads:
        results = await threads.run([functools.partial(square, number) for number in range(50)])

    assert [number * number for number in range(50) if number != 3] == [
        result.unwrap() for number, result in enumerate(results) if number != 3
    ]
    with pytest.raises(ValueError, match="three"):
        results[3].unwrap()


async def test_one_jobs_error_is_raised_where_it_was_asked_for_and_the_thread_goes_on() -> None:
    with open_threads("perdure kept", 1) as threads:
        with pytest.raises(ValueError, match="three"):
            await threads.run_one(functools.partial(square, 3))
        assert 4 == await threads.run_one(functools.partial(square, 2))
        assert 1 == alive()


async def test_no_jobs_need_no_thread() -> None:
    with open_threads("perdure kept", 2) as threads:
        assert [] == await threads.run([])
        assert 0 == alive()


async def test_no_more_threads_are_started_than_there_are_jobs_or_than_allowed() -> None:
    with open_threads("perdure kept", 4) as threads:
        await threads.run([functools.partial(square, 1)] * 2)
        assert 2 == alive()
        await threads.run([functools.partial(square, 1)] * 9)
        assert 4 == alive()

    assert 0 == alive()


async def test_jobs_run_beside_each_other() -> None:
    meeting = threading.Barrier(3, timeout=60)
    with open_threads("perdure kept", 3) as threads:
        results = await threads.run([meeting.wait] * 3)

    assert {0, 1, 2} == {result.unwrap() for result in results}


async def test_a_job_under_way_is_waited_for_when_its_task_is_cancelled() -> None:
    let_go = threading.Event()
    told: list[bool] = []
    with open_threads("perdure kept", 1) as threads:
        async with trio.open_nursery() as nursery:

            async def work() -> None:
                told.append(await threads.run_one(let_go.wait))

            nursery.start_soon(work)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            await trio.lowlevel.cancel_shielded_checkpoint()
            assert [] == told
            let_go.set()

    assert [True] == told


async def test_the_loop_goes_on_while_a_job_is_under_way() -> None:
    let_go = threading.Event()
    with open_threads("perdure kept", 1) as threads:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(threads.run_one, let_go.wait)
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            let_go.set()


async def fail_inside() -> None:
    with open_threads("perdure kept", 2) as threads:
        await threads.run([functools.partial(square, 1)] * 2)
        raise LookupError


async def test_no_thread_is_left_when_the_block_ends_with_an_error() -> None:
    with pytest.raises(LookupError):
        await fail_inside()

    assert 0 == alive()


def test_threads_that_were_never_needed_close_all_the_same() -> None:
    threads = Threads("perdure kept", 2)
    threads.close()

    assert 0 == alive()
