"""A person has to say yes: reminders while nobody answers, and then somebody else is asked.

    python examples/approval.py
    perdure run examples/approval.py:Approval --params '{"what": "a kite", "remind_after": "2 seconds"}'

Three requests at once: one is approved after a reminder, one is refused at once, and one is ignored until it
goes to the boss. While it waits a request is a row in a file: it may wait for months, and through restarts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec
import trio

from perdure import (
    EventTimeoutError,
    Instance,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    open_runtime,
)
from perdure.actors.host import Replay


class Request(msgspec.Struct, frozen=True):
    what: str
    remind_after: str = "1 day"
    reminders: int = 2


class Answer(msgspec.Struct, frozen=True):
    by: str
    yes: bool


class Verdict(msgspec.Struct, frozen=True):
    text: str
    asked: list[str]


async def mail(who: str, text: str) -> str:
    print(f"  to {who:<6} {text}", flush=True)
    return who


class Approval(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Request], step: WorkflowStep) -> Verdict:
        request = event.payload
        asked = [await step.do("ask", mail, "Ada", f"may we buy {request.what}?")]
        for number in range(request.reminders + 1):
            try:
                answer = await step.wait_for_event(
                    f"answer {number}", type="answer", timeout=request.remind_after, returns=Answer
                )
            except EventTimeoutError:
                last = number == request.reminders - 1
                if number < request.reminders:
                    who = "the boss" if last else "Ada"
                    text = request.what + (": nobody answers" if last else ": a reminder")
                    asked.append(await step.do(f"ask again {number}", mail, who, text))
                continue
            said = "approved" if answer.payload.yes else "refused"
            return Verdict(f"{said} by {answer.payload.by}", asked)
        return Verdict("expired: nobody answered", asked)


async def answer_after(asked: int, instance: Instance[Any], answer: Answer) -> None:
    """Answer as a person does, once they have been asked so many times."""
    async for entry in instance.subscribe():
        asked -= entry.what == "do completed"
        if asked == 0:
            await instance.send_event(
                "answer", msgspec.to_builtins(answer), token=f"{instance.id} by {answer.by}"
            )
            return


async def main(state: Path, replay: Replay) -> None:
    async with (
        open_runtime(state, workflows=[Approval], replay=replay) as runtime,
        trio.open_nursery() as people,
    ):
        plans = [("a kite", 2, "Ada", True), ("a yacht", 1, "Ada", False), ("a kettle", 3, "the boss", True)]
        requests: list[Instance[Verdict]] = []
        for what, asked, by, yes in plans:
            request = Request(what, remind_after="1 second")
            id_ = what.removeprefix("a ")
            instance = await runtime.create(Approval, params=request, id=id_, if_exists="attach")
            requests.append(instance)
            if (await instance.status()).status != "complete":
                people.start_soon(answer_after, asked, instance, Answer(by, yes))
        for (what, *_), instance in zip(plans, requests, strict=True):
            verdict = await instance.result()
            print(f"{what}: {verdict.text}, after asking {', '.join(verdict.asked)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Requests that wait for people.")
    parser.add_argument("--state", type=Path, default=Path("state-approval"))
    parser.add_argument("--replay", choices=["warm", "always"], default="warm")
    options = parser.parse_args()
    trio.run(main, options.state, options.replay)
