"""What the tests of actors share: a few lines of `run()`, played as a workflow in both replay modes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from perdure import InstanceFailedError, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.actors.functions import FunctionHost, open_function_host
from perdure.actors.host import Replay
from perdure.testing import open_test_runtime

STEPS = "SELECT name, count, kind, status, attempts FROM steps ORDER BY seq"


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """How a workflow ended: its result, or the error that `run()` raised; and its steps."""

    result: Any = None
    error: BaseException | None = None
    steps: list[tuple[Any, ...]]


@pytest.fixture(params=["warm", "always"])
def replay(request: pytest.FixtureRequest) -> Replay:
    return cast("Replay", request.param)


@pytest.fixture
def play(tmp_path: Path, replay: Replay) -> Callable[..., Awaitable[Played]]:
    """Return a function that runs `run(step)` as a workflow to its end; `sql` replaces what is read after."""

    async def play(run: Callable[[WorkflowStep], Awaitable[Any]], *, sql: str = STEPS) -> Played:
        class Play(WorkflowEntrypoint):
            async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
                return await run(step)

        async with open_test_runtime(tmp_path / "state", workflows=[Play], replay=replay) as runtime:
            instance = await runtime.create(Play, id="a", if_exists="restart")
            result, error = None, None
            try:
                result = await instance.result()
            except InstanceFailedError as failed:
                error = failed.__cause__
            steps = [tuple(row) for row in await instance.sql(sql)]
        return Played(result=result, error=error, steps=steps)

    return play


@pytest.fixture
async def host() -> AsyncIterator[FunctionHost]:
    """Yield what runs step functions."""
    async with open_function_host(threads_max=2, processes_max=2) as opened:
        yield opened
