"""What a step costs, against a bare `sqlite3` loop that writes the same rows with the same durability.

A chain of N steps runs through the public face; the bare loop then writes the rows that the
chain has left behind, column by column as the journal did: one insert when a step starts, one
update when it ends, and a commit for each end with the next start. So the ratio says what
Perdure adds to what SQLite and the disk take in any case. Syncs and commits are Perdure's own
count; the bare loop has SQLite sync each commit (`synchronous=FULL`), or none (`OFF`).

    python benchmarks/bench_step.py [--quick] [--json] [--rounds N] [--folder DIR]

Tables: the chain at several lengths (is the cost of a step flat?), both durabilities side by
side; a whole instance, from `create` to its result; and replay, steps answered from the journal.

Invariants:
    Both sides have written the same rows at the end, or nothing is reported.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import trio

import perdure
from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.benchmarks.program import Bench, Report, Row, Section, main, median, ratio

Durability = Literal["full", "process"]
DURABILITIES: Final[tuple[Durability, ...]] = ("full", "process")
TEXT: Final = "x" * 100
SYNCS: Final = 200
"""How many appends tell what one sync of this disk takes."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """`lengths` of the chains in `steps`, the one that the other tables use, and of a replay."""

    lengths: tuple[int, ...]
    steps: int
    replayed: int


class Lap(msgspec.Struct, frozen=True, kw_only=True):
    """One chain: from before the first step to after the last, and what the disk did meanwhile.

    `cpu_s` is what the loop's thread computed, so that a busy machine shows; `whole_s` is from `create`
    to the result.
    """

    steps: int
    seconds: float
    cpu_s: float
    commits: int
    syncs: int
    whole_s: float = 0.0


class Stopwatch:
    """The workflows' `env`: takes the laps of their chains and says when one was taken."""

    def __init__(self) -> None:
        self.laps: list[Lap] = []
        self.taken = trio.Event()

    @contextlib.contextmanager
    def lap(self, runtime: perdure.Runtime, steps: int) -> Generator[None]:
        """Measure what is done inside."""
        before = runtime.statistics()
        began_s, cpu_s = time.perf_counter(), time.thread_time()
        yield
        seconds, cpu_s = time.perf_counter() - began_s, time.thread_time() - cpu_s
        after = runtime.statistics()
        commits = after.gate.commits - before.gate.commits
        syncs = after.disk.file_syncs - before.disk.file_syncs
        self.laps.append(Lap(steps=steps, seconds=seconds, cpu_s=cpu_s, commits=commits, syncs=syncs))
        self.taken.set()


async def small_value(number: int) -> dict[str, int | str]:
    """Return what a step of ordinary size returns: the step function."""
    return {"i": number, "text": TEXT}


class Chain(WorkflowEntrypoint[Stopwatch]):
    """As many steps as its params say, one after the other."""

    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        """Run the chain and return the sum of what the steps returned."""
        total = 0
        with self.env.lap(self.ctx.runtime, event.payload):
            for number in range(event.payload):
                value = await step.do(f"step {number}", small_value, number)
                total += int(value["i"])
        return total


class OpenChain(Chain):
    """A chain that then waits, so that the steps are answered from the journal at each start."""

    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        """Run the chain, or replay it, and wait for what never comes."""
        total = await super().run(event, step)
        await step.wait_for_event("the end", type="end", timeout="1 day")
        return total


# -- Perdure ---------------------------------------------------------------------------------


async def run_chain(folder: Path, durability: Durability, steps: int) -> Lap:
    """Run one chain in a new state folder. The runtime is warm: it has run another before."""
    watch = Stopwatch()
    async with perdure.open_runtime(folder, workflows=[Chain], durability=durability, env=watch) as runtime:
        await (await runtime.create(Chain, params=2)).result()
        began_s = time.perf_counter()
        instance = await runtime.create(Chain, params=steps, id="chain")
        total = await instance.result()
        whole_s = time.perf_counter() - began_s
    if total != steps * (steps - 1) // 2:
        raise SystemExit(f"the chain of {steps} returned {total}: it was not run step by step")
    return msgspec.structs.replace(watch.laps[-1], whole_s=whole_s)


async def replay_chain(folder: Path) -> Lap:
    """Open the folder of an `OpenChain` once more and measure its replay."""
    watch = Stopwatch()
    async with perdure.open_runtime(
        folder, workflows=[OpenChain], durability="process", env=watch
    ) as runtime:
        if not await runtime.list(OpenChain):
            raise SystemExit("there is nothing to replay")
        await watch.taken.wait()
    return watch.laps[-1]


async def record_open_chain(folder: Path, steps: int) -> None:
    """Run an `OpenChain` up to its wait and leave it there."""
    watch = Stopwatch()
    async with perdure.open_runtime(
        folder, workflows=[OpenChain], durability="process", env=watch
    ) as runtime:
        await runtime.create(OpenChain, params=steps, id="chain")
        await watch.taken.wait()


# -- the bare loop ---------------------------------------------------------------------------

STARTED: Final = (
    "seq", "kind", "name", "count", "status", "attempt", "counted", "input", "input_digest", "started_at",
    "attempt_at", "config", "detail", "sensitive", "started_commit", "attempt_commit",
)  # fmt: skip
ENDED: Final = ("status", "output", "output_ref", "output_bytes", "ended_at", "ended_commit", "wake_at")


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """What a chain wrote: the table, and for each step its values at the start and at the end."""

    schema: str
    starts: list[tuple[Any, ...]]
    ends: list[tuple[Any, ...]]


def read_script(file: Path) -> Script:
    """Read the rows that a chain has left in its file."""
    connection = sqlite3.connect(file)
    (schema,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = '_perdure_steps'").fetchone()
    starts = connection.execute(f"SELECT {', '.join(STARTED)} FROM _perdure_steps ORDER BY seq").fetchall()
    ends = connection.execute(f"SELECT {', '.join(ENDED)}, seq FROM _perdure_steps ORDER BY seq").fetchall()
    connection.close()
    status = STARTED.index("status")
    return Script(
        schema=schema, starts=[(*row[:status], "running", *row[status + 1 :]) for row in starts], ends=ends
    )


def run_bare(file: Path, durability: Durability, script: Script) -> Lap:
    """Write a script's rows with `sqlite3` alone, one commit for each end with the next start."""
    connection = sqlite3.connect(file, isolation_level=None)
    execute = connection.execute
    execute("PRAGMA journal_mode=WAL")
    execute(f"PRAGMA synchronous={'FULL' if durability == 'full' else 'OFF'}")
    execute("PRAGMA wal_autocheckpoint=0")
    execute(script.schema)
    start = f"INSERT INTO _perdure_steps ({', '.join(STARTED)}) VALUES ({', '.join('?' * len(STARTED))})"
    end = f"UPDATE _perdure_steps SET {', '.join(f'{column} = ?' for column in ENDED)} WHERE seq = ?"
    began_s, cpu_s = time.perf_counter(), time.thread_time()
    execute("BEGIN IMMEDIATE")
    for row, ended in zip(script.starts, script.ends, strict=True):
        execute(start, row)
        execute("COMMIT")
        execute("BEGIN IMMEDIATE")
        execute(end, ended)
    seconds, cpu_s = time.perf_counter() - began_s, time.thread_time() - cpu_s
    execute("COMMIT")
    whole_s = time.perf_counter() - began_s
    connection.close()
    steps = len(script.starts)
    if read_script(file) != script:
        raise SystemExit("the bare loop has left other rows than the chain")
    syncs = steps if durability == "full" else 0
    return Lap(steps=steps, seconds=seconds, cpu_s=cpu_s, commits=steps, syncs=syncs, whole_s=whole_s)


def sync_s(folder: Path) -> float:
    """Return what one append of a page with its sync takes on this disk, in seconds."""
    descriptor = os.open(folder / "appended", os.O_WRONLY | os.O_CREAT)
    sync: Callable[[int], None] = os.fsync if sys.platform == "darwin" else os.fdatasync
    took: list[float] = []
    for _ in range(SYNCS):
        began_s = time.perf_counter()
        os.write(descriptor, b"\0" * 4096)
        sync(descriptor)
        took.append(time.perf_counter() - began_s)
    os.close(descriptor)
    return median(took)


# -- the report ------------------------------------------------------------------------------


def perdure_lap(bench: Bench[Size], durability: Durability, steps: int) -> Lap:
    """Run one chain of Perdure's; short ones several times, or they are over before they are measured."""
    laps = [trio.run(run_chain, bench.new_folder(), durability, steps) for _ in range(repeats(steps))]
    return min(laps, key=lambda lap: abs(lap.seconds - median([each.seconds for each in laps])))


def bare_lap(bench: Bench[Size], durability: Durability, script: Script) -> Lap:
    """Run one bare chain, as often as Perdure's of that length."""
    laps = [
        run_bare(bench.new_folder() / "bare.sqlite", durability, script)
        for _ in range(repeats(len(script.starts)))
    ]
    return min(laps, key=lambda lap: abs(lap.seconds - median([each.seconds for each in laps])))


def replay_lap(folder: Path) -> Lap:
    """Replay the chain in `folder` once."""
    lap: Lap = trio.run(replay_chain, folder)
    return lap


def repeats(steps: int) -> int:
    """Return how often a chain of that length runs in a round."""
    return 5 if steps < 1_000 else 1


def record_script(bench: Bench[Size], steps: int) -> Script:
    """Run one chain and return what it wrote."""
    folder = bench.new_folder()
    trio.run(run_chain, folder, "process", steps)
    return read_script(folder / "Chain" / "chain.sqlite")


def lap_row(name: str, laps: Sequence[Lap], bare: Sequence[Lap]) -> Row:
    """Return the row of one variant."""
    us = [lap.seconds / lap.steps * 1e6 for lap in laps]
    return Row(
        name=name,
        figures={
            "steps/s": 1e6 / median(us),
            "µs per step": median(us),
            "of it CPU": median([lap.cpu_s / lap.steps * 1e6 for lap in laps]),
            "syncs per step": median([lap.syncs / lap.steps for lap in laps]),
            "commits per step": median([lap.commits / lap.steps for lap in laps]),
            "of the bare loop, %": 100 * ratio([lap.seconds for lap in bare], [lap.seconds for lap in laps]),
        },
    )


def whole_row(durability: Durability, laps: Sequence[Lap], bare: Sequence[Lap]) -> Row:
    """Return the row of whole instances."""
    return Row(
        name=durability,
        figures={
            "ms": 1e3 * median([lap.whole_s for lap in laps]),
            "ms outside its steps": 1e3 * median([lap.whole_s - lap.seconds for lap in laps]),
            "steps/s": median([lap.steps / lap.whole_s for lap in laps]),
            "of the bare loop, %": 100 * ratio([lap.whole_s for lap in bare], [lap.whole_s for lap in laps]),
        },
    )


def run(bench: Bench[Size]) -> Report:
    """Measure chains and replay, and put the tables together."""
    size = bench.size
    bench.progress.say("recording what the bare loop has to write")
    scripts = {steps: record_script(bench, steps) for steps in size.lengths}
    replayed = bench.new_folder()
    trio.run(record_open_chain, replayed, size.replayed)
    variants: dict[str, Callable[[], Lap]] = {}
    for durability in DURABILITIES:
        for steps in size.lengths:
            bare, chain = names(durability, steps)
            variants[bare] = functools.partial(bare_lap, bench, durability, scripts[steps])
            variants[chain] = functools.partial(perdure_lap, bench, durability, steps)
    variants["replay"] = functools.partial(replay_lap, replayed)
    laps = bench.in_turn(variants)
    computed = {
        str(steps): [[row[ENDED.index("output")] for row in script.ends]] for steps, script in scripts.items()
    }
    return Report(sections=sections(size, laps, sync_s(bench.new_folder())), computed=computed)


def names(durability: Durability, steps: int) -> tuple[str, str]:
    """Return what the two variants of a chain are called."""
    return f"{durability}, {steps:,} steps: bare loop", f"{durability}, {steps:,} steps: Perdure"


def sections(size: Size, laps: dict[str, list[Lap]], one_sync_s: float) -> list[Section]:
    """Return the tables."""
    found: list[Section] = []
    for durability in DURABILITIES:
        rows: list[Row] = []
        for steps in size.lengths:
            bare, chain = names(durability, steps)
            rows += [lap_row(bare, laps[bare], laps[bare]), lap_row(chain, laps[chain], laps[bare])]
        note = (
            f" (one append and its sync take {one_sync_s * 1e6:.0f} µs on this disk)"
            if durability == "full"
            else ""
        )
        found.append(Section(title=f"Chain of steps, durability={durability!r}{note}", rows=rows))
    whole: list[Row] = []
    for durability in DURABILITIES:
        bare, chain = names(durability, size.steps)
        whole.append(whole_row(durability, laps[chain], laps[bare]))
    found.append(
        Section(title=f"A whole instance of {size.steps:,} steps, from create to result", rows=whole)
    )
    us = median([lap.seconds / lap.steps * 1e6 for lap in laps["replay"]])
    title = f"Replay: run() over {size.replayed:,} recorded steps"
    return [
        *found,
        Section(title=title, rows=[Row(name="replay", figures={"steps/s": 1e6 / us, "µs per step": us})]),
    ]


if __name__ == "__main__":
    main(
        "step",
        __doc__ or "",
        {
            "full": (Size(lengths=(10, 100, 1_000, 10_000), steps=1_000, replayed=10_000), 7),
            "quick": (Size(lengths=(10, 1_000), steps=1_000, replayed=10_000), 3),
            "tiny": (Size(lengths=(3, 20), steps=20, replayed=20), 2),
        },
        run,
    )
