"""What the conformance tests share: both replay modes, a state folder, programs that are killed.

Each test stands for one numbered case of the peer's own suites, or for one defect of its open engine, and is
named after it; docs/conformance.md lists them all. They know Perdure by its public face alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import msgspec
import pytest
import trio
import trio.testing

from perdure import (
    Instance,
    InstanceFailedError,
    Limits,
    Runtime,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.testing import VirtualClock, open_test_runtime

Replay = Literal["warm", "always"]
PROGRAMS = Path(__file__).parent / "programs"
STEPS = "SELECT name, count, kind, status, attempts FROM steps ORDER BY seq"
PROGRAM_S_MAX = 60
"""A program that hangs is a finding; the machine may be busy."""

IDLE_LOOK_S = 0.0005
"""How often a test looks whether a runtime's threads have come to rest: they ring for nobody."""


@pytest.fixture(params=["warm", "always"])
def replay(request: pytest.FixtureRequest) -> Replay:
    """Return one replay mode, then the other: every case holds in both."""
    return cast("Replay", request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the path of a state folder that does not exist yet."""
    return tmp_path / "state"


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """How a workflow ended: its result, or the error that `run()` raised; and what a query found after it.

    `passed_s` is what passed on the virtual clock, `took_s` what passed on the wall.
    """

    result: Any = None
    error: BaseException | None = None
    rows: list[tuple[Any, ...]]
    passed_s: float
    took_s: float


@pytest.fixture
def play(folder: Path, replay: Replay) -> Callable[..., Awaitable[Played]]:
    """Return a function that runs `run(step)` as a workflow to its end; `sql` replaces what is read after."""

    async def play(
        run: Callable[[WorkflowStep], Awaitable[Any]], *, sql: str = STEPS, limits: Limits | None = None
    ) -> Played:
        class Case(WorkflowEntrypoint):
            async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
                return await run(step)

        clock = VirtualClock()
        began_ms, began_s = clock.wall_ms(), time.monotonic()
        options: dict[str, Any] = {"replay": replay, "clock": clock, "limits": limits}
        async with open_test_runtime(folder, workflows=[Case], **options) as runtime:
            instance = await runtime.create(Case, id="a", if_exists="restart")
            result, error = None, None
            try:
                result = await instance.result()
            except InstanceFailedError as failed:
                error = failed.__cause__
            passed_s, took_s = (clock.wall_ms() - began_ms) / 1000, time.monotonic() - began_s
            rows = [tuple(row) for row in await instance.sql(sql)]
        return Played(result=result, error=error, rows=rows, passed_s=passed_s, took_s=took_s)

    return play


@pytest.fixture
def reached() -> Callable[..., Awaitable[None]]:
    """Return a function that waits until an instance's history has an entry of that text."""

    async def wait(instance: Instance[Any], what: str, step: str | None = None) -> None:
        async with contextlib.aclosing(instance.subscribe()) as story:
            async for entry in story:
                if entry.what == what and step in (None, entry.step):
                    return
        raise AssertionError(f"{instance} ended before {what!r} of {step!r}")

    return wait


class HeldClock(VirtualClock):
    """A virtual clock that never jumps: time passes by `advance`, `set_wall` and `reboot` alone."""

    async def wait(self, delay_ms: float | None, changed: trio.Event) -> None:
        await super().wait(None, changed)


@pytest.fixture
def clock() -> VirtualClock:
    """Return a clock that stands still until the test moves it."""
    return HeldClock()


@pytest.fixture
def settled() -> Callable[[Runtime], Awaitable[None]]:
    """Return a function that waits until a runtime has nothing to do before its clock moves."""

    async def wait(runtime: Runtime) -> None:
        while True:
            await trio.testing.wait_all_tasks_blocked()
            if runtime.is_idle:
                return
            await trio.sleep(IDLE_LOOK_S)

    return wait


@pytest.fixture
def dying() -> ModuleType:
    """Return the module of workflows that the program of `killed` runs too."""
    path = PROGRAMS / "dying.py"
    spec = importlib.util.spec_from_file_location("conformance_dying", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def killed(folder: Path, replay: Replay) -> Callable[..., None]:
    """Return a function that has `dying.py` run a workflow, which kills its process where `words` say."""

    def kill(workflow: str, *words: object) -> None:
        command = [
            sys.executable,
            str(PROGRAMS / "dying.py"),
            str(folder),
            replay,
            workflow,
            *map(str, words),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_S_MAX, check=False)
        assert -signal.SIGKILL == done.returncode, done.stderr

    return kill
