"""The process that `perdure demo` kills: it opens a runtime, runs the audit, and says how far it is.

    python -P -m perdure.cli.demo_worker STATE ID EXECUTIONS [--new] [--pause SECONDS]

With --new it creates the instance, and holds the one attempt that is to be killed; without, it gives
no order at all: opening the folder is enough for what was under way to go on. It writes one line of
JSON a few times a second. What a line counts as recorded was read through `Instance.sql`, so it is
committed and on disk before the line is written (law 2).

Invariants:
    It takes no part in its own killing: no handler, no farewell, nothing written beforehand.
"""

from __future__ import annotations

import argparse
import functools
import signal
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import outcome
import trio

from perdure import Instance, PerdureError, open_runtime
from perdure.cli.audit import PHASES, Audit, Watch

LOOK_S: Final = 0.04
PROGRESS: Final = """
    SELECT substr(name, 1, instr(name || '[', '[') - 1) AS phase, status, count(*) AS n,
        (SELECT json_array_length(output) FROM steps WHERE name = 'list distributions') AS found
    FROM steps GROUP BY 1, 2"""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the worker: how many steps are recorded, in all and by phase, and how many will be.

    `holding` is True once the attempt that waits for the kill is under way.
    """

    recorded: int = 0
    total: int | None = None
    phases: dict[str, int] = {}
    distributions: int | None = None
    holding: bool = False
    done: bool = False


def main(argv: list[str] | None = None) -> int:
    """Run the audit of one state folder to its end."""
    parser = argparse.ArgumentParser(prog="perdure.cli.demo_worker")
    parser.add_argument("state", type=Path)
    parser.add_argument("id")
    parser.add_argument("executions", type=Path)
    parser.add_argument("--new", action="store_true")
    parser.add_argument("--pause", type=float, default=0.0)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the demo too, and that decides
    watch = Watch(options.executions, pause_s=options.pause, hold=options.new)
    try:
        trio.run(functools.partial(_work, options.state, options.id, watch, new=options.new))
    except PerdureError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


async def _work(state: Path, instance_id: str, watch: Watch, *, new: bool) -> None:
    async with open_runtime(state, workflows=[Audit], env=watch) as runtime:
        if new:
            instance = await runtime.create(Audit, id=instance_id)
        else:
            instance = await runtime.get(Audit, instance_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tell, instance, watch)
            ended = await outcome.acapture(instance.result)  # raised in the nursery, it would be a group
            nursery.cancel_scope.cancel()
        ended.unwrap()
        _write(msgspec.structs.replace(await _progress(instance, watch), done=True))


async def _tell(instance: Instance[Any], watch: Watch) -> None:
    while True:
        _write(await _progress(instance, watch))
        await trio.sleep(LOOK_S)


async def _progress(instance: Instance[Any], watch: Watch) -> Progress:
    holding = watch.holding.is_set()
    rows = await instance.sql(PROGRESS)
    phases: dict[str, int] = dict.fromkeys(PHASES, 0)
    for row in rows:
        if row["status"] == "completed":
            phases[row["phase"]] += row["n"]
    found = next((row["found"] for row in rows), None)
    total = None if found is None else 3 * found + 2
    return Progress(
        recorded=sum(phases.values()), total=total, phases=phases, distributions=found, holding=holding
    )


def _write(progress: Progress) -> None:
    sys.stdout.write(msgspec.json.encode(progress).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
