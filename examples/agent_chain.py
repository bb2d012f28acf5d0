"""A chain of agents: each is an instance of its own, and hands what it has learnt to the next.

    python examples/agent_chain.py
    perdure run examples/agent_chain.py:Newsroom --params '"tides"'

A newsroom sends out three researchers at once, gives their notes to a writer, and the draft with all that
is known to a critic, until that is content. The parent is not in memory while its children work; what they
share is a value that travels with them, on record in each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
import trio

from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep, open_runtime
from perdure.actors.host import Replay


class Context(msgspec.Struct, frozen=True):
    """What the agents share."""

    topic: str
    notes: list[str] = []
    draft: str = ""
    remarks: list[str] = []


DRAFTS_MAX = 3


async def think(text: str) -> str:
    """Stands for a model."""
    await trio.sleep(0.05)
    return text


class Researcher(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> str:
        found = await step.do("search", think, f"{event.payload} are caused by the moon")
        summary = found + ", mostly"
        return await step.do("sum up", think, summary)


class Writer(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Context], step: WorkflowStep) -> Context:
        known = event.payload
        text = f"Of {known.topic}: {len(known.notes)} notes, {len(known.remarks)} remarks heeded."
        return msgspec.structs.replace(known, draft=await step.do("write", think, text))


class Critic(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Context], step: WorkflowStep) -> Context:
        known = event.payload
        if known.remarks:
            return known
        remark = await step.do("read", think, "say where the notes come from")
        return msgspec.structs.replace(known, remarks=[*known.remarks, remark])


class Newsroom(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> Context:
        topics = [f"{event.payload} in {place}" for place in ("Cork", "Brest", "Kiel")]
        notes = await step.children("research", Researcher, topics)
        known = Context(topic=event.payload, notes=notes)
        for draft in range(DRAFTS_MAX):
            known = await step.child(Writer, known, name=f"draft {draft}")
            remarks = len(known.remarks)
            known = await step.child(Critic, known, name=f"critique {draft}")
            if len(known.remarks) == remarks:
                break
        return known


async def main(state: Path, replay: Replay) -> None:
    agents = [Newsroom, Researcher, Writer, Critic]
    async with open_runtime(state, workflows=agents, replay=replay) as runtime:
        newsroom = await runtime.create(Newsroom, params="tides", id="tides", if_exists="attach")
        known = await newsroom.result()
        query = "SELECT name, detail ->> '$.child' AS child FROM steps WHERE kind = 'child' ORDER BY seq"
        for row in await newsroom.sql(query):
            print(f"{row.child:<36} for step {row.name!r}")
        for note in known.notes:
            print(f"note:   {note}")
        print(f"remark: {', '.join(known.remarks)}")
        print(f"final:  {known.draft}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Agents that share what they know through children.")
    parser.add_argument("--state", type=Path, default=Path("state-newsroom"))
    parser.add_argument("--replay", choices=["warm", "always"], default="warm")
    options = parser.parse_args()
    trio.run(main, options.state, options.replay)
