"""What the tests of the laws share: both replay modes, a state folder, programs that may be killed.

Each law has a check: a function that asserts the law's text on the shipped code. It runs once for
each replay mode, and once with a deliberate break of the law, where it has to fail.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from perdure import Instance, Runtime
from perdure.actors.host import Replay
from perdure.testing import VirtualClock

PROGRAMS = Path(__file__).parent / "programs"
IDLE_LOOK_S = 0.0005
"""How often a test looks whether a runtime's threads have come to rest: they ring for nobody."""

PROGRAM_S_MAX = 60
"""A program that hangs is a finding; the machine may be busy."""


@pytest.fixture(params=["warm", "always"])
def replay(request: pytest.FixtureRequest) -> Replay:
    """Return one replay mode, then the other: the laws hold in both."""
    return cast("Replay", request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the path of a state folder that does not exist yet."""
    return tmp_path / "state"


@pytest.fixture
def program() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a program of `programs/` to its end, however that comes."""

    def run(name: str, *args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(PROGRAMS / name), *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_S_MAX, check=False)

    return run


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


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, str, Callable[..., Any]], None]:
    """Return a function that breaks the shipped code for one test: another body for one method."""
    return monkeypatch.setattr


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
