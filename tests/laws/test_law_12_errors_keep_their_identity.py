"""Law 12: errors keep their identity, and nothing is imported because a file says so.

How single values and classes survive is in tests/storage/test_failure.py; here it is whole errors, on
their way from a step through the file to `run()`, to its replays, and to `result()`.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import perdure.actors.calls
import perdure.engine.instance
import perdure.storage.failure
from perdure import (
    InstanceFailedError,
    NonRetryableError,
    StepFailedError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.do import DoCall
from perdure.actors.host import Replay
from perdure.storage.failure import TRACEBACK_ATTRIBUTE, restore_failure
from perdure.testing import open_test_runtime

Broken = Callable[[Any, str, Callable[..., Any]], None]
Reached = Callable[..., Awaitable[None]]
MODULE = "perdure_law_12_shop"
SOURCE = """
class SoldOutError(Exception):
    def __init__(self, *, item):
        super().__init__(f"no {item} left")
        self.item = item

async def buy():
    raise SoldOutError(item="oyster")
"""


class DeclinedError(NonRetryableError):
    """An error with all that an error can carry, and a constructor that no file can satisfy."""

    constructed = 0

    def __init__(self, *, order: int, tags: set[str]) -> None:
        super().__init__(f"order {order} declined")
        type(self).constructed += 1
        self.order = order
        self.tags = tags
        self.lock = threading.Lock()


async def decline() -> None:
    """Raise an error with fields, a cause and a note."""
    try:
        dict[str, str]()["card"]
    except KeyError as missing:
        error = DeclinedError(order=7, tags={"tide", "moon"})
        error.add_note("asked twice")
        raise error from missing


# -- class, message, fields, notes, cause, traceback -------------------------------------------


async def check_an_error_is_the_same_everywhere(folder: Path, replay: Replay) -> None:
    """Look at it where `run()` catches it, on every replay, and where the result is asked for."""
    seen: list[DeclinedError] = []

    class Shop(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            try:
                await step.do("pay", decline)
            except DeclinedError as error:
                seen.append(error)
                await step.sleep("long enough to hibernate", "1 hour")
                raise

    before = DeclinedError.constructed
    async with open_test_runtime(folder, workflows=[Shop], replay=replay) as runtime:
        instance = await runtime.create(Shop, id="a")
        with pytest.raises(InstanceFailedError) as failed:
            await instance.result()
    async with open_test_runtime(folder, workflows=[Shop], replay=replay) as runtime:
        with pytest.raises(InstanceFailedError) as failed_again:
            await (await runtime.get(Shop, "a")).result()

    assert 1 == DeclinedError.constructed - before
    assert len(seen) >= 2  # the first run, and the one after the sleep
    for error in (*seen, failed.value.__cause__, failed_again.value.__cause__):
        look_at(error)


def look_at(error: BaseException | None) -> None:
    assert isinstance(error, DeclinedError)
    assert DeclinedError is type(error)
    assert "order 7 declined" == str(error)
    assert (7, {"tide", "moon"}) == (error.order, error.tags)
    assert "<unlocked _thread.lock" in str(error.lock)
    assert ["asked twice", "in step 'pay', attempt 1, of Shop/a"] == error.__notes__
    cause = error.__cause__
    assert isinstance(cause, KeyError)
    assert ("card",) == cause.args
    text = str(vars(error)[TRACEBACK_ATTRIBUTE])
    assert "in decline\n" in text
    assert "raise error from missing" in text
    assert text.count("DeclinedError: order 7 declined") >= 1


async def test_an_error_is_the_same_in_run_on_replay_and_in_the_result(folder: Path, replay: Replay) -> None:
    await check_an_error_is_the_same_everywhere(folder, replay)


def restore_text_alone(text: str, **_: object) -> BaseException:
    return RuntimeError(text)


def restore_by_the_constructor(text: str, **options: Any) -> BaseException:
    restored = restore_failure(text, **options)
    if isinstance(restored, DeclinedError):
        return DeclinedError(order=restored.order, tags=restored.tags)
    return restored


@pytest.mark.parametrize("restore", [restore_text_alone, restore_by_the_constructor])
async def test_the_identity_check_fails_when_errors_are_made_anew(
    folder: Path, broken: Broken, restore: Callable[..., BaseException]
) -> None:
    broken(perdure.actors.calls, "restore_failure", restore)
    broken(perdure.engine.instance, "restore_failure", restore)

    with pytest.raises(AssertionError):
        await check_an_error_is_the_same_everywhere(folder, "warm")


async def test_the_identity_check_fails_when_the_step_is_not_noted(folder: Path, broken: Broken) -> None:
    def describe(call: DoCall[Any], _step: Any, error: BaseException) -> str:
        return perdure.storage.failure.describe_failure(error, call.run.host.codec)

    broken(DoCall, "_describe", describe)

    with pytest.raises(AssertionError):
        await check_an_error_is_the_same_everywhere(folder, "warm")


async def test_the_note_tells_the_attempt(folder: Path, replay: Replay) -> None:
    notes: list[list[str]] = []

    async def fail() -> None:
        raise OSError(5, "no answer", "the sea")

    class Calls(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> tuple[int | None, str]:
            try:
                await step.do("call", fail, retries=2)
            except OSError as error:
                notes.append(error.__notes__)
                return error.errno, error.filename
            return 0, ""

    async with open_test_runtime(folder, workflows=[Calls], replay=replay) as runtime:
        result = await (await runtime.create(Calls, id="a")).result()

    assert (5, "the sea") == result
    assert {"in step 'call', attempt 3, of Calls/a"} == {note for each in notes for note in each}


# -- groups ------------------------------------------------------------------------------------


async def check_groups_keep_their_members(folder: Path, replay: Replay) -> None:
    seen: list[ExceptionGroup[Exception]] = []

    async def fail() -> None:
        inner = ExceptionGroup("inner", [DeclinedError(order=7, tags=set()), KeyError("b")])
        raise ExceptionGroup("outer", [ValueError("a"), inner])

    class Groups(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            try:
                await step.do("fail", fail, retries=0)
            except ExceptionGroup as group:
                seen.append(group)
                await step.sleep("long enough to hibernate", "1 hour")
                raise

    async with open_test_runtime(folder, workflows=[Groups], replay=replay) as runtime:
        with pytest.raises(InstanceFailedError) as failed:
            await (await runtime.create(Groups)).result()

    for group in (*seen, cast("ExceptionGroup[Exception]", failed.value.__cause__)):
        assert "outer (2 sub-exceptions)" == str(group)
        assert 2 == len(group.exceptions)
        first, inner = group.exceptions
        assert (ValueError, ("a",)) == (type(first), first.args)
        assert isinstance(inner, ExceptionGroup)
        members = cast("ExceptionGroup[Exception]", inner).exceptions
        assert [DeclinedError, KeyError] == [type(error) for error in members]
        assert group.subgroup(DeclinedError) is not None


async def test_groups_keep_their_members(folder: Path, replay: Replay) -> None:
    await check_groups_keep_their_members(folder, replay)


async def test_the_group_check_fails_when_only_the_first_member_is_kept(folder: Path, broken: Broken) -> None:
    members = vars(perdure.storage.failure)["_members"]

    broken(perdure.storage.failure, "_members", lambda *given: members(*given)[:1])

    with pytest.raises(AssertionError):
        await check_groups_keep_their_members(folder, "warm")


# -- nothing is imported -----------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put a module on the path that can be imported, and see that it is forgotten afterwards."""
    path = tmp_path / "modules"
    path.mkdir()
    (path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.setattr(sys, "path", [str(path), *sys.path])
    importlib.invalidate_caches()
    yield path
    sys.modules.pop(MODULE, None)


async def check_a_class_is_not_imported(folder: Path, replay: Replay, reached: Reached) -> None:
    seen: list[BaseException] = []

    class Shop(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            try:
                await step.do("buy", buy, retries=0)
            except Exception as error:  # noqa: BLE001 - the test is about which class it has
                seen.append(error)
            await step.wait_for_event("go", type="go", timeout=None)
            raise seen[-1]

    async def buy() -> None:
        await importlib.import_module(MODULE).buy()

    async with open_test_runtime(folder, workflows=[Shop], replay=replay) as runtime:
        instance = await runtime.create(Shop, id="a")
        await reached(instance, "event started")
    assert ["SoldOutError"] == sorted({type(error).__name__ for error in seen})
    del sys.modules[MODULE]
    seen.clear()
    async with open_test_runtime(folder, workflows=[Shop], replay=replay) as runtime:
        instance = await runtime.get(Shop, "a")
        await instance.send_event("go")
        with pytest.raises(InstanceFailedError) as failed:
            await instance.result()

    assert MODULE not in sys.modules
    for error in seen:
        assert isinstance(error, StepFailedError)
        assert (f"{MODULE}.SoldOutError", "no oyster left") == (error.error_class, error.error_message)
        assert {"item": "oyster"} == error.fields
        assert ("buy", 1) == (error.step, error.attempt)
        assert "in buy\n" in error.traceback_text
        assert ["in step 'buy', attempt 1, of Shop/a"] == error.__notes__
        assert f"import '{MODULE}'" in str(error)
    assert isinstance(failed.value.__cause__, StepFailedError)


async def test_a_class_that_is_not_imported_comes_back_as_a_failed_step(
    folder: Path, replay: Replay, shop: Path, reached: Reached
) -> None:
    await check_a_class_is_not_imported(folder, replay, reached)


async def test_the_import_check_fails_when_the_file_may_name_a_module(
    folder: Path, shop: Path, broken: Broken, reached: Reached
) -> None:
    found = vars(perdure.storage.failure)["imported_class"]

    def import_it(module: str, name: str, base: Any) -> Any:
        importlib.import_module(module)
        return found(module, name, base)

    broken(perdure.storage.failure, "imported_class", import_it)

    with pytest.raises(AssertionError):
        await check_a_class_is_not_imported(folder, "warm", reached)
