"""`interference`: what CPU-bound work does to the loop, steps of an instance beside one that computes.

The interpreter runs one thread at a time, so a step function that computes in a worker thread takes
the loop's turns away: whenever an insert has handed the interpreter over for a system call, it may
wait for the interpreter's switch interval, 5 ms by Python's own choice, to have it back. Perdure
lowers the interval while a runtime is open; `process_step` takes the work out of the process
altogether. This measures all of it:

    a bare `sqlite3` insert, alone and beside a computing thread, at both intervals;
    a step of a chain, alone, beside a plain step that computes, beside a `process_step` that does.

Durability is `process`: what is measured is the wait for the interpreter, not for the disk. The table
shows medians over the rounds; the 99th percentile is that of single inserts or steps.

Invariants:
    What computes has begun before the first insert or step, and is stopped after the last.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final, Literal

import msgspec
import trio

import perdure
from perdure import StepContext, WorkflowEntrypoint, WorkflowEvent, WorkflowStep, process_step
from perdure.benchmarks.harness import Bench, WorkNotDoneError, compared, median, percentile, ratio
from perdure.benchmarks.results import Found, Measure

PYTHONS_INTERVAL_S: Final = 0.005
"""The interpreter's own switch interval."""

Beside = Literal["nothing", "a plain step", "a process step"]


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How many inserts, and how many steps, one measurement takes; for how long it may go on."""

    inserts: int
    steps: int
    seconds_max: float


SIZES: Final = {
    "full": (Size(inserts=5_000, steps=3_000, seconds_max=3.0), 5),
    "quick": (Size(inserts=2_000, steps=1_000, seconds_max=1.0), 3),
    "tiny": (Size(inserts=20, steps=10, seconds_max=0.5), 1),
}


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """What each insert or step took, in seconds."""

    took_s: list[float]

    def us(self, percent: float) -> float:
        """Return a percentile in microseconds."""
        return percentile(self.took_s, percent) * 1e6

    @property
    def mean_us(self) -> float:
        """The mean in microseconds: what a loop that has many to do gets done."""
        return sum(self.took_s) / len(self.took_s) * 1e6


def spin(goes_on: Callable[[], bool]) -> int:
    """Compute in pure Python while `goes_on()`; return how many rounds that were."""
    rounds = 0
    value = 1
    while goes_on():
        for _ in range(10_000):
            value = value * 48_271 % 2_147_483_647
        rounds += 1
    return rounds


# -- a bare insert ---------------------------------------------------------------------------


def insert(file: Path, size: Size, interval_s: float, *, beside: bool) -> Waits:
    """Insert rows one by one, each in its own commit, with or without a thread that computes."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, value TEXT)")
    took_s: list[float] = []
    with switch_interval(interval_s), computing_thread() if beside else contextlib.nullcontext():
        ends_s = time.perf_counter() + size.seconds_max
        while len(took_s) < size.inserts and time.perf_counter() < ends_s:
            began_s = time.perf_counter()
            connection.execute("INSERT INTO rows (value) VALUES (?)", ("x" * 100,))
            took_s.append(time.perf_counter() - began_s)
    (rows,) = connection.execute("SELECT count(*) FROM rows").fetchone()
    connection.close()
    if rows != len(took_s):
        raise WorkNotDoneError(f"{len(took_s)} inserts have left {rows} rows")
    return Waits(took_s=took_s)


@contextlib.contextmanager
def switch_interval(interval_s: float) -> Generator[None]:
    """Set the interpreter's switch interval while inside."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(interval_s)
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)


@contextlib.contextmanager
def computing_thread() -> Generator[None]:
    """Have a thread compute while inside."""
    begun, stopped = threading.Event(), threading.Event()

    def compute() -> None:
        begun.set()
        spin(lambda: not stopped.is_set())

    thread = threading.Thread(target=compute)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


# -- a step ----------------------------------------------------------------------------------


def compute_until(ended: str, begun: str) -> int:
    """Compute until the file `ended` is there, after making `begun`: the step function beside the chain."""
    Path(begun).touch()
    return spin(lambda: not Path(ended).exists())


def compute_in_thread(ended: str, begun: str, context: StepContext) -> int:
    """Compute as `compute_until` does, until cancelled at the latest."""
    Path(begun).touch()
    return spin(lambda: not (Path(ended).exists() or context.cancelled))


compute_in_process = process_step(compute_until)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a `Compute` instance is to do: where, and by which files it says and is told."""

    in_process: bool
    begun: str
    ended: str


class Compute(WorkflowEntrypoint[None]):
    """One step that computes until it is told to end."""

    async def run(self, event: WorkflowEvent[Job], step: WorkflowStep) -> bool:
        """Compute; return whether anything was."""
        job = event.payload
        if job.in_process:
            return await step.do("compute", compute_in_process, job.ended, job.begun) > 0
        return await step.do("compute", compute_in_thread, job.ended, job.begun) > 0


async def number_of(number: int) -> int:
    """Return the number: the step function whose waits are measured."""
    return number


class Measured(WorkflowEntrypoint[list[float]]):
    """A chain of steps that notes in `env` what each took."""

    async def run(self, event: WorkflowEvent[Size], step: WorkflowStep) -> int:
        """Run steps until there are enough, or the time is up; return how many."""
        size = event.payload
        ends_s = time.perf_counter() + size.seconds_max
        for number in range(size.steps):
            if time.perf_counter() >= ends_s:
                break
            began_s = time.perf_counter()
            await step.do(f"step {number}", number_of, number)
            self.env.append(time.perf_counter() - began_s)
        return len(self.env)


async def chain(folder: Path, size: Size, beside: Beside) -> Waits:
    """Run the chain beside what computes."""
    begun, ended = folder / "begun", folder / "ended"
    took_s: list[float] = []
    async with perdure.open_runtime(
        folder / "state", workflows=[Compute, Measured], durability="process", env=took_s
    ) as runtime:
        job = Job(in_process=beside == "a process step", begun=str(begun), ended=str(ended))
        computing = None if beside == "nothing" else await runtime.create(Compute, params=job, id="computing")
        while computing is not None and not begun.exists():  # noqa: ASYNC110 - a child process can set no event
            await trio.sleep(0.001)
        steps = await (await runtime.create(Measured, params=size)).result()
        ended.touch()
        if computing is not None and not await computing.result():
            raise WorkNotDoneError("nothing was computed beside the chain")
    if steps != len(took_s):
        raise WorkNotDoneError(f"the chain returned {steps} and took {len(took_s)} steps")
    return Waits(took_s=took_s)


# -- the report ------------------------------------------------------------------------------


def perdures_interval_s(bench: Bench[Size]) -> float:
    """Return the switch interval while a runtime is open."""

    async def ask() -> float:
        async with perdure.open_runtime(bench.new_folder(), durability="process"):
            return sys.getswitchinterval()

    return trio.run(ask)


def run(bench: Bench[Size]) -> Found:
    """Measure inserts and chains."""
    size, lowered_s = bench.size, perdures_interval_s(bench)

    def inserts(interval_s: float, *, beside: bool) -> Waits:
        return insert(bench.new_folder() / "rows.sqlite", size, interval_s, beside=beside)

    def steps(beside: Beside) -> Waits:
        return trio.run(chain, bench.new_folder(), size, beside)

    insert_variants: dict[str, Callable[[], Waits]] = {
        "insert": functools.partial(inserts, PYTHONS_INTERVAL_S, beside=False),
        "insert beside a thread, Python's interval": functools.partial(
            inserts, PYTHONS_INTERVAL_S, beside=True
        ),
        "insert beside a thread, Perdure's interval": functools.partial(inserts, lowered_s, beside=True),
    }
    step_variants: dict[str, Callable[[], Waits]] = {
        "step": functools.partial(steps, "nothing"),
        "step beside a plain step": functools.partial(steps, "a plain step"),
        "step beside a process step": functools.partial(steps, "a process step"),
    }
    found = bench.in_turn(insert_variants | step_variants)
    measures = [
        measure(name, found[name], found[next(iter(group))])
        for group in (insert_variants, step_variants)
        for name in group
    ]
    computed = [list(found), lowered_s < PYTHONS_INTERVAL_S]
    return Found(
        measures=measures, computed=computed, notes=[f"Perdure's interval is {1e3 * lowered_s:g} ms"]
    )


def measure(name: str, rounds: list[Waits], alone: list[Waits]) -> Measure:
    """Return the measure of one variant."""
    return compared(
        [waits.mean_us for waits in rounds],
        key=f"interference/{name}",
        what=f"{name}, mean",
        unit="µs",
        better="less",
        figures={
            "times alone": ratio([each.mean_us for each in rounds], [each.mean_us for each in alone]),
            "µs median": median([waits.us(50) for waits in rounds]),
            "µs 99th percentile": median([waits.us(99) for waits in rounds]),
            "µs worst": median([waits.us(100) for waits in rounds]),
        },
    )
