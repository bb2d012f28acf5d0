"""`instance.stream`: who reads what, and when; across suspensions, deaths, restarts and workers."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from perdure import (
    App,
    Instance,
    InstanceNotFoundError,
    InvalidArgumentError,
    InvalidNameError,
    Retries,
    StepContext,
    StreamNotFoundError,
    StreamReader,
    StreamRewoundError,
    StreamWriter,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    open_runtime,
)
from perdure.actors.host import Replay
from perdure.engine.app import load_app, load_module
from perdure.portal import in_thread
from perdure.storage.records import Durability
from perdure.testing import VirtualClock, open_test_runtime

PROGRAM = Path(__file__).parent / "programs" / "streaming.py"
SOON = Retries(limit=1, delay=0.001)


@pytest.fixture(params=["warm", "always"])
def replay(request: pytest.FixtureRequest) -> Replay:
    return cast("Replay", request.param)


class Talk:
    """Decides from outside how far the steps of `Talking` get. Made anew for each test."""

    def __init__(self) -> None:
        self.tell, self.told = trio.open_memory_channel[trio.MemorySendChannel[str]](9)
        self.fails = 0


class Talking(WorkflowEntrypoint[Talk]):
    """Writes what it is told to write, until it is told no more."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> int:
        async with step.writable("tokens") as out:
            return await step.do("talk", self.talk, out, retries=SOON)

    async def talk(self, out: StreamWriter[str], context: StepContext) -> int:
        sender, receiver = trio.open_memory_channel[str](0)
        self.env.tell.send_nowait(sender)
        async with receiver:
            async for word in receiver:
                await out.write(word)
        if context.attempt <= self.env.fails:
            raise ConnectionError("the line is down")
        return context.attempt


@contextlib.asynccontextmanager
async def talking(
    folder: Path, replay: Replay, *, fails: int = 0
) -> AsyncGenerator[tuple[Talk, Instance[int]]]:
    talk = Talk()
    talk.fails = fails
    async with open_test_runtime(folder / "state", workflows=[Talking], env=talk, replay=replay) as runtime:
        instance = await runtime.create(Talking, id="a")
        yield talk, instance


async def everything(reader: StreamReader[Any]) -> list[Any]:
    """Read to the end, and write down where what came before is to be forgotten."""
    got: list[Any] = []
    while True:
        try:
            async for chunk in reader:
                got.append(chunk)  # noqa: PERF401 - what came before an error is to stay
        except StreamRewoundError as rewound:
            got.append(rewound.index)
        else:
            return got


async def test_several_readers_get_each_chunk_as_it_is_written(tmp_path: Path, replay: Replay) -> None:
    async with talking(tmp_path, replay) as (talk, instance):
        words = await talk.told.receive()
        one, other = instance.stream("tokens"), instance.stream("tokens")
        for word in ("high", "water"):
            await words.send(word)
            assert [word, word] == [await anext(one), await anext(other)]
        await words.aclose()

        assert [[], []] == [await everything(one), await everything(other)]
        assert ["high", "water"] == await everything(instance.stream("tokens"))


async def test_a_reader_begins_at_an_index_or_counts_from_the_end(tmp_path: Path, replay: Replay) -> None:
    async with talking(tmp_path, replay) as (talk, instance):
        words = await talk.told.receive()
        for word in "abcd":
            await words.send(word)
        await words.aclose()
        await instance.result()

        for start, expected in (
            (0, "abcd"),
            (2, "cd"),
            (4, ""),
            (99, ""),
            (-1, "d"),
            (-3, "bcd"),
            (-9, "abcd"),
        ):
            assert expected == "".join(await everything(instance.stream("tokens", start)))


async def test_who_does_not_follow_gets_what_there_is(tmp_path: Path, replay: Replay) -> None:
    async with talking(tmp_path, replay) as (talk, instance):
        words = await talk.told.receive()
        await words.send("so far")
        reader = instance.stream("tokens")
        await anext(reader)

        assert ["so far"] == await everything(instance.stream("tokens", follow=False))
        assert 1 == reader.index
        await words.aclose()


async def test_a_reader_is_told_what_to_forget_and_a_new_one_never_sees_it(
    tmp_path: Path, replay: Replay
) -> None:
    async with talking(tmp_path, replay, fails=1) as (talk, instance):
        reader = instance.stream("tokens")
        words = await talk.told.receive()
        for word in ("lost", "too"):
            await words.send(word)
            assert word == await anext(reader)
        await words.aclose()
        words = await talk.told.receive()
        await words.send("found")
        await words.aclose()

        assert [0, "found"] == await everything(reader)
        assert ["found"] == await everything(instance.stream("tokens"))
        assert [0, "found"] == await everything(instance.stream("tokens", 2))  # as one that had the first two
        assert [] == await everything(instance.stream("tokens", 4))


async def test_a_reader_that_was_given_nothing_void_is_told_nothing(tmp_path: Path, replay: Replay) -> None:
    async with talking(tmp_path, replay, fails=1) as (talk, instance):
        words = await talk.told.receive()
        await words.send("lost")
        await words.aclose()
        words = await talk.told.receive()
        reader = instance.stream("tokens", -1)
        await words.send("found")
        await words.aclose()

        assert ["found"] == await everything(reader)


async def test_a_cancelled_reader_loses_nothing(tmp_path: Path, replay: Replay) -> None:
    async with talking(tmp_path, replay) as (talk, instance):
        reader = instance.stream("tokens")
        words = await talk.told.receive()
        for word in ("one", "two"):
            await words.send(word)
            with trio.CancelScope() as scope:
                scope.cancel()
                await anext(reader)
            assert scope.cancelled_caught
        await words.aclose()

        assert ["one", "two"] == await everything(reader)


async def test_a_stream_goes_on_through_a_hibernation(tmp_path: Path, replay: Replay) -> None:
    streaming = load_module(PROGRAM)
    clock = VirtualClock()
    async with open_test_runtime(
        tmp_path / "state", workflows=[streaming.Waiting], replay=replay, clock=clock
    ) as runtime:
        instance = await runtime.create(streaming.Waiting, id="a")
        reader = instance.stream("tokens")
        assert "before" == await anext(reader)
        clock.advance(60)
        await trio.testing.wait_all_tasks_blocked()
        await instance.send_event("go")

        assert ["after"] == await everything(reader)


async def test_a_stream_goes_on_in_the_next_runtime(tmp_path: Path, replay: Replay) -> None:
    streaming = load_module(PROGRAM)
    for turn in (0, 1):
        async with open_test_runtime(
            tmp_path / "state", workflows=[streaming.Waiting], replay=replay
        ) as runtime:
            instance = await runtime.create(streaming.Waiting, id="a", if_exists="attach")
            reader = instance.stream("tokens", turn)
            if turn == 0:
                assert "before" == await anext(reader)
            else:
                await instance.send_event("go")
                assert ["after"] == await everything(reader)


async def test_bad_calls_are_refused(tmp_path: Path) -> None:
    async with talking(tmp_path, "warm") as (talk, instance):
        for start in (1.5, True, 1 << 32):
            with pytest.raises(InvalidArgumentError):
                instance.stream("tokens", cast("int", start))
        with pytest.raises(InvalidNameError):
            instance.stream("")
        await (await talk.told.receive()).aclose()
        await instance.result()
        with pytest.raises(StreamNotFoundError, match="it has: 'tokens'"):
            await everything(instance.stream("token"))
        with pytest.raises(StreamNotFoundError):
            await everything(instance.stream("talk"))


async def test_a_reader_of_an_instance_that_was_deleted_is_told(tmp_path: Path) -> None:
    async with talking(tmp_path, "warm") as (talk, instance):
        await (await talk.told.receive()).aclose()
        await instance.result()
        await instance.delete()

        with pytest.raises(InstanceNotFoundError):
            await everything(instance.stream("tokens"))


class Retelling(WorkflowEntrypoint[list[int]]):
    """Writes to one stream from two steps, and by itself; `env` counts how often the second ran."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        async with step.writable("tokens") as out:
            await out.write("begin")
            await step.do("first", self.first, out)
            await step.do("second", self.second, out)

    async def first(self, out: StreamWriter[str]) -> None:
        await out.write("first")

    async def second(self, out: StreamWriter[str]) -> None:
        self.env.append(1)
        await out.write(f"second {len(self.env)}")


async def test_a_restart_from_a_step_supersedes_what_that_step_wrote(tmp_path: Path, replay: Replay) -> None:
    async with open_test_runtime(
        tmp_path / "state", workflows=[Retelling], env=list[int](), replay=replay
    ) as runtime:
        instance = await runtime.create(Retelling, id="a")
        await instance.result()
        await instance.restart(from_step="second")
        await instance.result()

        assert ["first", "begin", "second 2"] == await everything(instance.stream("tokens"))


async def test_a_restart_begins_the_stream_anew(tmp_path: Path, replay: Replay) -> None:
    async with open_test_runtime(
        tmp_path / "state", workflows=[Retelling], env=list[int](), replay=replay
    ) as runtime:
        instance = await runtime.create(Retelling, id="a")
        await instance.result()
        await instance.restart()
        await instance.result()

        assert ["begin", "first", "second 2"] == await everything(instance.stream("tokens"))


def test_a_stream_crosses_the_portal_to_a_thread(tmp_path: Path) -> None:
    with in_thread(tmp_path / "state", workflows=[Retelling], env=list[int](), durability="process") as p:
        instance = p(p.runtime.create, Retelling, id="a")

        assert ["begin", "first", "second 1"] == list(p.iterate(instance.stream, "tokens", returns=str))


# -- deaths, workers, other processes ----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["full", "process"])
async def test_what_an_attempt_wrote_whose_process_died_is_superseded(
    tmp_path: Path, replay: Replay, durability: Durability
) -> None:
    state = tmp_path / "state"
    program = [sys.executable, str(PROGRAM), str(state), durability, replay]
    for _ in range(2):  # each of the two workflows kills it once
        await trio.run_process(program, check=False, stderr=subprocess.DEVNULL)
    async with open_runtime(state, load_app(PROGRAM), durability=durability, replay=replay) as runtime:
        telling, spelling = await runtime.get("Telling", "a"), await runtime.get("Spelling", "a")
        await telling.result()  # one who reads before that is told to forget the lost attempt
        tokens = await everything(telling.stream("tokens"))
        spelt = await spelling.result()
        assert spelt == await everything(spelling.stream("letters"))
        rows = await telling.sql("SELECT DISTINCT superseded FROM streams")

    attempts = {token.partition(".")[0] for token in tokens[1:-1]}
    assert ("begin", "end", 1, 7) == (tokens[0], tokens[-1], len(attempts), len(tokens))
    assert len(spelt) == 3
    assert len({text[0] for text in spelt}) == 1
    assert len(rows) in (1, 2)


@pytest.mark.slow
async def test_a_stream_is_read_from_the_process_that_supervises_workers(tmp_path: Path) -> None:
    app: App = load_app(PROGRAM)
    async with open_runtime(tmp_path / "state", app, workers=2, durability="process") as runtime:
        instances = [await runtime.create("Waiting", id=id_) for id_ in ("a", "b")]
        for instance in instances:
            reader = instance.stream("tokens")
            assert "before" == await anext(reader)
            await instance.send_event("go")
            assert ["after"] == await everything(reader)
