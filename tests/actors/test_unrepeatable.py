"""What reads otherwise in another process, where no replay could find it again, is refused at the call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import InvalidArgumentError, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.actors.host import Replay
from perdure.testing import open_test_runtime


class Child(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
        return event.payload


class Money:
    """Has a text of its own."""

    def __str__(self) -> str:
        return "5 EUR"


class Nameless:
    """Has none."""


def one() -> int:
    return 1


Call = Callable[[Any], Any]
REFUSED: list[tuple[str, Call]] = [
    ("Nameless has no text of its own", lambda step: step.do("a", one, key=Nameless())),
    ("a set is in another order", lambda step: step.do("a", one, key={"x", "y"})),
    ("Nameless has no text", lambda step: step.child(Child, 1, key=Nameless())),
    ("Nameless has no text", lambda step: step.gather("g", {Nameless(): one})),
    ("has a set for its parts", lambda step: step.map("m", str, {"x", "y"})),
    ("has a set for its parts", lambda step: step.children("c", Child, frozenset({"x"}))),
    ("'m' has 5 for its parts", lambda step: step.map("m", str, 5)),
    ("'m' has None for its parts", lambda step: step.map("m", str, None)),
    ("'c' has 5 for its parts", lambda step: step.children("c", Child, 5)),
    ("'g' has 5 for its parts", lambda step: step.gather("g", 5)),
    ("'r' has 5 for its parts", lambda step: step.race("r", 5)),
    ("limit=1.5", lambda step: step.map("m", str, [1], limit=1.5)),
    ("limit=True", lambda step: step.map("m", str, [1], limit=True)),
    ("limit='2'", lambda step: step.children("c", Child, [1], limit="2")),
    ("step name '' is not allowed", lambda step: step.child(Child, 1, name="")),
    ("tag ", lambda step: step.child(Child, 1, tags=[5])),
    ("tags='ab'", lambda step: step.children("c", Child, [1], tags="ab")),
]


@pytest.mark.parametrize("replay", ["warm", "always"])
@pytest.mark.parametrize(("told", "call"), REFUSED)
async def test_it_is_refused_before_any_effect(tmp_path: Path, replay: Replay, told: str, call: Call) -> None:
    class Tries(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
            try:
                await call(step)
            except InvalidArgumentError as error:
                return str(error)
            return "taken"

    async with open_test_runtime(tmp_path, workflows=[Tries, Child], replay=replay) as runtime:
        instance = await runtime.create(Tries)
        assert told in await instance.result()
        assert [] == await instance.sql("SELECT name FROM steps")


async def test_a_key_with_a_text_of_its_own_is_taken(tmp_path: Path) -> None:
    class Pays(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> int:
            return await step.do("pay", one, key=Money()) + await step.do("pay", one, key=("tea", 1))

    async with open_test_runtime(tmp_path, workflows=[Pays]) as runtime:
        instance = await runtime.create(Pays)
        assert 2 == await instance.result()
        rows = await instance.sql("SELECT name FROM steps")
        assert ["pay[5 EUR]", "pay[('tea', 1)]"] == [row.name for row in rows]
