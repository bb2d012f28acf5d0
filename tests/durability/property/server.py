"""A program that lets instances live in processes which are killed: `server.py`.

It reads requests as JSON, one in a line, and forks a process for each life, so that a life costs no
start of Python. It answers each request with one line: how the instance ended.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import msgspec
import trio

from perdure.engine.clock import SystemClock
from property.lives import LIFE_S_MAX, Case, Durability, Ended, Replay, live
from property.tree import Program
from property.workflow import World

LOOK_S = 0.002


class Kill(msgspec.Struct, frozen=True):
    """When a life ends: after so many points, or after so many milliseconds."""

    points: int | None = None
    ms: int | None = None


class Request(msgspec.Struct, frozen=True):
    """A program, and the kills it has to survive."""

    folder: str
    program: Program
    sends: list[tuple[str, int]]
    replay: Replay
    durability: Durability
    kills: list[Kill]


class Answer(msgspec.Struct, frozen=True):
    """How it ended, and how many lives were taken."""

    ended: Ended
    kills: int


class KillingClock(SystemClock):
    """The machine's clock, which kills its process when it has been asked often enough."""

    def __init__(self, points: int | None) -> None:
        super().__init__()
        self._passed = itertools.count(1)
        self._points = points

    def point(self) -> None:
        """Pass a point."""
        if next(self._passed) == self._points:
            os.kill(os.getpid(), signal.SIGKILL)

    def wall_ms(self) -> int:
        """Now; a point."""
        self.point()
        return super().wall_ms()


def be_born(case: Case, points: int | None, outcome: Path) -> None:
    """Live, in a forked process, and leave the outcome in a file."""
    status = 1
    try:
        faulthandler.enable()
        clock = KillingClock(points)
        ended = trio.run(partial(live, case, World(case.witness, clock.point), clock))
        outcome.write_bytes(msgspec.json.encode(ended))
        status = 0
    except BaseException as error:  # noqa: BLE001 - it is told, and the process ends
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stderr.flush()
        os._exit(status)


def let_live(case: Case, kill: Kill, outcome: Path) -> bool:
    """Let a process live; whether it came to its end."""
    born = os.fork()
    if not born:
        be_born(case, kill.points, outcome)
    deadline = time.monotonic() + (LIFE_S_MAX if kill.ms is None else kill.ms / 1000)
    while True:
        gone, status = os.waitpid(born, os.WNOHANG)
        if gone:
            break
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(born, signal.SIGABRT if kill.ms is None else signal.SIGKILL)
            _, status = os.waitpid(born, 0)
            break
        time.sleep(LOOK_S)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"a life ended with status {code}")
    return code == 0


def serve(request: Request) -> Answer:
    """Let an instance live until it has ended."""
    folder = Path(request.folder)
    outcome = folder / "outcome"
    case = Case(
        folder=folder, program=request.program, sends=request.sends, replay=request.replay,
        durability=request.durability,
    )  # fmt: skip
    for kills, kill in enumerate([*request.kills, Kill()]):
        if let_live(case, kill, outcome):
            return Answer(ended=msgspec.json.decode(outcome.read_bytes(), type=Ended), kills=kills)
    raise SystemExit("the last life was killed by somebody else")


if __name__ == "__main__":
    for line in sys.stdin:
        answer = serve(msgspec.json.decode(line, type=Request))
        print(msgspec.json.encode(answer).decode(), flush=True)  # noqa: T201 - the test reads it
