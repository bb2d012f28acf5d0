"""Work that is measured in a process of its own: its memory, its start, or its death is the figure.

    python -m perdure.benchmarks.children WORK FOLDER JSON

A child prints one line of JSON when it is ready and one with what it found; `start` and `run` are for the
benchmarks.

Invariants:
    A child that a benchmark has started has ended when the benchmark has.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

import perdure
from perdure.benchmarks.harness import WorkNotDoneError
from perdure.benchmarks.workflows import Short, Sleeper, Trace, Traced

SECONDS_MAX: Final = 600
SETTLED_S: Final = 0.2
KILOBYTE: Final = 1_000


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is to do: with how many instances or steps, sleeping how long, standing still where."""

    count: int = 0
    sleep_s: float = 0.0
    created_s: float = 0.0
    """Over which time creations are spread; 0 where they come as fast as they are taken."""
    holds_at: int | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a child has found; what it did not look at is as it is here."""

    up_at_s: float
    """When its own code began to run, by the wall clock."""
    opened_s: float = 0.0
    """What opening the runtime took."""
    first_result_s: float = 0.0
    """From there to the result of a new instance."""
    created_s: float = 0.0
    late_s: list[float] = []
    memory_before: float = 0.0
    memory: float = 0.0
    """Resident bytes: with the runtime open and nothing in it, and at the end."""
    rows: int = 0


def memory_bytes() -> float:
    """Return the resident memory of this process."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no such file outside Linux: the highest ever stands for it
        import resource  # noqa: PLC0415 - not on every platform

        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


# -- what a child does -----------------------------------------------------------------------


async def sleepers(folder: Path, task: Task, up_at_s: float) -> Report:
    """Create instances one by one that sleep until so long after their creation; wait for all of them.

    With `created_s` their creation is spread over that time, else they come as fast as they are taken.
    """
    late_s: list[float] = []
    async with perdure.open_runtime(folder, workflows=[Sleeper], env=late_s) as runtime:
        began_s = time.perf_counter()
        instances: list[perdure.Instance[bool]] = []
        for number in range(task.count):
            ahead_s = began_s + number * task.created_s / task.count - time.perf_counter()
            if ahead_s > 0:
                await trio.sleep(ahead_s)
            instances.append(await runtime.create(Sleeper, params=task.sleep_s, id=f"{number}"))
        created_s = time.perf_counter() - began_s
        for instance in instances:
            if not await instance.result():
                raise WorkNotDoneError("a sleeper has not slept")
    return Report(up_at_s=up_at_s, created_s=created_s, late_s=late_s, rows=len(instances))


async def asleep(folder: Path, task: Task, up_at_s: float) -> Report:
    """Open a folder with sleepers, have more go to sleep, and look at the memory once nothing is warm."""
    limits = perdure.Limits(idle_grace_s=SETTLED_S)
    late_s: list[float] = []
    async with perdure.open_runtime(folder, workflows=[Sleeper], env=late_s, limits=limits) as runtime:
        before = memory_bytes()
        for number in range(task.count):
            await runtime.create(Sleeper, params=task.sleep_s, id=f"more-{number}")
        while await waiting(runtime) < task.count or runtime.statistics().warm:  # noqa: ASYNC110 - no event says so
            await trio.sleep(SETTLED_S)
        rows = await runtime.sql("SELECT count(*) AS n FROM instances WHERE status = 'waiting'")
        return Report(up_at_s=up_at_s, memory_before=before, memory=memory_bytes(), rows=rows[0]["n"])


async def waiting(runtime: perdure.Runtime) -> int:
    """Return how many of the instances that were created here are asleep."""
    (row,) = await runtime.sql(
        "SELECT count(*) AS n FROM instances WHERE status = 'waiting' AND id LIKE 'more-%'"
    )
    return int(row["n"])


async def startup(folder: Path, task: Task, up_at_s: float) -> Report:
    """Open a folder, and have a new instance run to its result."""
    del task
    began_s = time.perf_counter()
    env: list[float] = []
    async with perdure.open_runtime(folder, workflows=[Short, Sleeper], env=env) as runtime:
        opened_s = time.perf_counter() - began_s
        ready_at_s = time.time()
        await (await runtime.create(Short, params=1)).result()
        first_s = time.time() - ready_at_s
        memory = memory_bytes()
    return Report(up_at_s=up_at_s, opened_s=opened_s, first_result_s=first_s, memory=memory)


async def traced(folder: Path, task: Task, up_at_s: float) -> Report:
    """Create a chain that leaves a trace, or find it there, and wait for its result."""
    descriptor = os.open(folder / "trace", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    trace = Trace(descriptor=descriptor, holds_at=task.holds_at)
    began_s = time.perf_counter()
    async with perdure.open_runtime(folder / "state", workflows=[Traced], env=trace) as runtime:
        opened_s = time.perf_counter() - began_s
        instance = await runtime.create(Traced, params=task.count, id="traced", if_exists="attach")
        if await instance.result() != task.count:
            raise WorkNotDoneError("the chain did not have all its steps")
    return Report(up_at_s=up_at_s, opened_s=opened_s)


WORK: Final[dict[str, Callable[[Path, Task, float], Awaitable[Report]]]] = {
    "sleepers": sleepers,
    "asleep": asleep,
    "startup": startup,
    "traced": traced,
}


# -- the parent's side -----------------------------------------------------------------------


@contextlib.contextmanager
def start(work: str, folder: Path, task: Task) -> Generator[subprocess.Popen[bytes]]:
    """Give a child at work; it is killed at the end if it has not ended by then."""
    command = [sys.executable, "-m", __name__, work, str(folder), msgspec.json.encode(task).decode()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[bytes]) -> Report:
    """Wait for a child's end and return its report. Raises `WorkNotDoneError` with its last words."""
    out, err = process.communicate(timeout=SECONDS_MAX)
    if process.returncode:
        last = err.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise WorkNotDoneError(f"a child ended with status {process.returncode}: {last[-1]}")
    return msgspec.json.decode(out.splitlines()[-1], type=Report)


def run(work: str, folder: Path, task: Task) -> Report:
    """Have a child do some work, and return what it found."""
    with start(work, folder, task) as process:
        return finish(process)


def main() -> None:
    """Do what the command line says."""
    up_at_s = time.time()
    work, folder, task = sys.argv[1:]
    report: Any = trio.run(
        WORK[work], Path(folder), msgspec.json.decode(task, type=Task), up_at_s, strict_exception_groups=True
    )
    print(msgspec.json.encode(report).decode(), flush=True)


if __name__ == "__main__":
    main()
