"""A program with two workers: `supervisor STATE LINES COUNT PIPE`. It says when it is open, and who works.

It runs `COUNT` instances that write lines, and where a pipe is given one whose step waits for it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import trio

from perdure.engine.app import load_app, load_module
from perdure.engine.opening import open_runtime

WORKFLOWS = Path(__file__).resolve().parents[2] / "engine" / "programs" / "shared_workflows.py"
WORKERS = "SELECT pid FROM _perdure_workers WHERE doorbell IS NULL AND stopped_at IS NULL"


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def main(state: str, lines: str, count: int, pipe: str) -> None:
    shared: Any = load_module(WORKFLOWS)
    async with open_runtime(state, load_app(WORKFLOWS), workers=2) as runtime:
        say("open")
        jobs: list[Any] = [
            {"params": shared.Job(lines=lines, name=str(number), steps=4, nap_s=0.2), "id": str(number)}
            for number in range(count)
        ]
        await runtime.create_batch(shared.Counted, jobs)
        if pipe:
            await runtime.create(shared.Held, params=pipe)
        say(*[row.pid for row in await runtime.sql(WORKERS)])
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
