"""Law 13: bad input loses nothing: a refused call leaves every file as it was.

A file that nobody has open is compared byte for byte; a live one by all that SQLite finds in it,
because opening it by other means would drop its owner's locks.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

import perdure
import perdure.engine.opening
from perdure import (
    Instance,
    InstanceFailedError,
    InstanceFinishedError,
    InvalidArgumentError,
    Limits,
    PerdureError,
    Runtime,
    StateLockedError,
    StateUnusableError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.compose import RaceCall
from perdure.actors.host import Replay
from perdure.actors.step_do import DoSteps
from perdure.engine.access import Command
from perdure.engine.loop import GameLoop
from perdure.testing import open_test_runtime

Broken = Callable[[Any, str, Callable[..., Any]], None]
Reached = Callable[..., Awaitable[None]]
FUTURE = datetime.fromisoformat("2040-01-01T00:00Z")


class Waits(WorkflowEntrypoint):
    """Waits for an event, and ends with what it brings."""

    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> Any:
        return (await step.wait_for_event("go", type="go", timeout=None)).payload


def bytes_of(folder: Path) -> dict[str, str]:
    """Return the digest of every file of a folder that nobody has open."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def content_of(folder: Path) -> dict[str, list[str]]:
    """Return the names of all files of a live folder, and what SQLite finds in each database."""
    content: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".sqlite":
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
                content[name] = list(connection.iterdump())
        elif not name.endswith(("-wal", "-shm")):  # which come and go with readers
            content[name] = []
    return content


# -- calls to a runtime ------------------------------------------------------------------------


def refused_creations(runtime: Runtime) -> list[Callable[[], Awaitable[Any]]]:
    create = cast("Callable[..., Awaitable[Any]]", runtime.create)
    return [
        lambda: create("Unknown", params=1),
        lambda: create(Waits, params="not a number"),
        lambda: create(Waits),
        lambda: create(Waits, params=1, id="a\nb"),
        lambda: create(Waits, params=1, id="waiting"),
        lambda: create(Waits, params=1, id="finished"),
        lambda: create(Waits, params=1, id="later"),
        lambda: create(Waits, params=1, if_exists="sometimes"),
        lambda: create(Waits, params="x", id="waiting", if_exists="restart"),
        lambda: create(Waits, params=1, id="finished", if_exists="restart", timeout="5 moons"),
        lambda: create(Waits, params=1, id="waiting", if_exists="restart", at=datetime(2030, 1, 1)),
        lambda: create(Waits, params=1, at=datetime(2030, 1, 1)),
        lambda: create(Waits, params=1, timeout="5 moons"),
        lambda: create(Waits, params=1, event=("a\nb", 1)),
        lambda: create(Waits, params=1, event=("go", {1, 2})),
        lambda: create(Waits, params=1, id="waiting", if_exists="restart", event=("go", object())),
        lambda: create(Waits, params=1, tags=[object()]),
        lambda: runtime.get(Waits, "nobody"),
        lambda: runtime.get("Unknown", "a"),
    ]


def refused_arguments(instance: Instance[Any]) -> list[Callable[[], Awaitable[Any]]]:
    """Return what is refused before anybody looks for the instance's file."""
    return [
        lambda: instance.send_event("a\nb"),
        lambda: instance.send_event("go", {1, 2}),
        lambda: instance.send_event("go", object()),
        lambda: instance.sql("SELECT 1", timeout="5 moons"),
    ]


def refused_questions(instance: Instance[Any]) -> list[Callable[[], Awaitable[Any]]]:
    return [
        lambda: instance.sql("DELETE FROM _perdure_steps"),
        lambda: instance.sql("DROP VIEW steps"),
        lambda: instance.sql("CREATE TABLE mine (a)"),
        lambda: instance.sql("ATTACH 'other.sqlite' AS other"),
        lambda: instance.sql("PRAGMA user_version = 7"),
        lambda: instance.sql("SELECT 1; DELETE FROM _perdure_steps"),
        lambda: instance.sql("SELECT ?", object()),
        lambda: instance.sql("no sql at all"),
    ]


def refused_commands(instance: Instance[Any]) -> list[Callable[[], Awaitable[Any]]]:
    """Return what a finished instance refuses."""
    return [
        lambda: instance.send_event("go", 1),
        instance.pause,
        instance.resume,
        instance.terminate,
    ]


async def refuse(call: Callable[[], Awaitable[Any]], folder: Path, before: dict[str, list[str]]) -> None:
    with pytest.raises((PerdureError, TypeError)) as refused:
        await call()
    after = content_of(folder)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    assert [] == changed, refused.value


async def check_refused_calls_change_nothing(folder: Path, replay: Replay, reached: Reached) -> None:
    """Ask a runtime that has a waiting, a finished and a not yet started instance."""
    limits = Limits(idle_grace_s=0.01)
    async with perdure.open_runtime(
        folder, workflows=[Waits], replay=replay, durability="process", limits=limits
    ) as runtime:  # on the real clock: a virtual one would jump to the start of what is to come later
        finished = await runtime.create(Waits, params=1, id="finished", event=("go", 7))
        assert 7 == await finished.result()
        waiting = await runtime.create(Waits, params=1, id="waiting")
        await reached(waiting, "event started")
        later = await runtime.create(Waits, params=1, id="later", at=FUTURE)
        while runtime.statistics().warm or not runtime.is_idle:
            await trio.testing.wait_all_tasks_blocked()
        before = content_of(folder)
        for call in (
            *refused_creations(runtime),
            *refused_questions(waiting),
            *refused_questions(finished),
            *(call for each in (waiting, finished, later) for call in refused_arguments(each)),
            *refused_commands(finished),
        ):
            await refuse(call, folder, before)
        await waiting.send_event("go", 8)
        assert 8 == await waiting.result()


async def test_a_refused_call_changes_nothing(folder: Path, replay: Replay, reached: Reached) -> None:
    await check_refused_calls_change_nothing(folder, replay, reached)


async def test_the_check_fails_when_an_event_is_written_before_its_type_is_looked_at(
    folder: Path, reached: Reached, broken: Broken
) -> None:
    send: Callable[..., Awaitable[None]] = vars(Instance)["send_event"]

    async def write_first(instance: Instance[Any], type_: str, payload: Any = None) -> None:
        await vars(Instance)["_command"](instance, Command(name="send-event", type="early", payload="null"))
        await send(instance, type_, payload)

    broken(Instance, "send_event", write_first)

    with pytest.raises(AssertionError):
        await check_refused_calls_change_nothing(folder, "warm", reached)


async def check_a_finished_instance_keeps_its_file(folder: Path, replay: Replay) -> None:
    """Ask for it also in the moment when its result is known and its file is still open."""
    async with open_test_runtime(folder, workflows=[Waits], replay=replay) as runtime:
        for at_once in (False, True):
            instance = await runtime.create(Waits, params=1, id=f"a-{at_once}", event=("go", 7))
            await instance.result()
            if at_once:
                for command in refused_commands(instance):
                    with pytest.raises(InstanceFinishedError):
                        await command()
    with closing(sqlite3.connect(folder / "Waits" / "a-%54rue.sqlite")) as connection:
        epochs = connection.execute("SELECT epoch, replays FROM _perdure_instance").fetchall()
    with closing(sqlite3.connect(folder / "Waits" / "a-%46alse.sqlite")) as connection:
        undisturbed = connection.execute("SELECT epoch, replays FROM _perdure_instance").fetchall()
    assert undisturbed == epochs


async def test_a_finished_instance_keeps_its_file_whoever_asks_for_it(folder: Path, replay: Replay) -> None:
    await check_a_finished_instance_keeps_its_file(folder, replay)


async def test_the_finished_check_fails_when_nobody_waits_for_the_end_of_a_life(
    folder: Path, broken: Broken
) -> None:
    async def hurry(*_: object) -> None:
        await trio.lowlevel.checkpoint()

    broken(GameLoop, "at_rest", hurry)

    with pytest.raises(AssertionError):
        await check_a_finished_instance_keeps_its_file(folder, "warm")


async def test_the_options_check_fails_when_they_are_not_looked_at(folder: Path, broken: Broken) -> None:
    broken(perdure.engine.opening, "_check_options", lambda *_: None)

    with pytest.raises(AssertionError, match="it was opened"):
        await opening_is_refused(folder, workers=0)


# -- opening -----------------------------------------------------------------------------------


async def opening_is_refused(folder: Path, **options: Any) -> None:
    with pytest.raises(PerdureError):
        async with perdure.open_runtime(folder, **options):
            raise AssertionError("it was opened")


class Nameless(WorkflowEntrypoint):
    """No name for a workflow."""

    name = "a/b"

    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 0},
        {"durability": "maybe"},
        {"replay": "sometimes"},
        {"objects": [object]},
        {"workflows": [object]},
        {"workflows": [Nameless]},
    ],
    ids=lambda options: next(iter(cast("dict[str, Any]", options))),
)
async def test_refused_options_leave_every_byte(
    folder: Path, replay: Replay, options: dict[str, Any]
) -> None:
    await opening_is_refused(folder, **options)
    assert {} == bytes_of(folder)
    async with open_test_runtime(folder, workflows=[Waits], replay=replay) as runtime:
        await runtime.create(Waits, params=1, id="a")
    before = bytes_of(folder)

    await opening_is_refused(folder, **options)

    assert before == bytes_of(folder)


async def test_a_second_owner_is_refused_and_leaves_everything(folder: Path, replay: Replay) -> None:
    async with open_test_runtime(folder, workflows=[Waits], replay=replay) as runtime:
        instance = await runtime.create(Waits, params=1, event=("go", 7))
        await instance.result()
        while not runtime.is_idle or runtime.statistics().warm:
            await trio.testing.wait_all_tasks_blocked()
        before = content_of(folder)

        with pytest.raises(StateLockedError):
            async with open_test_runtime(folder, workflows=[Waits]):
                raise AssertionError("it was opened")

        assert before == content_of(folder)


async def test_a_folder_of_somebody_else_is_left_alone(folder: Path) -> None:
    (folder / "Waits").mkdir(parents=True)
    (folder / "thesis.txt").write_text("eight years of work")
    (folder / "catalog.sqlite").write_bytes(b"not a database of ours" * 100)
    before = bytes_of(folder)

    with pytest.raises(StateUnusableError):
        async with open_test_runtime(folder, workflows=[Waits]):
            raise AssertionError("it was opened")

    assert before.items() <= bytes_of(folder).items()  # beside it lies the lock, under which it was looked at


# -- calls in run() ----------------------------------------------------------------------------


async def one() -> int:
    return 1


def refused_steps(step: WorkflowStep) -> list[Callable[[], object]]:
    do = cast("Callable[..., object]", step.do)
    return [
        lambda: do("a\nb", one),
        lambda: do("work", one, retries=-1),
        lambda: do("work", one, timeout=0),
        lambda: do("work", one, sensitive="all"),
        lambda: do("work", 7),
        lambda: do("work", one, returns="no such type"),
        lambda: cast("Any", step).wait_for_event("wait", type="go", returns="no such type"),
        lambda: cast("Any", step).transaction("transaction", len, returns="no such type"),
        lambda: do(None, one),
        lambda: cast("Any", step).map("parts", one, [1], limit=0),
        lambda: cast("Any", step).gather("parts", {}),
        lambda: cast("Any", step).race("parts", {}),
        lambda: step.sleep("nap", -1),
        lambda: step.sleep_until("nap", datetime(2030, 1, 1)),
        lambda: step.wait_for_event("wait", type=""),
        lambda: step.move_on_after("deadline", "soon"),
        lambda: step.transaction("transaction", cast("Any", one)),
    ]


async def check_refused_steps_leave_nothing(folder: Path, replay: Replay) -> None:
    """Compare with an instance that has asked for nothing wrong; only the wrong one has to differ."""

    class Asks(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[bool], step: WorkflowStep) -> int:
            if event.payload:
                for ask in refused_steps(step):
                    with pytest.raises((InvalidArgumentError, TypeError)):
                        ask()
            return await step.do("work", one)

    stories: list[list[tuple[Any, ...]]] = []
    async with open_test_runtime(folder, workflows=[Asks], replay=replay) as runtime:
        for wrong in (False, True):
            instance = await runtime.create(Asks, params=wrong)
            assert 1 == await instance.result()
            steps = await instance.sql("SELECT * FROM steps")
            stories.append(
                [
                    (*(entry.what for entry in await instance.history()),),
                    *((row["name"], row["count"], row["kind"], row["seq"]) for row in steps),
                ]
            )

    assert stories[0] == stories[1]


async def test_a_refused_step_leaves_nothing_in_the_file(folder: Path, replay: Replay) -> None:
    await check_refused_steps_leave_nothing(folder, replay)


async def test_the_step_check_fails_when_a_race_is_registered_before_it_is_looked_at(
    folder: Path, broken: Broken
) -> None:
    race = WorkflowStep.race

    def register_first(step: WorkflowStep, name: str, parts: Any) -> Any:
        RaceCall[Any](vars(DoSteps)["_run"].__get__(step), name, depth=1)
        return race(step, name, parts)

    broken(WorkflowStep, "race", register_first)

    with pytest.raises(InstanceFailedError, match="never awaited"):
        await check_refused_steps_leave_nothing(folder, "warm")
