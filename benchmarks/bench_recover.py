"""`recover`: a chain of 200 steps is killed half way, and started again: until its first new step.

`kill -9` takes the whole process. The figure counts from the moment the new process runs its own code, after
the interpreter's start and the imports, which are told beside it. Nobody asks for the instance: it goes on by
itself. Each step has left a line in a file, so that no step may be missing, and none may have run twice but
the one under way. The chain that is killed stands still at three quarters, lest it be done before.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Final

import msgspec

from perdure.benchmarks import children
from perdure.benchmarks.harness import Bench, WorkNotDoneError, compared, median
from perdure.benchmarks.results import Found

SIZES: Final = {"full": (200, 7), "quick": (200, 3), "tiny": (20, 1)}
FIRST_STEP_MS_MAX: Final = 300
LOOK_S: Final = 0.002


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """One kill and what came after it, in milliseconds."""

    first_step: float
    from_spawn: float
    opening: float
    repeated: int


def run(bench: Bench[int]) -> Found:
    """Kill and start again."""
    laps = bench.in_turn({"kill -9": lambda: recover(bench.new_folder(), bench.size)})["kill -9"]
    up = compared(
        [lap.first_step for lap in laps],
        key="recover/up", what="first new step after the process is up", unit="ms", better="less",
        target=FIRST_STEP_MS_MAX,
        figures={
            "ms of it opening the folder": median([lap.opening for lap in laps]),
            "steps run again": median([lap.repeated for lap in laps]),
        },
    )  # fmt: skip
    spawn = compared(
        [lap.from_spawn for lap in laps],
        key="recover/spawn", what="the same from the start of the process", unit="ms", better="less",
    )  # fmt: skip
    return Found(measures=[up, spawn], computed=[bench.size])


def recover(folder: Path, steps: int) -> Recovery:
    """Run a chain, kill it half way, start it again, and read the trace."""
    trace, task = folder / "trace", children.Task(count=steps)
    held = msgspec.structs.replace(task, holds_at=steps * 3 // 4)
    with children.start("traced", folder, held) as process:
        wait_for(trace, steps // 2, process.poll)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = len(read(trace))
    began_s = time.time()
    report = children.run("traced", folder, task)
    lines = read(trace)
    numbers = [number for number, _ in lines]
    repeated = len(numbers) - len(set(numbers))
    if set(numbers) != set(range(steps)) or repeated > 1:
        raise WorkNotDoneError(f"{len(set(numbers))} of {steps} steps ran, {repeated} of them again")
    first_s = lines[before][1]
    return Recovery(
        first_step=1e3 * (first_s - report.up_at_s),
        from_spawn=1e3 * (first_s - began_s),
        opening=1e3 * report.opened_s,
        repeated=repeated,
    )


def wait_for(trace: Path, lines: int, ended: object) -> None:
    """Return once the trace has so many lines. Raises `WorkNotDoneError` where its writer has ended."""
    while not trace.exists() or trace.read_bytes().count(b"\n") < lines:
        if callable(ended) and ended() is not None:
            raise WorkNotDoneError("the chain ended before it could be killed")
        time.sleep(LOOK_S)


def read(trace: Path) -> list[tuple[int, float]]:
    """Return number and time of each step that left its line."""
    return [(int(number), float(at)) for number, at in map(str.split, trace.read_text("ascii").splitlines())]
