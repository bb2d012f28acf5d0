"""Workflows that two workers share, each loading this file; told so, it breaks law 9 in the worker."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from perdure import App, Limits, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.storage.catalog import Catalog


class Owned(WorkflowEntrypoint):
    """Runs three steps, each of which appends a line."""

    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> None:
        for number in range(3):
            await step.do(f"step {number}", note, event.payload, event.instance_id, number)


def note(lines: str, name: str, step: int) -> None:
    """Append a line, whole: other processes append to the same file."""
    descriptor = os.open(lines, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{name} {step} {os.getpid()}\n".encode())
    os.close(descriptor)


class Waiting(WorkflowEntrypoint):
    """Waits to be told."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> int:
        return int((await step.wait_for_event("go", type="go", timeout=None)).payload)


def claim_all(_catalog: Catalog, rows: list[Any], owner: int, _claim: str = "") -> list[Any]:
    """Hand the rows out and leave them as they are, so that the other worker gets them too."""
    return [msgspec.structs.replace(row, owner=owner, epoch=row.epoch + 1, open=1) for row in rows]


if os.environ.get("BREAK_LAW_9") == "claims-mark-no-row":
    type.__setattr__(Catalog, "claim_all", claim_all)
app = App([Owned, Waiting], limits=Limits(worker_silence_s=2, idle_grace_s=600, reset_delay_s=0.2))
