"""Workflows that several processes run, each loading this file. What steps did stands in a file of lines."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from perdure import Retries, Runtime, WorkflowEntrypoint, WorkflowEvent, WorkflowStep


class Job(msgspec.Struct, frozen=True):
    """Where steps write that they ran, under which name, and how many of them there are."""

    lines: str
    name: str
    steps: int = 3
    nap_s: float = 0.0


class RefusedError(Exception):
    """What a workflow fails with here."""


def note(job: Job, step: int) -> int:
    """Append a line, whole: other processes append to the same file."""
    descriptor = os.open(job.lines, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{job.name} {step} {os.getpid()}\n".encode())
    os.close(descriptor)
    return step


class Counted(WorkflowEntrypoint):
    """Runs its steps one after the other and returns the process that ended it."""

    async def run(self, event: WorkflowEvent[Job], step: WorkflowStep) -> int:
        job = event.payload
        for number in range(job.steps):
            await step.do(f"step {number}", note, job, number)
            if job.nap_s:
                await step.sleep(f"nap {number}", job.nap_s)
        return os.getpid()


class Approval(WorkflowEntrypoint):
    """Waits to be told."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> list[int]:
        heard = await step.wait_for_event("go", type="go", timeout=None)
        more = await step.wait_for_event("more", type="go", timeout=None)
        return [int(heard.payload), int(more.payload)]

    async def tell(self, number: int) -> int:
        """Say it, and return the process that heard it."""
        if number < 0:
            raise RefusedError("not today")
        self.ctx.send_event("go", number)
        return os.getpid()


class Calling(WorkflowEntrypoint):
    """Calls a method of another instance, which may run in another process."""

    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> int:
        return await step.do("call", self.call, event.payload)

    async def call(self, other: str) -> int:
        runtime: Runtime = self.ctx.runtime
        approval = await runtime.get(Approval, other)
        await approval.call(Approval.tell, 1)
        return await approval.call(Approval.tell, 2)


class Sum(WorkflowEntrypoint):
    """Adds in a step."""

    async def run(self, event: WorkflowEvent[list[int]], step: WorkflowStep) -> int:
        return await step.do("add", add, event.payload)


async def add(numbers: list[int]) -> int:
    return sum(numbers)


class Failing(WorkflowEntrypoint):
    """Fails with an error of its own."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        await step.do("refuse", refuse, retries=Retries(limit=0))


async def refuse() -> None:
    raise RefusedError("not today")


class Asking(WorkflowEntrypoint):
    """Starts others, tells them, and waits for what they return: some of them run in other processes."""

    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> list[list[int]]:
        return [await step.do("ask", self.ask, number, key=str(number)) for number in range(event.payload)]

    async def ask(self, number: int) -> list[int]:
        other = await self.ctx.runtime.create(Approval, id=f"asked-{number}", if_exists="attach")
        await other.send_event("go", number)
        await other.status()
        await other.send_event("go", number + 1)
        answer: list[int] = await other.result()
        return answer


class Held(WorkflowEntrypoint):
    """Runs a step that cannot be stopped: it ends when somebody has written into a pipe."""

    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> str:
        return await step.do("hold", hold, event.payload)


def hold(pipe: str) -> str:
    return Path(pipe).read_text()


class Family(WorkflowEntrypoint):
    """Has children, wherever they run, and returns the processes that ended them."""

    async def run(self, event: WorkflowEvent[Job], step: WorkflowStep) -> list[int]:
        job = event.payload
        jobs = [Job(lines=job.lines, name=f"{job.name}-{n}", nap_s=job.nap_s) for n in range(job.steps)]
        first = await step.child(Counted, Job(lines=job.lines, name=f"{job.name}-first"), name="first")
        return [first, *await step.children("part", Counted, jobs)]
