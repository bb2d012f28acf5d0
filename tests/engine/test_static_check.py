"""What a look at the code of run() can see."""

from __future__ import annotations

import time
from typing import Any

from perdure import App, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.engine.static_check import look_at_code


def one() -> int:
    return 1


def two() -> float:
    return time.time()


class Careless(WorkflowEntrypoint[None]):
    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> float:
        step.do("forgotten", one)
        await step.do("same", one)
        await step.do("same", two)
        return time.time()


class Careful(WorkflowEntrypoint[None]):
    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> float:
        later = step.do("kept", one)
        await step.do("same", one, key=1)
        await step.do("same", two, key=2)
        await step.do("time", lambda: time.time() + 1)
        return await later


def test_what_is_wrong_is_told_with_its_line_and_what_to_do() -> None:
    found = look_at_code(App([Careless]))
    first = Careless.run.__code__.co_firstlineno
    assert [
        ("error", first + 1, "never awaited"),
        ("warning", first + 3, "stands for one and for two"),
        ("warning", first + 4, "use step.now()"),
    ] == [
        (each.level, int(each.place.rpartition(":")[2]), part)
        for each, part in zip(
            found, ("never awaited", "stands for one and for two", "use step.now()"), strict=True
        )
        if part in each.text
    ]


def test_nothing_is_said_of_what_is_right() -> None:
    assert [] == look_at_code(App([Careful]))
