"""A process that dies in the middle of a step: kills itself with SIGKILL in its first attempts.

    crash.py FOLDER REPLAY KILLS LIMIT [WORD ...]

The attempts 1 to KILLS of its one step kill the process; LIMIT retries are allowed. It prints how the
instance ended, as JSON. The words: `revive` resumes the instance first; `sleeper` starts another that
sleeps meanwhile; the names of `BREAKS` break the law.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import trio

from perdure import (
    InstanceFailedError,
    Limits,
    PerdureError,
    Retries,
    StepContext,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    open_runtime,
)
from perdure.actors.actor import Actor
from perdure.actors.do import DoCall
from perdure.engine.loop import GameLoop
from perdure.storage.catalog import Catalog

CRASHES_MAX = 3


def forget(*_args: Any, **_options: Any) -> None:
    """Do nothing, in the place of what keeps the law."""


BREAKS: dict[str, list[tuple[type, str, Any]]] = {
    "lost-attempts-are-not-counted": [(DoCall, "_lost", forget)],
    "deaths-are-not-counted": [(Catalog, "crashed", forget)],
    "nobody-is-forgiven": [(GameLoop, "forgive", forget), (Actor, "was_waiting", False)],
}


class Work(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[dict[str, int]], step: WorkflowStep) -> int:
        kills, limit = event.payload["kills"], event.payload["limit"]
        return await step.do("work", work, kills, retries=Retries(limit=limit, delay="1 hour"))


async def work(kills: int, context: StepContext) -> int:
    if context.attempt <= kills:
        os.kill(os.getpid(), signal.SIGKILL)
    return context.attempt


class Sleeper(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
        await step.sleep("a long night", "8 hours")


async def tell(folder: str, replay: Any, kills: int, limit: int, words: list[str]) -> dict[str, Any]:
    limits = Limits(crashes_max=CRASHES_MAX)
    async with open_runtime(folder, workflows=[Work, Sleeper], replay=replay, limits=limits) as runtime:
        if "sleeper" in words:
            sleeper = await runtime.create(Sleeper, id="s", if_exists="attach")
            async with contextlib.aclosing(sleeper.subscribe()) as story:
                async for entry in story:
                    if entry.what == "sleep started":
                        break
        params = {"kills": kills, "limit": limit}
        instance = await runtime.create(Work, params=params, id="a", if_exists="attach")
        if "revive" in words:
            await instance.resume()
        told: dict[str, Any] = {}
        try:
            told["result"] = await instance.result()
        except InstanceFailedError as error:
            told["error"] = f"{type(error.__cause__).__name__}: {error.__cause__}"
        except PerdureError as error:
            told["error"] = f"{type(error).__name__}: {error}"
        query = "SELECT attempt, outcome FROM attempts ORDER BY step_seq, attempt"
        told["attempts"] = [list(row) for row in await instance.sql(query)]
        told["dead"] = [each.id for each in await runtime.list(status="dead")]
        return told


def main(folder: str, replay: str, kills: str, limit: str, *words: str) -> None:
    for word in words:
        for cls, name, instead in BREAKS.get(word, ()):
            setattr(cls, name, instead)
    begin: Callable[..., Any] = tell
    told = trio.run(begin, folder, replay, int(kills), int(limit), list(words))
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
