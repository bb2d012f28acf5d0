"""`step.writable`: who writes, what a failed attempt leaves, and what a replay does not write again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from perdure import (
    AmbiguousStepError,
    EncodingError,
    ForgottenAwaitError,
    InvalidArgumentError,
    InvalidNameError,
    Retries,
    StepContext,
    StreamWriter,
    WorkflowCodeError,
    WorkflowStep,
    asyncio_step,
    process_step,
)

Play = Callable[..., Awaitable[Any]]
STREAMS = "SELECT name, idx, attempt, chunk, superseded FROM streams ORDER BY rowid"
CHUNKS = "SELECT chunk FROM streams WHERE NOT superseded"
SOON = Retries(limit=1, delay=0.001)


@dataclass
class Token:
    text: str


async def say(out: StreamWriter[Any], *words: Any) -> int:
    for word in words:
        await out.write(word)
    return len(words)


def say_in_thread(out: StreamWriter[str], *words: str) -> None:
    for word in words:
        out.write_sync(word)


@asyncio_step
async def say_on_asyncio(out: StreamWriter[bytes], *words: bytes) -> None:
    for word in words:
        await out.write(word)


@process_step
def say_in_process(out: StreamWriter[str]) -> None:
    out.write_sync("never")


async def stumble(out: StreamWriter[str], context: StepContext) -> None:
    await out.write(f"attempt {context.attempt}")
    if context.attempt == 1:
        raise ConnectionError("the line is down")


async def test_functions_of_every_kind_write_and_no_replay_writes_again(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        async with step.writable("tokens") as out:
            await step.do("in the loop", say, out, "a", {"b": 1})
            await step.do("in a thread", say_in_thread, out, "c")
            await step.do("on asyncio", say_on_asyncio, out, b"d")
            await step.sleep("long enough to hibernate", "1 hour")
            await step.do("after a sleep", say, out, None)

    played = await play(run, sql=CHUNKS)

    assert [('"a"',), ('{"b":1}',), ('"c"',), (b"d",), ("null",)] == played.steps


async def test_the_stream_is_a_step_that_is_complete_once_it_is_closed(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        async with step.writable("tokens") as out:
            await step.do("say", say, out, "high", b"water")

    played = await play(run, sql="SELECT name, kind, status, attempts, output, output_bytes FROM steps")

    assert [
        ("tokens", "stream", "completed", 0, None, 11),
        ("say", "do", "completed", 1, "2", 1),
    ] == played.steps


async def test_what_a_failed_attempt_wrote_is_superseded(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        async with step.writable("tokens") as out:
            await step.do("first", say, out, "kept")
            await step.do("stumble", stumble, out, retries=SOON)

    played = await play(run, sql=STREAMS)

    assert [
        ("tokens", 0, 1, '"kept"', 0),
        ("tokens", 1, 1, '"attempt 1"', 1),
        ("tokens", 3, 2, '"attempt 2"', 0),
    ] == played.steps


async def test_what_a_step_wrote_that_failed_for_good_is_superseded(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        async with step.writable("tokens") as out:
            try:
                await step.do("stumble", stumble, out, retries=0)
            except ConnectionError:
                await step.do("excuse", say, out, "sorry")

    played = await play(run, sql=STREAMS)

    assert [("tokens", 0, 1, '"attempt 1"', 1), ("tokens", 2, 1, '"sorry"', 0)] == played.steps


async def test_what_a_step_wrote_that_lost_a_race_stays(play: Play) -> None:
    written = trio.Event()

    async def endless(out: StreamWriter[str]) -> None:
        await out.write("so far")
        written.set()
        await trio.sleep_forever()

    async def run(step: WorkflowStep) -> str:
        async with step.writable("tokens") as out:
            who, _ = await step.race(
                "enough", {"endless": step.do("endless", endless, out), "stop": step.do("stop", written.wait)}
            )
        return who

    played = await play(run, sql=STREAMS)

    assert ("stop", [("tokens", 0, 1, '"so far"', 0)]) == (played.result, played.steps)


async def test_what_run_writes_itself_is_written_once(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        async with step.writable("log") as log:
            await log.write("begin")
            await step.do("say", say, log, "from a step")
            await log.write("between")
            await step.sleep("long enough to hibernate", "1 hour")
            await log.write("end")

    played = await play(run, sql=CHUNKS)

    assert ['"begin"', '"from a step"', '"between"', '"end"'] == [chunk for (chunk,) in played.steps]


async def test_two_branches_of_run_cannot_both_write_themselves(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        async with step.writable("log") as log, trio.open_nursery() as nursery:
            nursery.start_soon(log.write, "one")
            nursery.start_soon(log.write, "two")

    played = await play(run)

    assert "AmbiguousStepError" in repr(played.error)


async def test_chunks_come_back_by_the_annotation_of_the_stream(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        async with step.writable("tokens", of=Token) as out:
            await step.do("say", say, out, Token("high"))

    played = await play(run, sql=CHUNKS)

    assert [('{"text":"high"}',)] == played.steps


async def test_a_chunk_that_would_come_back_different_is_refused(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        async with step.writable("tokens") as out:
            await step.do("say", say, out, "good", Token("bad"))

    played = await play(run, sql=STREAMS)

    assert isinstance(played.error, EncodingError)
    assert [("tokens", 0, 1, '"good"', 1)] == played.steps


async def test_a_chunk_above_the_bound_is_refused(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        async with step.writable("tokens") as out:
            await step.do("say", say, out, bytes(16 * 1024 * 1024 + 1))

    played = await play(run, sql=STREAMS)

    assert isinstance(played.error, EncodingError)
    assert "16,777,217 bytes" in str(played.error)
    assert [] == played.steps


async def test_a_sensitive_stream_is_null_in_the_view_and_in_errors(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        async with step.writable("secret", sensitive=True) as out:
            await step.do("say", say, out, "word")
            await step.do("fail", say, out, Token("hush"))

    played = await play(run, sql=STREAMS)

    assert [None, None] == [row[3] for row in played.steps] + [None]
    assert "hush" not in str(played.error)


async def test_a_stream_is_opened_once_and_a_key_tells_others_apart(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        for turn in range(2):
            async with step.writable("turn", key=turn) as out:
                await step.do("say", say, out, turn, key=turn)
        async with step.writable("again"):
            pass
        async with step.writable("again"):
            pass

    played = await play(run, sql="SELECT name, chunk FROM streams")

    assert isinstance(played.error, AmbiguousStepError)
    assert [("turn[0]", "0"), ("turn[1]", "1")] == played.steps


async def test_nothing_writes_once_the_stream_is_closed_or_the_attempt_has_ended(play: Play) -> None:
    kept: list[StreamWriter[Any]] = []

    async def run(step: WorkflowStep) -> None:
        async with step.writable("tokens") as out:
            kept.append(out)
        with pytest.raises(WorkflowCodeError, match="is closed"):
            await kept[0].write("in run()")
        await step.do("late", say, kept[0], "in a step", retries=0)

    played = await play(run, sql=STREAMS)

    assert isinstance(played.error, WorkflowCodeError)
    assert [] == played.steps


async def test_a_writer_does_not_cross_to_a_process(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        async with step.writable("tokens") as out:
            await step.do("process", say_in_process, out, retries=0)

    played = await play(run)

    assert isinstance(played.error, InvalidArgumentError)
    assert "process step" in str(played.error)


async def test_write_sync_is_refused_in_the_loop(play: Play) -> None:
    async def wrong(out: StreamWriter[str]) -> None:
        await trio.lowlevel.checkpoint()
        out.write_sync("would wait for itself")

    async def run(step: WorkflowStep) -> None:
        async with step.writable("tokens") as out:
            await step.do("wrong", wrong, out)

    played = await play(run)

    assert isinstance(played.error, WorkflowCodeError)


async def test_bad_calls_are_refused_before_any_effect(play: Play) -> None:
    async def run(step: WorkflowStep) -> int:
        with pytest.raises(InvalidNameError):
            step.writable("")
        with pytest.raises(EncodingError):
            step.writable("odd", of=object.__new__)
        with pytest.raises(WorkflowCodeError, match="async with"):
            await step.writable("awaited")
        return 1

    played = await play(run)

    assert [] == played.steps


async def test_a_stream_that_is_never_entered_is_reported(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        step.writable("forgotten")

    played = await play(run)

    assert isinstance(played.error, ForgottenAwaitError)


async def test_an_error_in_the_body_closes_the_stream_and_goes_on(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        async with step.writable("tokens") as out:
            await step.do("say", say, out, "one")
            raise LookupError("in the body")

    played = await play(run)

    assert isinstance(played.error, LookupError)
    assert ("tokens", 1, "stream", "completed", 0) == played.steps[0]


async def test_a_fast_writer_waits_until_what_it_wrote_is_safe(play: Play) -> None:
    chunk = bytes(256 * 1024)

    async def pour(out: StreamWriter[bytes]) -> None:
        for _ in range(40):
            await out.write(chunk)

    async def run(step: WorkflowStep) -> None:
        async with step.writable("much") as out:
            await step.do("pour", pour, out)

    played = await play(run, sql="SELECT count(*), sum(length(chunk)) FROM streams")

    assert [(40, 40 * len(chunk))] == played.steps
