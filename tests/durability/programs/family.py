"""A parent with children and a game without end, for the tests of kills.

    family.py STATE WITNESS ID REPLAY DURABILITY

Prints `open` once the runtime is open and, in the end, the result as JSON. Step functions append lines
to WITNESS.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import msgspec
import trio

from perdure import ChildFailedError, WorkflowEntrypoint, WorkflowEvent, WorkflowStep, open_runtime

CHILDREN = 30
GAMES = 5


class Part(msgspec.Struct, frozen=True):
    witness: str
    number: int


def note(part: Part, what: str) -> int:
    descriptor = os.open(part.witness, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{part.number} {what}\n".encode())
    os.close(descriptor)
    return part.number


class Child(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Part], step: WorkflowStep) -> int:
        part = event.payload
        await step.do("begin", note, part, "begin")
        await step.sleep("rest", 0.02 * (part.number % 3))
        number = await step.do("end", note, part, "end")
        if number == 7:
            raise ValueError("seven")
        return number


class Game(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[list[int]], step: WorkflowStep) -> list[int]:
        played = event.payload
        await step.sleep("think", 0.01)
        if len(played) == GAMES:
            return played
        await step.continue_as_new([*played, len(played)])
        raise AssertionError


class Parent(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> list[Any]:
        parts = [Part(event.payload, number) for number in range(CHILDREN)]
        none: list[int] = []
        first = await step.child(Child, parts[0], name="first")
        failure = None
        try:
            await step.children("part", Child, parts[1:8], limit=3)
        except ChildFailedError as error:
            failure = f"{error.instance_id}: {error.__cause__}"
        rest = await step.children("rest", Child, parts[8:])
        return [first, failure, rest, await step.child(Game, none)]


async def main(*words: Any) -> None:
    state, witness, id_, replay, durability = words
    async with open_runtime(
        state, workflows=[Parent, Child, Game], replay=replay, durability=durability
    ) as runtime:
        print("open", flush=True)  # noqa: T201 - what the test waits for
        parent = await runtime.create(Parent, params=witness, id=id_, if_exists="attach")
        print(json.dumps(await parent.result()), flush=True)  # noqa: T201 - what the test reads


trio.run(main, *sys.argv[1:])
