"""An agent: a model that thinks aloud, calls tools, and answers; its tokens are read while it speaks.

    python examples/agent_loop.py
    perdure run examples/agent_loop.py:Agent --params '"When is high water in Cork?"'

Each turn of the model and each call of a tool is a step. Kill it in the middle and start it again: turns
that have ended are not asked (and paid) for again, and no reader is given the half sentence that was lost.
`complete` stands for a real client: it has the same shape, an async iterator of deltas.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import trio

from perdure import (
    Instance,
    StreamRewoundError,
    StreamWriter,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    open_runtime,
)
from perdure.actors.host import Replay


class ToolCall(msgspec.Struct, frozen=True):
    name: str
    argument: str


class Delta(msgspec.Struct, frozen=True):
    text: str = ""
    tool: ToolCall | None = None


class Message(msgspec.Struct, frozen=True):
    role: str
    text: str
    tool: ToolCall | None = None


TURNS_MAX = 10
SCRIPT = [
    ("I should look up the tides of Cork.", ToolCall("tides", "Cork")),
    ("And add half an hour for the walk.", ToolCall("add_minutes", "17:42 30")),
    ("High water is at 17:42; be back by 18:12.", None),
]


async def complete(messages: list[Message]) -> AsyncIterator[Delta]:
    """Stands for `client.messages.stream(...)`: what it says depends on the conversation alone."""
    text, tool = SCRIPT[sum(message.role == "assistant" for message in messages)]
    for word in text.split():
        await trio.sleep(0.03)
        yield Delta(text=word + " ")
    if tool is not None:
        yield Delta(tool=tool)


async def ask_model(out: StreamWriter[str], messages: list[Message]) -> Message:
    text, tool = "", None
    async for delta in complete(messages):
        tool = delta.tool or tool
        if delta.text:
            await out.write(delta.text)
            text += delta.text
    await out.write("\n")
    return Message("assistant", text.strip(), tool)


async def use_tool(call: ToolCall) -> str:
    if call.name == "tides":
        return f"{call.argument}: high water 17:42"
    time, minutes = call.argument.split()
    total = int(time[:2]) * 60 + int(time[3:]) + int(minutes)
    return f"{total // 60:02}:{total % 60:02}"


class Agent(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> str:
        messages = [Message("user", event.payload)]
        async with step.writable("tokens", of=str) as out:
            for turn in range(TURNS_MAX):
                said = await step.do(f"turn {turn}", ask_model, out, list(messages))
                messages.append(said)
                if said.tool is None:
                    return said.text
                found = await step.do(f"tool {turn}", use_tool, said.tool, retries=2)
                await out.write(f"  [{said.tool.name}: {found}]\n")
                messages.append(Message("tool", found))
        return "I have thought about it for too long."


async def listen(agent: Instance[str]) -> None:
    tokens = agent.stream("tokens", returns=str)
    while True:
        try:
            async for token in tokens:
                print(token, end="", flush=True)
            return
        except StreamRewoundError:
            print(" ... (that attempt was lost; once more)", flush=True)


async def main(state: Path, replay: Replay) -> None:
    async with open_runtime(state, workflows=[Agent], replay=replay) as runtime:
        question = "When is high water in Cork?"
        agent = await runtime.create(Agent, params=question, id="tides", if_exists="attach")
        print(f"> {question}")
        await listen(agent)
        print(f"answer: {await agent.result()}")
        [row] = await agent.sql("SELECT count(*) AS n, sum(attempts) AS tried FROM steps WHERE kind = 'do'")
        print(f"{row.n} steps, {row.tried} attempts")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An agent with tools, whose tokens are streamed.")
    parser.add_argument("--state", type=Path, default=Path("state-agent"))
    parser.add_argument("--replay", choices=["warm", "always"], default="warm")
    options = parser.parse_args()
    trio.run(main, options.state, options.replay)
