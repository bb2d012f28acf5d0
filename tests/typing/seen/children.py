"""What is inferred for children, in both checkers. Nothing here runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_type

from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep


@dataclass
class Parcel:
    to: str


@dataclass
class Receipt:
    at: str


class Ship(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Parcel], step: WorkflowStep) -> Receipt:
        return Receipt(event.payload.to)


class NoParams(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> int:
        return 1


async def families(step: WorkflowStep) -> None:
    assert_type(await step.child(Ship, Parcel("Brest")), Receipt)
    assert_type(await step.child(Ship, Parcel("Brest"), name="ship", on_cancel="abandon", timeout=5), Receipt)
    assert_type(await step.child(NoParams), int)
    assert_type(await step.child("Ship", {"to": "Brest"}), Any)
    assert_type(await step.children("ship", Ship, [Parcel("Brest"), Parcel("Cork")], limit=10), list[Receipt])
    assert_type(await step.children("ship", Ship, (Parcel(to) for to in ("Brest", "Cork"))), list[Receipt])
    assert_type(
        await step.gather("both", {"a": step.child(NoParams), "b": step.child(NoParams)}), dict[str, int]
    )


async def endless(step: WorkflowStep) -> str:
    return await step.continue_as_new(Parcel("Kiel"), version="same")
