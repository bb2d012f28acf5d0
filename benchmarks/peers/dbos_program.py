"""The work of the benchmarks, done by DBOS: a program for an environment that has DBOS, and not Perdure.

    python dbos_program.py WORK FILE COUNT SLEEP_SECONDS

Prints one line of JSON: figures by the key of the measure they are compared with. The workflows take the
same steps as Perdure's in `workflows.py`. Polling intervals of DBOS are set short, in its favour.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast

# Where DBOS is not installed this can be imported all the same, but not run.
dbos: Any = importlib.import_module("dbos") if importlib.util.find_spec("dbos") else None
TEXT = "x" * 100
F = TypeVar("F", bound=Callable[..., Any])
AT_ONCE = 50  # more starts at once only wait for SQLite's one writer


def a_step(function: F) -> F:
    """Register a step."""
    return function if dbos is None else cast("F", dbos.DBOS.step()(function))


def a_workflow(function: F) -> F:
    """Register a workflow."""
    return function if dbos is None else cast("F", dbos.DBOS.workflow()(function))


@a_step
async def value(number: int) -> dict[str, Any]:
    """Return what a step of ordinary size returns."""
    return {"i": number, "text": TEXT}


@a_step
async def blob(number: int, characters: int) -> str:
    """Return that much text."""
    del number
    return "b" * characters


@a_step
async def noted(number: int, trace: str) -> int:
    """Append the step's number and time to a file."""
    with open(trace, "a", encoding="ascii") as file:  # noqa: ASYNC230, PTH123 - as its users would write it
        file.write(f"{number} {time.time()}\n")
    return number


@a_workflow
async def chain(count: int) -> int:
    """Run steps one after the other."""
    total = 0
    for number in range(count):
        total += (await value(number))["i"]
    return total


@a_step
def plain_value(number: int) -> dict[str, Any]:
    """Return the same from a plain function."""
    return {"i": number, "text": TEXT}


@a_workflow
def plain_chain(count: int) -> int:
    """Run plain steps one after the other: the quicker way there."""
    return sum(plain_value(number)["i"] for number in range(count))


@a_workflow
async def fan_out(count: int) -> int:
    """Run steps side by side."""
    return sum(each["i"] for each in await asyncio.gather(*[value(number) for number in range(count)]))


@a_workflow
async def sleeper(seconds: float) -> float:
    """Sleep, and return when it went on."""
    await dbos.DBOS.sleep_async(seconds)
    return time.time()


@a_workflow
async def blobs(count: int, characters: int) -> int:
    """Return large results one after the other."""
    return sum([len(await blob(number, characters)) for number in range(count)])


@a_workflow
async def traced(count: int, trace: str) -> int:
    """Run steps that leave a trace."""
    for number in range(count):
        await noted(number, trace)
    return count


async def run(workflow: Any, *values: Any, poll_s: float = 0.01) -> Any:
    """Start a workflow and wait for its result."""
    handle = await dbos.DBOS.start_workflow_async(workflow, *values)
    return await handle.get_result(polling_interval_sec=poll_s)


async def timed(made: Awaitable[Any], expected: Any) -> float:
    """Return the seconds until the result, which has to be the expected one."""
    began_s = time.perf_counter()
    result = await made
    seconds = time.perf_counter() - began_s
    if result != expected:
        raise SystemExit(f"the workflow returned {result!r}, not {expected!r}")
    return seconds


def sum_of(count: int) -> int:
    """Return what a chain of that length returns."""
    return count * (count - 1) // 2


async def measure_chain(_file: str, count: int, _sleep_s: float) -> dict[str, float]:
    """Take the steps per second of one chain."""

    def result(steps: int) -> int:
        found: int = dbos.DBOS.start_workflow(plain_chain, steps).get_result()
        return found

    await asyncio.to_thread(result, 2)
    return {"chain/full": count / await timed(asyncio.to_thread(result, count), sum_of(count))}


async def measure_short(_file: str, count: int, _sleep_s: float) -> dict[str, float]:
    """Take the instances of 5 steps per second."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one() -> int:
        async with room:
            result: int = await run(chain, 5, poll_s=0.05)
            return result

    began_s = time.perf_counter()
    results = await asyncio.gather(*[one() for _ in range(count)])
    seconds = time.perf_counter() - began_s
    if set(results) != {sum_of(5)}:
        raise SystemExit("a chain returned something else")
    return {"short/full": count / seconds}


async def measure_latency(_file: str, count: int, _sleep_s: float) -> dict[str, float]:
    """Take the milliseconds from start to result, one at a time."""
    took_s = [await timed(run(chain, 1, poll_s=0.001), 0) for _ in range(count + 10)][10:]
    took_s.sort()
    return {
        "latency/p50": 1e3 * took_s[len(took_s) // 2],
        "latency/p99": 1e3 * took_s[(len(took_s) * 99) // 100],
    }


async def measure_fanout(_file: str, count: int, _sleep_s: float) -> dict[str, float]:
    """Take the parallel steps per second."""
    return {"fanout/full": count / await timed(run(fan_out, count), sum_of(count))}


async def measure_sleepers(_file: str, count: int, sleep_s: float) -> dict[str, float]:
    """Take how late sleepers go on, and the memory of each."""
    room = asyncio.Semaphore(AT_ONCE)
    before_kb = memory_kb()
    started: list[int] = []

    async def one() -> float:
        async with room:
            handle = await dbos.DBOS.start_workflow_async(sleeper, sleep_s)
        due_s = time.time() + sleep_s
        started.append(1)
        return float(await handle.get_result(polling_interval_sec=0.5)) - due_s

    tasks = [asyncio.create_task(one()) for _ in range(count)]
    while len(started) < count:  # noqa: ASYNC110 - looked at once in a hundredth of a second
        await asyncio.sleep(0.01)
    each_kb = (memory_kb() - before_kb) / count
    late_s = sorted(await asyncio.gather(*tasks))
    return {
        "sleepers/p50": 1e3 * late_s[len(late_s) // 2],
        "sleepers/p99": 1e3 * late_s[(len(late_s) * 99) // 100],
        "asleep/each": each_kb,
    }


def memory_kb() -> float:
    """Return the resident memory of this process, in KB."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - one line of the system's
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1000


async def measure_large(_file: str, count: int, _sleep_s: float) -> dict[str, float]:
    """Take the megabytes of results per second."""
    return {"large/1": count / await timed(run(blobs, count, 1_000_000), count * 1_000_000)}


async def measure_recover(file: str, count: int, _sleep_s: float) -> dict[str, float]:
    """Run a traced chain, or go on with it."""
    with dbos.SetWorkflowID("traced"):
        await timed(run(traced, count, os.path.join(os.path.dirname(file), "trace")), count)  # noqa: PTH118, PTH120 - in a program of one file
    return {}


MEASURES: dict[str, Callable[[str, int, float], Coroutine[Any, Any, dict[str, float]]]] = {
    "chain": measure_chain,
    "short": measure_short,
    "bytes": measure_short,
    "latency": measure_latency,
    "fanout": measure_fanout,
    "sleepers": measure_sleepers,
    "asleep": measure_sleepers,
    "large": measure_large,
    "recover": measure_recover,
}


def main() -> None:
    """Measure what the command line says."""
    work, file, count, sleep_s = sys.argv[1:]
    dbos.DBOS(
        config={
            "name": "bench", "system_database_url": f"sqlite:///{file}", "log_level": "ERROR",
            "application_version": "1", "executor_id": "local",
            "notification_listener_polling_interval_sec": 0.01,
        }
    )  # fmt: skip
    dbos.DBOS.launch()
    print(json.dumps(asyncio.run(MEASURES[work](file, int(count), float(sleep_s)))), flush=True)
    os._exit(0)  # its threads may be waiting for the next poll


if __name__ == "__main__":
    main()
