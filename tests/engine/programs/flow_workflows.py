"""Workflows with bounded concurrency and a schedule, that several processes run, each loading this file."""

from __future__ import annotations

import os

import msgspec

from perdure import Concurrency, Every, WorkflowEntrypoint, WorkflowEvent, WorkflowStep


class Guest(msgspec.Struct, frozen=True):
    """Where steps write that they ran, and with which key."""

    lines: str
    key: str


def note(guest: Guest, what: str, id_: str) -> None:
    """Append a line, whole: other processes append to the same file."""
    descriptor = os.open(guest.lines, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{what} {guest.key} {id_}\n".encode())
    os.close(descriptor)


class Turn(WorkflowEntrypoint):
    """Enters, sleeps with its place, and leaves."""

    concurrency = Concurrency(limit=3, key=lambda guest: guest.key, per_key=1)

    async def run(self, event: WorkflowEvent[Guest], step: WorkflowStep) -> None:
        await step.do("enter", note, event.payload, "enter", event.instance_id)
        await step.sleep("stay", 0.02)
        await step.do("leave", note, event.payload, "leave", event.instance_id)


class Tick(WorkflowEntrypoint):
    """Comes every second."""

    schedules = (Every("1 second", id="tick"),)

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> float:
        assert event.schedule is not None
        return event.schedule.scheduled_at.timestamp()
