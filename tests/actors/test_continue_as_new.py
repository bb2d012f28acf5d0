"""`step.continue_as_new`: runs without end, in a file that does not grow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from perdure import (
    InstanceFailedError,
    InvalidArgumentError,
    InvalidParamsError,
    OpenStepError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    current_step,
)
from perdure.actors.host import Replay
from perdure.storage.sql import Sql
from perdure.testing import open_test_runtime

NUMBERS: list[int] = []
TEXTS: list[str] = []


class Game(msgspec.Struct, frozen=True):
    number: int = 1
    keys: list[str] = []
    games: int = 3


async def key() -> str:
    return current_step().idempotency_key


class Chess(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Game], step: WorkflowStep) -> Game:
        game = event.payload
        board = await step.do("set up the board", lambda: "x" * 2_000)
        moves = [await step.do(f"move {n}", key) for n in range(3)]
        if game.number == game.games:
            return game
        keys = [] if game.games > 10 else [*game.keys, *moves]
        await step.continue_as_new(Game(game.number + 1, keys, game.games))
        raise AssertionError(board)


async def test_an_instance_goes_on_with_new_params_and_an_empty_journal(
    tmp_path: Path, replay: Replay
) -> None:
    async with open_test_runtime(tmp_path / "state", workflows=[Chess], replay=replay) as runtime:
        game = await runtime.create(Chess, params=Game(), id="g")
        ended = await game.result()
        steps = [row.name for row in await game.sql("SELECT name FROM steps ORDER BY seq")]
        (row,) = await game.sql("SELECT generation, params ->> '$.number' AS number FROM instance")
        facts = [entry async for entry in game.subscribe()]

    assert 3 == ended.number
    assert ["set up the board", "move 0", "move 1", "move 2"] == steps
    assert (3, 3) == (row.generation, row.number)
    assert 6 == len(set(ended.keys)), "a step of another generation has another idempotency key"
    continued = [
        msgspec.json.decode(fact.detail or "")["generation"] for fact in facts if "continued" in fact.what
    ]
    assert [2, 3] == continued


async def test_a_thousand_continuations_keep_the_size_of_the_file(tmp_path: Path) -> None:
    sizes: list[int] = []
    async with open_test_runtime(tmp_path / "state", workflows=[Chess], replay="warm") as runtime:
        for games in (150, 1_000):
            game = await runtime.create(Chess, params=Game(games=games), id=f"g{games}")
            assert games == (await game.result()).number
            sizes.append((await game.sql("SELECT page_count AS n FROM pragma_page_count"))[0].n)

    assert sizes[1] <= sizes[0] * 1.25


class Counting(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[list[int]], step: WorkflowStep) -> list[int]:
        heard = event.payload
        if len(heard) == 4:
            return heard
        said = await step.wait_for_event("number", type="number", timeout=None)
        await step.transaction("note", note, said.payload)
        await step.continue_as_new([*heard, said.payload])
        raise AssertionError


def note(sql: Sql, number: int) -> None:
    sql.exec("CREATE TABLE IF NOT EXISTS seen (n)")
    sql.exec("INSERT INTO seen VALUES (?)", number)


async def test_events_that_nobody_has_got_yet_are_carried_over_and_tables_stay(
    tmp_path: Path, replay: Replay
) -> None:
    async with open_test_runtime(tmp_path / "state", workflows=[Counting], replay=replay) as runtime:
        counting = await runtime.create(Counting, params=NUMBERS, id="c")
        for number in range(4):
            await counting.send_event("number", number)

        assert [0, 1, 2, 3] == await counting.result()
        assert 4 == (await counting.sql("SELECT count(*) AS n FROM seen"))[0].n


async def test_a_large_event_survives_a_continuation(tmp_path: Path, replay: Replay) -> None:
    large = ["a" * 100_000, "b" * 100_000]

    class Collect(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[list[str]], step: WorkflowStep) -> list[str]:
            if len(event.payload) == 2:
                return event.payload
            text = (await step.wait_for_event("text", type="text", timeout=None)).payload
            await step.continue_as_new([*event.payload, text])
            raise AssertionError

    async with open_test_runtime(tmp_path / "state", workflows=[Collect], replay=replay) as runtime:
        collect = await runtime.create(Collect, params=TEXTS, id="c")
        for text in large:
            await collect.send_event("text", text)

        assert large == await collect.result()


@pytest.mark.parametrize(("version", "expected"), [("latest", "2"), ("same", "1")])
async def test_the_version_is_the_classes_or_stays(
    tmp_path: Path, replay: Replay, version: Any, expected: str
) -> None:
    def chess(its_version: str) -> type[WorkflowEntrypoint]:
        class Endless(WorkflowEntrypoint):
            name = "Endless"

            async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
                await step.wait_for_event("go", type="go", timeout=None)
                if event.payload < 2:
                    await step.continue_as_new(event.payload + 1, version=version)
                return event.payload

        Endless.version = its_version
        return Endless

    first, second = chess("1"), chess("2")
    async with open_test_runtime(tmp_path / "state", workflows=[first], replay=replay) as runtime:
        game = await runtime.create(first, params=1, id="g")
        with trio.fail_after(30):
            while (await game.status()).status != "waiting":  # it has begun, with the first version
                await trio.lowlevel.checkpoint()
    async with open_test_runtime(tmp_path / "state", workflows=[second], replay=replay) as runtime:
        game = await runtime.get(second, "g")
        await game.send_event("go")
        await game.send_event("go")

        assert 2 == await game.result()
        assert expected == (await game.sql("SELECT version FROM instance"))[0].version


async def test_it_is_refused_while_a_step_is_open(tmp_path: Path, replay: Replay) -> None:
    class Hasty(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> None:
            open_call = step.sleep("nap", 1)
            await step.continue_as_new(event.payload + 1)
            await open_call

    async with open_test_runtime(tmp_path / "state", workflows=[Hasty], replay=replay) as runtime:
        with pytest.raises(InstanceFailedError) as failed:
            await (await runtime.create(Hasty, params=1)).result()

    assert isinstance(failed.value.__cause__, OpenStepError)
    assert "'nap'" in str(failed.value.__cause__)


async def test_a_wrong_call_of_it_is_refused(tmp_path: Path, replay: Replay) -> None:
    class Wrong(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
            bad: Any = "x"
            with pytest.raises(InvalidParamsError):
                await step.continue_as_new(bad)
            with pytest.raises(InvalidArgumentError):
                await step.continue_as_new(1, version=bad)
            return event.payload

    async with open_test_runtime(tmp_path / "state", workflows=[Wrong], replay=replay) as runtime:
        assert 1 == await (await runtime.create(Wrong, params=1)).result()


async def test_a_call_of_it_that_nobody_awaits_fails_the_run(tmp_path: Path, replay: Replay) -> None:
    class Forgetful(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
            step.continue_as_new(2)
            return 1

    async with open_test_runtime(tmp_path / "state", workflows=[Forgetful], replay=replay) as runtime:
        with pytest.raises(InstanceFailedError, match="never awaited"):
            await (await runtime.create(Forgetful, params=1)).result()


async def test_a_child_that_continues_answers_its_parent_in_the_end(tmp_path: Path, replay: Replay) -> None:
    class Tournament(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> int:
            return (await step.child(Chess, Game(games=5))).number

    async with open_test_runtime(tmp_path / "state", workflows=[Chess, Tournament], replay=replay) as runtime:
        assert 5 == await (await runtime.create(Tournament)).result()
