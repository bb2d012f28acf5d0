"""Cases 37 to 45: steps whose result is a stream."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from perdure import EncodingError, StepStream, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.testing import open_test_runtime

Play = Callable[..., Awaitable[Any]]
SUMMARY = "SELECT status, output_bytes, detail FROM steps WHERE kind = 'do'"
CHUNKS = "SELECT idx, chunk, superseded FROM streams ORDER BY idx"
CHUNK_BYTES_MAX = 16 * 1024 * 1024
PREVIEW_CHARS_MAX = 1_024
COMMAND_S_MAX = 60
"""A command that hangs is a finding; the machine may be busy."""


async def pages(count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield b"page %d" % number


async def fail_with(play: Play, fn: Callable[[], Any]) -> Any:
    """Run a workflow whose one step fails, which has retries left, and return how it ended."""

    async def run(step: WorkflowStep) -> None:
        await step.do("yield", fn)

    return await play(run, sql="SELECT status, attempts FROM steps WHERE kind = 'do'")


async def test_case_037_a_byte_stream_is_stored_in_chunks_and_replayed_without_its_function(
    play: Play,
) -> None:
    calls: list[int] = []
    seen: list[list[bytes]] = []

    async def counted() -> AsyncIterator[bytes]:
        calls.append(1)
        async for page in pages(3):
            yield page

    async def run(step: WorkflowStep) -> None:
        stream: StepStream[bytes] = await step.do("yield", counted)
        await step.sleep("long enough to leave memory", "1 hour")
        seen.append([page async for page in stream])

    played = await play(run, sql=CHUNKS)

    assert [(0, b"page 0", 0), (1, b"page 1", 0), (2, b"page 2", 0)] == played.rows
    assert ([1], [b"page 0", b"page 1", b"page 2"]) == (calls, seen[-1])


async def test_case_038_an_empty_stream_is_complete_with_no_chunks(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[bytes]:
        return await (await step.do("yield", pages, 0)).collect()

    played = await play(run, sql=SUMMARY)

    ((status, size, detail),) = played.rows
    assert ([], "completed", 0, 0) == (played.result, status, size, json.loads(detail)["stream"]["chunks"])


async def test_case_039_an_iterator_that_somebody_else_is_reading_fails_the_step(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        def shared() -> Iterator[bytes]:
            yield from reading  # it reads itself

        reading = shared()
        await step.do("yield", lambda: reading, retries=0, returns=Iterator[bytes])

    played = await play(run, sql="SELECT status, attempts FROM steps WHERE kind = 'do'")

    assert [("failed", 1)] == played.rows
    assert isinstance(played.error, ValueError)
    assert "generator already executing" in str(played.error)


async def test_case_040_a_chunk_that_cannot_be_stored_fails_the_step_without_a_retry(play: Play) -> None:
    async def handles() -> AsyncIterator[Any]:
        yield b"page 0"
        yield object()

    played = await fail_with(play, handles)

    assert [("failed", 1)] == played.rows
    assert isinstance(played.error, EncodingError)


async def test_case_041_a_chunk_above_16_mib_fails_the_step_without_a_retry(play: Play) -> None:
    async def too_much() -> AsyncIterator[bytes]:
        yield bytes(CHUNK_BYTES_MAX + 1)

    played = await fail_with(play, too_much)

    assert [("failed", 1)] == played.rows
    assert isinstance(played.error, EncodingError)


async def test_case_042_a_restart_supersedes_the_chunks_that_are_stored(folder: Path, replay: Any) -> None:
    class Mirror(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> int:
            return len(await (await step.do("yield", pages, 2)).collect())

    async with open_test_runtime(folder, workflows=[Mirror], replay=replay) as runtime:
        instance = await runtime.create(Mirror)
        assert 2 == await instance.result()
        await instance.restart()
        assert 2 == await instance.result()
        rows = [tuple(row) for row in await instance.sql(CHUNKS)]

    assert [(b"page 0", 1), (b"page 1", 1)] == [row[1:] for row in rows if row[2]]
    assert [(b"page 0", 0), (b"page 1", 0)] == [row[1:] for row in rows if not row[2]]


@pytest.mark.slow
def test_case_043_a_long_text_stream_is_shown_by_its_beginning_and_a_binary_one_by_its_size(
    folder: Path, replay: Any
) -> None:
    class Letters(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("text", lambda: iter(["high water "] * 1_000), returns=Iterator[str])
            await step.do("binary", pages, 2)

    async def main() -> None:
        async with open_test_runtime(folder, workflows=[Letters], replay=replay) as runtime:
            await (await runtime.create(Letters, id="a")).result()

    trio.run(main)
    command = ["perdure", "describe", "--state", str(folder), "Letters/a", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S_MAX, check=True)
    text, binary = json.loads(done.stdout)["streams"]

    assert ("high water " * 1_000)[:PREVIEW_CHARS_MAX] == text["preview"]
    assert (None, 2, 12) == (binary["preview"], binary["chunks"], binary["bytes"])


async def test_case_045_who_asks_for_the_stream_of_a_step_gets_a_fresh_one_each_time(
    folder: Path, replay: Any
) -> None:
    class Mirror(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("yield", pages, 2)

    async with open_test_runtime(folder, workflows=[Mirror], replay=replay) as runtime:
        instance = await runtime.create(Mirror)
        read = [[page async for page in instance.stream("yield", returns=bytes)] for _ in range(2)]

    assert [[b"page 0", b"page 1"]] * 2 == read
