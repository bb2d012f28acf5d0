"""What both checkers refuse of children: a line marked `# E:` is reported. Nothing here runs."""

from __future__ import annotations

from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep


class Double(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        return event.payload * 2


async def families(step: WorkflowStep) -> None:
    await step.child(Double, "two")  # E: params of another type
    await step.child(Double, 2, on_cancel="ignore")  # E: no such way
    await step.child(Double, 2, retries=3)  # E: a child has no attempts
    await step.children("double", Double, ["two"])  # E: params of another type
    text: str = await step.child(Double, 2)  # E: its result is a number
    assert text
    await step.continue_as_new(3, version="newest")  # E: no such version
