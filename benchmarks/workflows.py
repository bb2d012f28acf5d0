"""The workflows that are measured, and the stopwatch that measures from inside one.

Every class is importable by name, so that workers and other processes find it. A step returns what
the peers' steps return in the same benchmark: a number and 100 characters, without any I/O.

Invariants:
    Each workflow returns something that only the whole of its work can give.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator
from datetime import timedelta
from typing import Final

import msgspec
import trio

import perdure
from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep

TEXT: Final = "x" * 100


class Lap(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of work: how long it took, and what was committed and synced meanwhile.

    `cpu_s` is what the loop's thread computed, so that a busy machine shows; `whole_s` is from `create`
    to the result. `syncs` are the runtime's own, of files and of logs; the catalog's are not in it.
    """

    steps: int
    seconds: float
    cpu_s: float = 0.0
    commits: int = 0
    syncs: int = 0
    whole_s: float = 0.0


class Stopwatch:
    """The workflows' `env`: takes the laps of their steps and says when one was taken."""

    def __init__(self) -> None:
        self.laps: list[Lap] = []
        self.taken = trio.Event()

    @contextlib.contextmanager
    def lap(self, runtime: perdure.Runtime, steps: int) -> Generator[None]:
        """Measure what is done inside."""
        before = runtime.statistics()
        began_s, cpu_s = time.perf_counter(), time.thread_time()
        yield
        seconds, cpu_s = time.perf_counter() - began_s, time.thread_time() - cpu_s
        after = runtime.statistics()
        commits = after.gate.commits - before.gate.commits
        syncs = after.disk.file_syncs - before.disk.file_syncs
        self.laps.append(Lap(steps=steps, seconds=seconds, cpu_s=cpu_s, commits=commits, syncs=syncs))
        self.taken.set()


async def small_value(number: int) -> dict[str, int | str]:
    """Return what a step of ordinary size returns: the step function."""
    return {"i": number, "text": TEXT}


class Chain(WorkflowEntrypoint[Stopwatch]):
    """As many steps as its params say, one after the other, timed from inside."""

    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        """Run the chain and return the sum of what the steps returned."""
        total = 0
        with self.env.lap(self.ctx.runtime, event.payload):
            for number in range(event.payload):
                value = await step.do(f"step {number}", small_value, number)
                total += int(value["i"])
        return total


class OpenChain(Chain):
    """A chain that then waits, so that the steps are answered from the journal at each start."""

    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        """Run the chain, or replay it, and wait for what never comes."""
        total = await super().run(event, step)
        await step.wait_for_event("the end", type="end", timeout="1 day")
        return total


class Short(WorkflowEntrypoint[None]):
    """A chain that nobody times from inside: what most workflows look like."""

    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        """Run the chain and return the sum of what the steps returned."""
        total = 0
        for number in range(event.payload):
            value = await step.do(f"step {number}", small_value, number)
            total += int(value["i"])
        return total


class FanOut(WorkflowEntrypoint[Stopwatch]):
    """As many steps as its params say, all at once."""

    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        """Run the steps side by side and return the sum of what they returned."""
        with self.env.lap(self.ctx.runtime, event.payload):
            values = await step.map("part", small_value, list(range(event.payload)))
        return sum(int(value["i"]) for value in values)


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """How many results of how many characters."""

    count: int
    characters: int


async def large_value(characters: int) -> str:
    """Return that much text: the step function."""
    return "b" * characters


class Large(WorkflowEntrypoint[Stopwatch]):
    """Steps with large results, one after the other."""

    async def run(self, event: WorkflowEvent[Blob], step: WorkflowStep) -> int:
        """Run them and return how many characters they returned."""
        total = 0
        with self.env.lap(self.ctx.runtime, event.payload.count):
            for number in range(event.payload.count):
                total += len(await step.do(f"blob {number}", large_value, event.payload.characters))
        return total


class Sleeper(WorkflowEntrypoint[list[float]]):
    """Sleeps until so many seconds after its creation and notes in `env` how late it went on."""

    async def run(self, event: WorkflowEvent[float], step: WorkflowStep) -> bool:
        """Sleep, and say that it has."""
        due = event.timestamp + timedelta(seconds=event.payload)
        await step.sleep_until("nap", due)
        self.env.append(time.time() - due.timestamp())
        return True


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """The descriptor of a file that takes a line from each step; at `holds_at` the chain stands still."""

    descriptor: int
    holds_at: int | None


class Traced(WorkflowEntrypoint[Trace]):
    """A chain that writes each step's number and time to a file: law 1 as seen from outside."""

    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        """Run the chain and return how many steps it had."""
        for number in range(event.payload):
            await step.do(f"step {number}", self.note, number)
        return event.payload

    async def note(self, number: int) -> int:
        """Write a line; the descriptor appends, so that a killed process leaves whole lines."""
        if number == self.env.holds_at:
            await trio.sleep_forever()
        os.write(self.env.descriptor, b"%d %.6f\n" % (number, time.time()))
        return number
