"""`sensitive=`: what is stored is whole; what is shown of it is nothing, unless asked for."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from perdure import (
    App,
    EncodingError,
    Instance,
    InstanceFailedError,
    StepContext,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    process_step,
)
from perdure.actors.host import Replay
from perdure.storage.reveal import revealing_view
from perdure.testing import open_test_runtime

Sensitive = Literal["input", "output", "both"]
Play = Callable[..., Awaitable[Any]]
SAID = "open sesame"
SHOWN = "SELECT name, input, output, sensitive FROM steps ORDER BY seq"
BOTH: tuple[Sensitive, ...] = ("input", "output", "both")


async def spell(word: str, context: StepContext) -> list[str]:
    context.heartbeat({"so far": word})
    return [f"{word}!"]


class Cave(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> int:
        total = 0
        for which in BOTH:
            said = await step.do(which, spell, SAID, sensitive=which)
            total += len(said[0])
        said = await step.do("large", lambda: SAID * 10_000, sensitive="output", returns=str)
        return total + len(said)


async def everything_shown(instance: Instance[Any], *, reveal: bool = False) -> str:
    """Return all that the views say, and what the handle tells."""
    views = ["instance", "steps", "attempts", "events", "streams", "history"]
    told = [str(await instance.status()), str(await instance.history())]
    async with contextlib.aclosing(instance.subscribe()) as story:
        told += [str(entry) async for entry in story]
    for view in views:
        told += [str(row) for row in await instance.sql(f"SELECT * FROM {view}", reveal=reveal)]
    return "\n".join(told)


async def test_no_view_shows_it_and_run_gets_it(tmp_path: Path, replay: Replay) -> None:
    async with open_test_runtime(tmp_path / "state", workflows=[Cave], replay=replay) as runtime:
        instance = await runtime.create(Cave)
        assert 3 * (len(SAID) + 1) + 10_000 * len(SAID) == await instance.result()
        told = await everything_shown(instance)
        shown = [tuple(row) for row in await instance.sql(SHOWN)]

    given, got = f'["{SAID}"]', f'["{SAID}!"]'
    assert [("input", None, got, 1), ("output", given, None, 1), ("both", None, None, 1)] == shown[:3]
    assert ("large", None, None, 1) == shown[3]
    assert 2 == told.count(SAID)  # the output of one, the input of the other


async def test_it_is_shown_to_those_who_ask(tmp_path: Path, replay: Replay) -> None:
    given, got = f'["{SAID}"]', f'["{SAID}!"]'
    async with open_test_runtime(tmp_path / "state", workflows=[Cave], replay=replay) as runtime:
        instance = await runtime.create(Cave)
        await instance.result()
        revealed = [tuple(row) for row in await instance.sql(SHOWN, reveal=True)]
        beats = [row.heartbeat for row in await instance.sql("SELECT heartbeat FROM attempts", reveal=True)]
        async with instance.sql_stream(SHOWN, reveal=True) as rows:
            streamed = [tuple(row) async for row in rows]
        again = [tuple(row) for row in await instance.sql(SHOWN)]

    assert [(which, given, got, 1) for which in BOTH] == revealed[:3]
    assert len(SAID) * 10_000 + 2 == len(revealed[3][2])
    assert streamed == revealed
    assert [f'{{"so far":"{SAID}"}}'] * 3 == [beat for beat in beats if beat]
    assert [None, got, None] == [again[2][2], again[0][2], again[1][2]]


async def test_a_closed_file_is_revealed_as_an_open_one_is(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path / "state", workflows=[Cave]) as runtime:
        await (await runtime.create(Cave, id="a")).result()
    async with open_test_runtime(tmp_path / "state", workflows=[Cave]) as runtime:
        instance = await runtime.get(Cave, "a")
        ((hidden,),) = await instance.sql("SELECT input FROM steps WHERE name = 'both'")
        ((shown,),) = await instance.sql("SELECT input FROM steps WHERE name = 'both'", reveal=True)

    assert (None, f'["{SAID}"]') == (hidden, shown)


# -- errors of the runtime ---------------------------------------------------------------------


class Unstorable:
    def __repr__(self) -> str:
        return SAID


def unstorable() -> list[Any]:
    return [Unstorable()]


def not_the_same() -> dict[str, Any]:
    return {SAID: (1, 2)}


def no_number() -> list[float]:
    return [math.nan]


@process_step
def unsendable() -> Any:
    return threading.Lock()


@pytest.mark.parametrize("fn", [unstorable, not_the_same, no_number, unsendable])
async def test_an_error_about_the_result_does_not_quote_it(
    play: Play, caplog: pytest.LogCaptureFixture, fn: Any
) -> None:
    async def run(step: WorkflowStep) -> str:
        try:
            await step.do("say", fn, sensitive="output", retries=0)
        except EncodingError as error:
            return f"{error} {error.__notes__} {error.__cause__!r}"
        return "stored"

    played = await play(run, sql="SELECT error FROM steps")

    assert "cannot be" in played.result
    for text in (played.result, str(played.steps), caplog.text):
        assert SAID not in text


async def test_an_error_about_a_heartbeat_does_not_quote_it(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        async def beat(context: StepContext) -> None:
            context.heartbeat({SAID: (1, 2)})

        await step.do("say", beat, sensitive="both", retries=0)

    played = await play(run, sql="SELECT error FROM steps")

    assert isinstance(played.error, EncodingError)
    assert SAID not in str(played.steps)


async def test_an_error_of_the_users_own_is_shown_as_it_is(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        def fail() -> str:
            raise LookupError(SAID)

        await step.do("say", fail, sensitive="both", retries=0)

    assert SAID in str((await play(run, sql="SELECT error FROM steps")).steps)


async def test_what_does_not_fit_its_annotation_any_more_is_not_quoted(
    tmp_path: Path, replay: Replay, caplog: pytest.LogCaptureFixture
) -> None:
    async def told(returns: object) -> str:
        class Word(WorkflowEntrypoint):
            async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
                word = await step.do("say", lambda: SAID, sensitive="output", returns=returns)
                await step.wait_for_event("go", type="go", timeout=None)
                return len(word)

        async with open_test_runtime(tmp_path / "state", workflows=[Word], replay=replay) as runtime:
            instance = await runtime.create(Word, id="a", if_exists="attach")
            if returns is str:
                async with contextlib.aclosing(instance.subscribe()) as story:
                    async for entry in story:
                        if entry.what == "event started":
                            break
                return ""
            with pytest.raises(InstanceFailedError) as failed:
                await instance.result()
            return f"{failed.value} {failed.value.__cause__!r} {await everything_shown(instance)}"

    await told(str)
    text = await told(Literal["something else"])

    assert "does not fit its annotation any more (sensitive, so not shown)" in text
    assert SAID not in text
    assert SAID not in caplog.text


async def test_changed_arguments_are_reported_without_a_digest_of_them(
    tmp_path: Path, replay: Replay
) -> None:
    async def diverged(pin: int) -> list[str]:
        class Pin(WorkflowEntrypoint):
            async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
                await step.do("check", abs, pin, sensitive="input", returns=int)
                await step.sleep("a while", 1)

        app = App([Pin])
        async with open_test_runtime(tmp_path / "state", app, replay=replay) as runtime:
            instance = await runtime.create(Pin, id="a", if_exists="attach")
            if pin == 1:
                async with contextlib.aclosing(instance.subscribe()) as story:
                    async for entry in story:
                        if entry.what == "sleep started":
                            return []
            await instance.result()
            rows = await instance.sql("SELECT detail FROM history WHERE what = 'divergence'")
            return [row.detail for row in rows]

    await diverged(1)
    told = await diverged(2)

    assert all("digest" not in text and "sensitive" in text for text in told)


async def test_the_log_does_not_tell_it(
    tmp_path: Path, replay: Replay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_test_runtime(tmp_path / "state", workflows=[Cave], replay=replay) as runtime:
        await (await runtime.create(Cave)).result()

    assert SAID not in caplog.text


def test_every_withheld_value_of_a_view_is_found() -> None:
    sql = "CREATE VIEW v AS SELECT iif(sensitive IS NULL,a,NULL),iif(t.sensitive IN ('x'),NULL,g(b,(c)))AS b"

    assert "CREATE TEMP VIEW v AS SELECT (a),(g(b,(c)))AS b" == revealing_view("v", sql)
