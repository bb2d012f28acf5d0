"""A program that kills itself at the n-th point of a job: `strike.py STATE JOB POINT`.

A point lies before and after every statement that SQLite is given, between the pieces of a large
value, and before and after whatever the disk is asked for. POINT 0 strikes nowhere; the program
then does the job to its end and prints, as its last line, what it found and how many points there
were. Jobs: `create`, `event`, `large`, `checkpoint`. With `--soon` a failed write is tried again soon.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import trio

import perdure
from perdure.engine.opening import open_runtime
from perdure.storage.disk import Disk

STATE, JOB, POINT = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
RESET_S = 0.05 if "--soon" in sys.argv else 5.0
STEPS = 40
LARGE_CHARS = 3_000_000


class Points:
    """Counts the points passed since `armed`, in whatever thread, and strikes at the one asked for."""

    armed = False
    passed = 0
    lock = threading.Lock()

    def __call__(self) -> None:
        if not self.armed:
            return
        with self.lock:
            self.passed += 1
            if self.passed == POINT:
                os.kill(os.getpid(), signal.SIGKILL)


here = Points()


class StrikingConnection(sqlite3.Connection):
    """SQLite with a point before and after each statement, and between the rows of `executemany`."""

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        here()
        cursor = super().execute(sql, parameters)
        here()
        return cursor

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        cursor = self.cursor()
        for row in parameters:
            cursor = self.execute(sql, row)
        return cursor

    def close(self) -> None:
        here()
        super().close()
        here()


class StrikingDisk(Disk):
    """A disk with a point before and after each thing it is asked for, and within a write."""

    @property
    def syncs_file_systems(self) -> bool:
        return "--by-file" not in sys.argv and super().syncs_file_systems

    def sync_descriptor(self, descriptor: int) -> None:
        self._around(lambda: super(StrikingDisk, self).sync_descriptor(descriptor))

    def sync_directory(self, path: Path) -> None:
        self._around(lambda: super(StrikingDisk, self).sync_directory(path))

    def sync_file_system(self, path: Path) -> None:
        self._around(lambda: super(StrikingDisk, self).sync_file_system(path))

    def make_folder(self, path: Path, *, durable: bool) -> None:
        self._around(lambda: super(StrikingDisk, self).make_folder(path, durable=durable))

    def write_new(self, path: Path, data: bytes, *, durable: bool) -> None:
        if POINT and here.armed and here.passed + 1 == POINT:
            path.with_name(path.name + ".part").write_bytes(data[: len(data) // 2])
        self._around(lambda: super(StrikingDisk, self).write_new(path, data, durable=durable))

    def _around(self, ask: Callable[[], None]) -> None:
        here()
        ask()
        here()


connect = sqlite3.connect


def striking_connect(database: Any, *args: Any, **options: Any) -> sqlite3.Connection:
    connection: sqlite3.Connection = connect(database, *args, **{"factory": StrikingConnection, **options})
    return connection


async def square(n: int) -> int:
    if JOB == "create":  # its first step has begun: the creation is over
        here.armed = False
    return n * n


async def large_text() -> str:
    return "0123456789" * (LARGE_CHARS // 10)


class Job(perdure.WorkflowEntrypoint[None]):
    async def run(self, event: perdure.WorkflowEvent[str], step: perdure.WorkflowStep) -> Any:
        match event.payload:
            case "event":
                return (await step.wait_for_event("go", type="go", timeout=None, returns=str)).payload
            case "large":
                text = await step.do("large", large_text, retries=100)
                return hashlib.sha256(text.encode()).hexdigest()
            case _:
                return sum([await step.do(f"square {n}", square, n, retries=100) for n in range(STEPS)])


async def main() -> None:
    here.armed = JOB == "create"
    limits = perdure.Limits(
        wal_pages_max=4 if JOB == "checkpoint" else 1_000,
        unwritten_s=0 if JOB == "checkpoint" else 0.1,
        reset_delay_s=RESET_S,
    )
    async with open_runtime(STATE, workflows=[Job], limits=limits, disk=StrikingDisk()) as runtime:
        here.armed = JOB in ("create", "large", "checkpoint")
        instance = await runtime.create(Job, params=JOB, id="one", if_exists="attach")
        say("created")
        if JOB == "event":
            await until_it_waits(instance)
            here.armed = True
            await send(instance)
        result = await instance.result()
        here.armed = False
        say(json.dumps({"result": result, "points": here.passed}))


async def until_it_waits(instance: perdure.Instance[Any]) -> None:
    async with aclosing(instance.subscribe()) as entries:
        async for entry in entries:
            if entry.step == "go":
                return


async def send(instance: perdure.Instance[Any]) -> None:
    try:
        await instance.send_event("go", "now", token="the one event")  # noqa: S106 - names an event, opens nothing
    except perdure.InstanceFinishedError:
        return
    say("sent")


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the test reads it


if __name__ == "__main__":
    sqlite3.connect = striking_connect  # type: ignore[assignment]  # one of its many forms is used
    trio.run(main)
