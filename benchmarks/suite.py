"""The list of all benchmarks, and how one of them is run.

`BENCHMARKS` is the whole list; a module is imported when its benchmark is asked for, so that
listing them is quick. A new benchmark is one line here and a module `bench_<name>.py` that has:

    SIZES                 for each of `results.SIZES` a size of the work, and the rounds
    run(bench) -> Found   the work itself

Invariants:
    A benchmark that fails says so in its result; those after it run all the same.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from perdure.benchmarks import harness
from perdure.benchmarks.peers.comparison import Peers
from perdure.benchmarks.results import Found, Result, Results, Size

BENCHMARKS: Final[dict[str, str]] = {
    "chain": "1,000 steps one after the other: steps/s, and syncs of each",
    "flat": "the cost of a step in chains of 10 to 100,000 steps",
    "replay": "steps/s answered from the journal",
    "short": "1,000 instances of 5 steps, from create to result; one process, and workers",
    "create": "creating instances, one by one and in batches",
    "latency": "a workflow of one step, from create to result, one at a time",
    "fanout": "1,000 steps side by side: steps/s, and syncs of all",
    "sleepers": "10,000 instances that sleep 60 s: how late they go on",
    "asleep": "100,000 instances asleep: memory of the whole process",
    "startup": "opening a folder of 1,000,000 finished and 100,000 sleeping instances",
    "recover": "kill -9, start again: until the first new step",
    "large": "results of 1 MB and of 100 MB: MB/s",
    "bytes": "bytes on disk of a finished instance of 5 steps",
    "interference": "steps beside a step that computes, in a thread and in a process",
}


class Options(NamedTuple):
    """How to measure: `rounds` None is each benchmark's own; `folder` is on the disk to be measured."""

    size: Size = "full"
    rounds: int | None = None
    folder: Path | None = None
    workers: int = 2


def run(names: Sequence[str], options: Options, peers: Peers, say: harness.Say) -> Results:
    """Run benchmarks one after the other. Errors of one are told in its result."""
    environment = harness.environment(options.folder)
    results = [run_one(name, options, peers, say) for name in names]
    return Results(size=options.size, environment=environment, results=results)


def run_one(name: str, options: Options, peers: Peers, say: harness.Say) -> Result:
    """Run one benchmark, then what peers are installed here."""
    module = import_module(f"perdure.benchmarks.bench_{name}")
    size, rounds = module.SIZES[options.size]
    rounds = options.rounds or rounds
    began_s = time.perf_counter()
    found, error = None, None

    def told(text: str) -> None:
        say(f"{name}: {text}")

    with tempfile.TemporaryDirectory(prefix="perdure-bench-", dir=options.folder) as folder:
        bench = harness.Bench(size, rounds=rounds, folder=Path(folder), say=told, workers=options.workers)
        told("starting")
        try:
            found = module.run(bench)
            found = peers.beside(name, found, bench.folder, told)
        except Exception as raised:  # noqa: BLE001 - the other benchmarks are to run, whatever this one met
            error = f"{type(raised).__name__}: {raised}"
    return _result(name, rounds, time.perf_counter() - began_s, found, error)


def _result(name: str, rounds: int, seconds: float, found: Found | None, error: str | None) -> Result:
    made = found or Found(measures=[], computed=None)
    return Result(
        benchmark=name,
        about=BENCHMARKS[name],
        rounds=rounds,
        seconds=round(seconds, 3),
        checksum=None if found is None else harness.checksum(made.computed),
        measures=made.measures,
        notes=made.notes,
        error=error,
    )


def read(file: Path) -> Results:
    """Read what `perdure bench --json` has written. Raises `msgspec.DecodeError` and `OSError`."""
    return msgspec.json.decode(file.read_bytes(), type=Results)
