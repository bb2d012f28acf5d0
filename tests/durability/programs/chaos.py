"""A workflow of 200 steps that is killed again and again: `chaos.py STATE TRACE ID REPLAY DURABILITY`.

Prints `open` once the runtime is open and, at the end, the result as JSON. Each step function
appends a line to TRACE when it begins and when it ends, in one write each, as a witness outside
the runtime: `begin|step|attempt`.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from typing import Any

import trio

import perdure

ROUNDS = 20
RETRIES = perdure.Retries(limit=1_000_000, delay=0.001, backoff="constant")
"""Above any number of kills."""
WITNESS = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def tell(what: str, context: perdure.StepContext) -> None:
    os.write(WITNESS, f"{what}|{context.instance}|{context.step.name}|{context.attempt}\n".encode())


def fetch(n: int, context: perdure.StepContext) -> int:
    tell("begin", context)
    if n % 5 == 0 and context.attempt == 1:
        tell("end", context)
        raise ConnectionError("the first attempt of every fifth round fails")
    tell("end", context)
    return n * n


async def refine(n: int, context: perdure.StepContext) -> int:
    tell("begin", context)
    await trio.sleep(0.001)
    tell("end", context)
    return n + 1


def count(sql: perdure.Sql, n: int) -> int:
    sql.exec("CREATE TABLE IF NOT EXISTS rounds (n INTEGER)")
    sql.exec("INSERT INTO rounds VALUES (?)", n)
    total: int = sql.exec("SELECT count(*) AS total FROM rounds").one()["total"]
    return total


class Chaos(perdure.WorkflowEntrypoint[None]):
    async def run(self, event: perdure.WorkflowEvent[int], step: perdure.WorkflowStep) -> list[list[int]]:
        found: list[list[int]] = []
        for n in range(event.payload):
            square = await step.do(f"fetch {n}", fetch, n, retries=RETRIES)
            parts = await step.map(f"refine {n}", refine, [square, n, 7], retries=RETRIES)
            await step.sleep(f"nap {n}", 0.002)
            told = await step.wait_for_event(f"go {n}", type="go", timeout=None, returns=int)
            who, won = await step.race(
                f"race {n}",
                {
                    "work": step.do(f"work {n}", refine, n, retries=RETRIES),
                    "wait": step.sleep(f"too long {n}", "1 hour"),
                },
            )
            rows = await step.transaction(f"count {n}", count, n)
            found.append([square, *parts, told.payload, len(who), won or 0, rows])
        return found


async def send_events(instance: perdure.Instance[Any]) -> None:
    """Send each event once more: those that came through before a kill are known by their token."""
    for n in range(ROUNDS):
        await trio.sleep(0.002)
        try:
            await instance.send_event("go", n, token=f"go-{n}")
        except perdure.InstanceFinishedError:
            return


async def main(state: str, id_: str, replay: Any, durability: Any) -> None:
    limits = perdure.Limits(crashes_max=1_000_000, idle_grace_s=0.02, wal_pages_max=40)
    async with perdure.open_runtime(
        state, workflows=[Chaos], replay=replay, durability=durability, limits=limits
    ) as runtime:
        print("open", flush=True)  # noqa: T201 - the test reads it
        instance = await runtime.create(Chaos, params=ROUNDS, id=id_, if_exists="attach")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_events, instance)
            result = await instance.result()
        print(json.dumps(result), flush=True)  # noqa: T201 - likewise


if __name__ == "__main__":
    trio.run(partial(main, sys.argv[1], *sys.argv[3:]))
