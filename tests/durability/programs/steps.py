"""A program that tells what it does: `steps.py STATE [faked-sync] [DURABILITY]`.

Prints `creating` and, once that is acknowledged, `created`; `step` from inside the step function;
`sending` and, once the event is acknowledged, `sent`; `result` at the end. With `faked-sync` its
disk syncs nothing.
"""

from __future__ import annotations

import os
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import trio

import perdure
from perdure.engine.opening import open_runtime
from perdure.storage.disk import Disk


class FakedDisk(Disk):
    """A disk that says it has synced."""

    def sync_descriptor(self, descriptor: int) -> None:
        pass

    def sync_directory(self, path: Path) -> None:
        pass


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


async def work() -> int:
    say("step")
    return 7


class Steps(perdure.WorkflowEntrypoint[None]):
    async def run(self, event: perdure.WorkflowEvent[Any], step: perdure.WorkflowStep) -> int:
        seven = await step.do("work", work)
        await step.wait_for_event("go", type="go")
        return seven


async def main() -> None:
    disk = FakedDisk() if "faked-sync" in sys.argv else Disk()
    durability: Any = "process" if "process" in sys.argv else "full"
    async with open_runtime(sys.argv[1], workflows=[Steps], disk=disk, durability=durability) as runtime:
        say("creating")
        instance = await runtime.create(Steps, id="one")
        say("created")
        async with aclosing(instance.subscribe()) as entries:
            async for entry in entries:
                if entry.step == "go":  # it waits
                    break
        say("sending")
        await instance.send_event("other")  # nobody waits for it, so nothing else is written meanwhile
        say("sent")
        await instance.send_event("go")
        await instance.result()
        say("result")


if __name__ == "__main__":
    trio.run(main)
