"""The line between a supervisor and a worker: order, answers, errors, and its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from perdure import InstanceFinishedError
from perdure.actors.outcome import Completed, Dead, Failed, Outcome, Parked, Terminated
from perdure.engine.access import Command, ElsewhereError
from perdure.engine.line import Line, LineClosedError, line_pair
from perdure.engine.messages import (
    OUTCOME_CHARS_MAX,
    Answer,
    Changed,
    Ended,
    Message,
    Request,
    ended,
    failed,
    outcome_of,
)
from perdure.errors import PerdureError
from perdure.storage.records import Key

KEY = Key("W", "a")


async def refuse(request: Request) -> Answer:
    return failed(request.number, PerdureError(f"nobody answers {request.ask}"))


def ignore(_message: Message) -> None:
    pass


@asynccontextmanager
async def lines(
    heard: list[Message], serve: Callable[[Request], Awaitable[Answer]] = refuse
) -> AsyncGenerator[tuple[Line, Line]]:
    """Open both ends; the second one hears and serves."""
    first, second = (Line(end) for end in line_pair())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.run, heard.append, refuse)
        nursery.start_soon(second.run, heard.append, serve)
        yield first, second
        nursery.cancel_scope.cancel()


async def test_messages_arrive_in_order_however_large() -> None:
    heard: list[Message] = []
    sent = [Ended("W", str(number), "complete", "x" * (number * 1_000)) for number in range(100)]
    async with lines(heard) as (first, second):
        for message in sent:
            first.send(message)
        with pytest.raises(PerdureError, match="nobody answers sync"):
            await first.ask(Request("sync", "W", "a"))
        assert 0 == second.backlog_bytes

    assert sent == heard


async def test_each_request_gets_its_own_answer() -> None:
    async def serve(request: Request) -> Answer:
        if request.id == "first":
            await second_asked.wait()
        second_asked.set()
        return Answer(request.number, value=request.id.encode())

    second_asked = trio.Event()
    answers: dict[str, bytes | None] = {}

    async def ask(line: Line, id_: str) -> None:
        answers[id_] = (await line.ask(Request("sync", "W", id_))).value

    async with lines([], serve) as (first, _), trio.open_nursery() as nursery:
        nursery.start_soon(ask, first, "first")
        nursery.start_soon(ask, first, "second")

    assert {"first": b"first", "second": b"second"} == answers


async def test_an_error_comes_back_with_class_text_and_facts() -> None:
    async def serve(request: Request) -> Answer:
        return failed(request.number, InstanceFinishedError("over", workflow="W", instance_id="a"))

    async with lines([], serve) as (first, _):
        with pytest.raises(InstanceFinishedError, match="over") as error:
            await first.ask(Request("status", "W", "a"))

    assert ("W", "a") == (error.value.workflow, error.value.instance_id)


async def test_that_another_worker_owns_it_comes_back_as_that() -> None:
    async def serve(request: Request) -> Answer:
        return failed(request.number, ElsewhereError("not here"))

    async with lines([], serve) as (first, _):
        with pytest.raises(ElsewhereError):
            await first.ask(Request("status", "W", "a"))


@pytest.mark.parametrize("payload", ['"text"', b"bytes", "null"])
async def test_a_payload_stays_text_or_bytes(payload: str | bytes) -> None:
    seen: list[Command | None] = []

    async def serve(request: Request) -> Answer:
        seen.append(request.command)
        return Answer(request.number)

    command = Command(name="send-event", type="go", payload=payload)
    async with lines([], serve) as (first, _):
        await first.ask(Request("command", "W", "a", command))

    assert [command] == seen


async def test_the_end_of_the_other_end_fails_what_was_asked() -> None:
    async def never(_request: Request) -> Answer:
        asked.set()
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def end_when_asked(scope: trio.CancelScope) -> None:
        await asked.wait()
        scope.cancel()

    asked = trio.Event()
    first, second = (Line(end) for end in line_pair())
    scope = trio.CancelScope()

    async def serve_second() -> None:
        with scope:
            await second.run(ignore, never)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.run, ignore, refuse)
        nursery.start_soon(serve_second)
        nursery.start_soon(end_when_asked, scope)
        with pytest.raises(LineClosedError):
            await first.ask(Request("sync", "W", "a"))
        with pytest.raises(LineClosedError):
            await first.ask(Request("sync", "W", "a"))
        first.send(Changed("W", "a"))  # nobody is there, and nothing happens


@pytest.mark.parametrize(
    "outcome",
    [
        Completed(output='"done"'),
        Completed(output=b"done"),
        Failed(error='{"message":"no"}'),
        Terminated(),
        Dead(reason="again and again"),
    ],
)
def test_an_outcome_is_told_and_read(outcome: Outcome) -> None:
    told = ended(KEY, outcome)

    assert told is not None
    assert outcome == outcome_of(told)


def test_what_is_no_end_or_too_large_is_not_told() -> None:
    large = ended(KEY, Completed(output="x" * (OUTCOME_CHARS_MAX + 1)))

    assert ended(KEY, Parked(wake=None, reason="a nap")) is None
    assert large is not None
    assert outcome_of(large) is None
