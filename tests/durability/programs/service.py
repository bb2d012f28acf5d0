"""A program that runs until it is told to stop: `service.py STATE [WORK ...] [--option ...]`.

Starts one instance for each WORK, named after it, and prints `open`, `busy WORK` from inside its step
function, and `result WORK RESULT` once it has ended; where all have, the program ends. SIGTERM and
SIGINT cancel what it does, as a service's own handlers would; with `--plain` Ctrl-C is left to
Python. `--finish` lets every function return at once, `--grace S` bounds the shutdown.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from typing import Any

import trio

import perdure

FINISH = "--finish" in sys.argv
STATE, *WORKS = [word for word in sys.argv[1:] if not word.startswith("--")]


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


async def rest(context: perdure.StepContext) -> int:
    say("busy rest")
    await trio.sleep(0 if FINISH else 3600)
    return context.attempt


def block(context: perdure.StepContext) -> int:
    """Take no notice of anything, as a call into a C library would."""
    say("busy block")
    if not FINISH:
        time.sleep(3600)  # nothing can stop it
    return context.attempt


def linger(context: perdure.StepContext) -> int:
    """Notice that the attempt is over, and take a moment to leave."""
    say("busy linger")
    while not FINISH and not context.cancelled:
        time.sleep(0.01)
    return context.attempt


async def tick(n: int) -> int:
    if n == 5:
        say("busy ticks")
    return n


class Work(perdure.WorkflowEntrypoint[None]):
    async def run(self, event: perdure.WorkflowEvent[str], step: perdure.WorkflowStep) -> int:
        match event.payload:
            case "rest":
                return await step.do("rest", rest)
            case "block":
                return await step.do("block", block)
            case "linger":
                return await step.do("linger", linger)
            case "wait":
                await step.do("tick", tick, 5)
                return (await step.wait_for_event("go", type="go", timeout=None, returns=int)).payload
            case _:
                n = 0
                while n < 100_000 and not FINISH:
                    n += await step.do(f"tick {n}", tick, n) * 0 + 1
                    await step.sleep(f"nap {n}", 0.001)
                return n


async def follow(instance: perdure.Instance[Any]) -> None:
    say(f"result {instance.id} {await instance.result()}")


async def serve() -> None:
    grace_s = next(
        (float(word.removeprefix("--grace=")) for word in sys.argv if word.startswith("--grace=")), 10.0
    )
    limits = perdure.Limits(shutdown_grace_s=grace_s, idle_grace_s=60, unwritten_s=0)
    async with perdure.open_runtime(STATE, workflows=[Work], limits=limits) as runtime:
        say("open")
        async with trio.open_nursery() as nursery:
            for work in WORKS:
                instance = await runtime.create(Work, params=work, id=work, if_exists="attach")
                nursery.start_soon(follow, instance)


async def stop_on_signal(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


async def main() -> None:
    if "--plain" in sys.argv:
        await serve()
        return
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            await nursery.start(partial(stop_on_signal, scope))
            try:
                await serve()
            except perdure.StateLockedError as error:
                say(f"locked by {error.pid}")
        nursery.cancel_scope.cancel()
    if scope.cancelled_caught:
        say("left")


if __name__ == "__main__":
    trio.run(main)
