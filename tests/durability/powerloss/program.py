"""One life of a recorded program: `python -m powerloss.program SCRIPT LIFE STATE ACKS [options]`.

It carries out a life of a script over the state folder STATE and appends each fact to ACKS, as a
line of JSON in one write. With `--kill N` it kills itself right after the Nth commit of an instance's
file; with `--break NAME` its disk is one that breaks a promise.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec
import trio

import perdure
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile
from perdure.testing import VirtualClock, open_test_runtime
from powerloss.bounds import SMALL, shrink_log
from powerloss.scripts import SCRIPTS, Life, Script, Stage, Visitor, take_up
from powerloss.work import ACKS, Fact, Job, Witness, open_witness, tell_into

LATE_S = 0.02


class DiskWithoutFileSync(Disk):
    """A disk that only says it has synced a file."""

    def sync_descriptor(self, descriptor: int) -> None:
        pass


class DiskWithoutDirectorySync(Disk):
    """A disk that only says it has synced a folder."""

    def sync_directory(self, path: Path) -> None:
        pass


class DiskWithoutFileSystemSync(Disk):
    """A disk that only says it has synced the file system as a whole."""

    def sync_file_system(self, path: Path) -> None:
        pass


class LateDisk(Disk):
    """A disk that says it has synced, and does so a little later: the gate opens before the sync."""

    def sync_descriptor(self, descriptor: int) -> None:
        threading.Thread(target=self._late, args=(os.dup(descriptor),)).start()

    def _late(self, descriptor: int) -> None:
        time.sleep(LATE_S)
        super().sync_descriptor(descriptor)
        os.close(descriptor)


DISKS = {
    "file-sync": DiskWithoutFileSync,
    "directory-sync": DiskWithoutDirectorySync,
    "file-system-sync": DiskWithoutFileSystemSync,
    "late": LateDisk,
}


class Teller:
    """Appends facts to a file and lets drivers wait for one."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._told: list[Fact] = []
        self._changed = trio.Event()

    def tell(self, fact: Fact) -> None:
        """Tell one fact to the world."""
        tell_into(self._file, fact)
        self._told.append(fact)
        self._changed.set()

    async def began(self, id_: str, n: int) -> None:
        """Return when step `n` of an instance has begun, from now on or before."""
        sought = {"what": "began", "id": id_, "n": n}
        while not any(sought.items() <= fact.items() for fact in self._told):
            self._changed = trio.Event()
            await self._changed.wait()


def kill_after(commits: int) -> None:
    """Have the process die between a commit and whatever was to make it durable."""
    commit = InstanceFile.commit
    left = [commits]

    def commit_and_die(file: InstanceFile) -> None:
        commit(file)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(InstanceFile, "commit", commit_and_die)  # noqa: B010 - the seam at which the process dies


def later_clock(life: int, boot: int) -> VirtualClock:
    """Return a clock on which each life of a process comes a day after the one before."""
    clock = VirtualClock(start=datetime(2030, 1, 1, tzinfo=UTC) + timedelta(days=life), boot=boot)
    clock.advance(life * 86_400)
    return clock


async def live(script: Script, life: Life, number: int, options: argparse.Namespace) -> None:
    teller = Teller(options.acks)
    if life.workers > 1:
        os.environ[ACKS] = options.acks
        app = perdure.App([Job], env=open_witness, limits=life.limits)
        async with perdure.open_runtime(options.state, app, workers=life.workers) as runtime:
            teller.tell({"what": "open", "durability": life.durability})
            await life.drive(Stage(runtime, script, teller.tell, teller.began))
        return
    visitor = Visitor()
    witness = Witness(teller.tell, visitor.visit if life.visited else None)
    async with open_test_runtime(
        options.state, workflows=[Job], env=witness, replay="warm", durability=life.durability,
        clock=later_clock(number, options.boot), limits=life.limits, disk=DISKS.get(options.broken, Disk)(),
    ) as runtime:  # fmt: skip
        teller.tell({"what": "open", "durability": life.durability})
        visitor.stage = Stage(runtime, script, teller.tell, teller.began)
        await life.drive(visitor.stage)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("script")
    parser.add_argument("life", type=int)
    parser.add_argument("state")
    parser.add_argument("acks")
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--boot", type=int, default=1)
    parser.add_argument("--recover", action="store_true", help="carry out whatever is left of the orders")
    parser.add_argument("--break", dest="broken", default="")
    options = parser.parse_args()
    script, number = SCRIPTS[str(options.script)], int(options.life)
    life = script.lives[number]
    if options.recover:
        life = msgspec.structs.replace(life, drive=take_up)
    if life.small_log:
        os.environ[SMALL] = "yes"
        shrink_log()
    if options.kill:
        kill_after(options.kill)
    trio.run(partial(live, script, life, number, options))


if __name__ == "__main__":
    main()
