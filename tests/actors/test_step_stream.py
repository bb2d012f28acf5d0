"""Steps whose function yields: stored chunk by chunk, replayed as a stream. Cases 37 to 45 of the peer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from perdure import (
    DecodingError,
    EncodingError,
    InvalidArgumentError,
    Retries,
    Sql,
    StepContext,
    StepStream,
    StepTimeoutError,
    WorkflowStep,
    asyncio_step,
    process_step,
)

Play = Callable[..., Awaitable[Any]]
ROWS = "SELECT status, attempts, output, output_bytes FROM steps WHERE kind = 'do'"
CHUNKS = "SELECT idx, attempt, chunk, superseded FROM streams"


@dataclass
class Page:
    number: int


async def pages(count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        await trio.lowlevel.checkpoint()
        yield b"page %d" % number


async def typed(count: int) -> AsyncIterator[Page]:
    for number in range(count):
        yield Page(number)


def lines(*texts: str) -> Iterator[str]:
    yield from texts


@asyncio_step
async def on_asyncio(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def opened(count: int) -> AsyncIterator[bytes]:
    return pages(count)


@process_step
def in_process() -> Iterator[int]:
    return iter([1])


def in_transaction(sql: Sql) -> Iterator[int]:
    yield len(sql.exec("SELECT 1"))


async def total(stream: StepStream[int]) -> int:
    return sum([number async for number in stream])


def total_in_thread(stream: StepStream[int]) -> int:
    return sum(stream)


@asyncio_step
async def total_on_asyncio(stream: StepStream[int]) -> int:
    return sum([number async for number in stream])


@pytest.mark.parametrize(
    ("fn", "args", "chunks"),
    [
        (pages, (2,), [b"page 0", b"page 1"]),
        (opened, (1,), [b"page 0"]),
        (typed, (2,), [Page(0), Page(1)]),
        (lines, ("a", "b"), ["a", "b"]),
        (on_asyncio, (3,), [0, 1, 2]),
    ],
)
async def test_a_function_that_yields_gives_a_stream_that_can_be_read_again(
    play: Play, fn: Any, args: tuple[Any, ...], chunks: list[Any]
) -> None:
    seen: list[list[Any]] = []

    async def run(step: WorkflowStep) -> None:
        stream = await step.do("yield", fn, *args)
        seen.append(await stream.collect())
        await step.sleep("long enough to hibernate", "1 hour")
        seen.append([chunk async for chunk in stream])

    played = await play(run, sql="SELECT status, attempts, output FROM steps WHERE kind = 'do'")

    assert [("completed", 1, None)] == played.steps
    assert [chunks] * len(seen) == seen


async def test_a_recorded_stream_is_replayed_and_its_function_not_called_again(play: Play) -> None:
    calls: list[int] = []

    async def counted() -> AsyncIterator[int]:
        calls.append(1)
        yield 1

    async def run(step: WorkflowStep) -> list[int]:
        stream = await step.do("count", counted)
        await step.sleep("long enough to hibernate", "1 hour")
        return await stream.collect()

    played = await play(run)

    assert ([1], [1]) == (calls, played.result)


async def test_an_empty_stream_is_complete_with_no_chunks(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[int]:
        stream = await step.do("nothing", pages, 0)
        return [stream.chunks, stream.bytes, len(await stream.collect())]

    played = await play(run, sql=ROWS)

    assert ([0, 0, 0], [("completed", 1, None, 0)]) == (played.result, played.steps)


async def test_what_a_failed_attempt_yielded_is_superseded_and_not_in_the_stream(play: Play) -> None:
    async def stumble(context: StepContext) -> AsyncIterator[int]:
        yield 10 * context.attempt
        if context.attempt == 1:
            raise ConnectionError("the line is down")
        yield 10 * context.attempt + 1

    async def run(step: WorkflowStep) -> list[int]:
        return await (await step.do("stumble", stumble, retries=Retries(limit=1, delay=0.001))).collect()

    played = await play(run, sql=CHUNKS)

    assert [20, 21] == played.result
    assert [(0, 1, "10", 1), (2, 2, "20", 0), (3, 2, "21", 0)] == played.steps


async def test_a_plain_generator_stops_at_its_timeout_between_two_chunks(play: Play) -> None:
    closed: list[bool] = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    async def run(step: WorkflowStep) -> None:
        await step.do("endless", endless, timeout=0.05, retries=0)

    played = await play(run)

    assert isinstance(played.error, StepTimeoutError)
    assert [True] == closed


async def test_steps_read_the_stream_of_another_wherever_they_run(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[int]:
        stream = await step.do("numbers", on_asyncio, 4)
        return [
            await step.do("in the loop", total, stream),
            await step.do("in a thread", total_in_thread, stream),
            await step.do("on asyncio", total_on_asyncio, stream),
        ]

    played = await play(run)

    assert [6, 6, 6] == played.result


async def test_the_result_is_of_any_size(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[int]:
        async def megabytes() -> AsyncIterator[bytes]:
            for _ in range(24):
                yield bytes(1024 * 1024)

        stream = await step.do("megabytes", megabytes)
        return [stream.chunks, stream.bytes, sum([len(chunk) async for chunk in stream])]

    played = await play(run, sql=ROWS)

    assert [24, 24 * 1024 * 1024, 24 * 1024 * 1024] == played.result
    assert [("completed", 1, None, 24 * 1024 * 1024)] == played.steps


async def test_returns_says_that_a_lambda_gives_a_stream(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[int]:
        stream = await step.do("typed", lambda: typed(2), returns=AsyncIterator[Page])
        return [page.number async for page in stream]

    played = await play(run)

    assert [0, 1] == played.result


async def test_a_chunk_that_cannot_be_stored_ends_the_step(play: Play) -> None:
    async def odd() -> AsyncIterator[Any]:
        yield {1, 2}

    async def run(step: WorkflowStep) -> None:
        await step.do("odd", odd)

    played = await play(run, sql=ROWS)

    assert isinstance(played.error, EncodingError)
    assert [("failed", 1, None, None)] == played.steps


async def test_what_is_not_an_iterator_is_refused_where_one_is_annotated(play: Play) -> None:
    def wrong() -> Iterator[int]:
        return 5  # type: ignore[return-value]  # what a user without a type checker writes

    async def run(step: WorkflowStep) -> None:
        await step.do("wrong", wrong)

    played = await play(run)

    assert isinstance(played.error, EncodingError)
    assert "returned int" in str(played.error)


async def test_bad_functions_are_refused_at_the_call(play: Play) -> None:
    async def mistyped() -> int:  # type: ignore[misc]  # what a user without a type checker writes
        yield 1  # pyright: ignore[reportReturnType]  # likewise

    async def run(step: WorkflowStep) -> None:
        with pytest.raises(InvalidArgumentError, match="returns an iterator"):
            step.do("mistyped", mistyped)
        with pytest.raises(InvalidArgumentError, match="process step"):
            step.do("process", in_process)
        with pytest.raises(InvalidArgumentError, match="plain function"):
            step.transaction("transaction", in_transaction)

    played = await play(run)

    assert (None, []) == (played.error, played.steps)


async def test_a_step_recorded_with_a_plain_result_says_so_where_it_yields_now(play: Play) -> None:
    turns: list[int] = []

    async def plain() -> list[int]:
        return [1]

    async def yields() -> AsyncIterator[int]:
        yield 1

    async def run(step: WorkflowStep) -> None:
        turns.append(1)
        result: Any = await step.do("same", plain if len(turns) == 1 else yields)
        del result
        await step.sleep("long enough to hibernate", "1 hour")

    played = await play(run)

    assert isinstance(played.error, DecodingError)


async def test_a_sensitive_result_is_null_in_the_view(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[str]:
        return await (await step.do("secret", lines, "hush", sensitive="output")).collect()

    played = await play(run, sql=CHUNKS)

    assert (["hush"], [(0, 1, None, 0)]) == (played.result, played.steps)
