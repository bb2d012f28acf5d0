"""Crashes chosen from a recording, each materialised and checked.

As a program, `python -m powerloss.campaign SCRIPT... [--count N] [--seed N] [--break NAME]`, it
prints what it finds, with what repeats it.

Invariants:
    The same recording, seed and count give the same crashes.
    After every acknowledgement, losing all that was not synced comes before any other choice.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from powerloss.checker import check
from powerloss.crash import CrashDisk, materialise
from powerloss.losses import LOSSES, All
from powerloss.recorder import record, record_recovery
from powerloss.scripts import SCRIPTS, Script
from powerloss.volume import Operation, Said, Sync
from powerloss.work import Fact

HARSH_SHARE: Final = 0.4
"""So many of the crashes come right after an acknowledgement and lose all that was not synced."""


class Crash(msgspec.Struct, frozen=True, kw_only=True):
    """One crash: after so many operations, with which loss, drawn from which seed."""

    position: int
    loss: str
    seed: int


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What was wrong after one crash."""

    crash: Crash
    flaws: list[str]


def crashes(operations: Sequence[Operation], *, count: int, seed: int, begin: int = 0) -> list[Crash]:
    """Choose `count` crashes, none before `begin` operations, in the order of their instants."""
    chance = random.Random(seed)
    done = list(enumerate(operations))[begin:]
    said = [at + 1 for at, operation in done if isinstance(operation, Said)]
    synced = [at for at, operation in done if isinstance(operation, Sync)]
    instants = [*said, *synced, *(at + 1 for at in synced)]
    losses = [name for name in LOSSES if name != All.__name__]
    harsh = chance.sample(said, min(len(said), round(count * HARSH_SHARE)))
    chosen = [Crash(position=at, loss=All.__name__, seed=0) for at in harsh]
    while len(chosen) < count:
        at = chance.choice(instants) if chance.random() < 0.6 else chance.randint(begin, len(operations))
        chosen.append(Crash(position=at, loss=chance.choice(losses), seed=chance.randrange(10**9)))
    return sorted(chosen, key=lambda crash: crash.position)


def findings(
    script: Script,
    operations: Sequence[Operation],
    chosen: Sequence[Crash],
    folder: Path,
    known: Sequence[Fact] = (),
) -> Iterator[Finding]:
    """Check each of the crashes, which go forward in time, and yield what is wrong.

    `known` is what had been told before the recording began.
    """
    disk = CrashDisk(operations)
    facts = list(known)
    for crash in chosen:
        before = disk.position
        disk.advance(crash.position)
        facts += [done.fact for done in operations[before : crash.position] if isinstance(done, Said)]
        loss = LOSSES[crash.loss](random.Random(crash.seed), crash.position)
        root = folder / "found"
        materialise(disk.fail(loss), root)
        flaws = check(root / "state", script, facts)
        if flaws:
            yield Finding(crash=crash, flaws=flaws)
        shutil.rmtree(root)


def second_findings(
    script: Script, operations: Sequence[Operation], first: Crash, folder: Path, *, strace: str, count: int
) -> Iterator[Finding]:
    """Crash once, record how the shipped code recovers, and check crashes in the middle of that."""
    disk = CrashDisk(operations)
    disk.advance(first.position)
    materialise(disk.fail(LOSSES[first.loss](random.Random(first.seed), first.position)), folder / "volume")
    known = [done.fact for done in operations[: first.position] if isinstance(done, Said)]
    recovery = record_recovery(script.name, folder, strace=strace)
    begin = 1 + next(at for at, operation in enumerate(recovery) if isinstance(operation, Sync))
    chosen = crashes(recovery, count=count, seed=first.seed, begin=begin)
    yield from findings(script, recovery, chosen, folder, known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scripts", nargs="*", default=list(SCRIPTS))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument(
        "--twice", type=int, default=0, help="so many crashes are followed by 20 in the recovery"
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--break", dest="broken", default="")
    options: Any = parser.parse_args()
    failed = False
    for name in options.scripts:
        with tempfile.TemporaryDirectory(dir=quick_folder(), prefix="powerloss-") as place:
            for line in campaign(name, Path(place), options):
                failed = failed or line.startswith(" ")
                print(line, flush=True)  # noqa: T201 - the program's output
    sys.exit(failed)


def campaign(name: str, folder: Path, options: Any) -> Iterator[str]:
    """Run the campaign of one script and yield what is to be printed; findings are indented."""
    script, strace = SCRIPTS[name], shutil.which("strace") or "strace"
    operations = record(name, folder, strace=strace, seed=options.seed, broken=options.broken)
    chosen = crashes(operations, count=options.count, seed=options.seed)
    yield f"{name}: {len(operations)} operations, {len(chosen)} crashes, --seed {options.seed}"
    for finding in findings(script, operations, chosen, folder):
        yield text(finding)
    for number, first in enumerate(random.Random(options.seed).sample(chosen, options.twice)):
        place = folder / f"again-{number}"
        for finding in second_findings(script, operations, first, place, strace=strace, count=20):
            yield f" after {first}, in the recovery:\n{text(finding)}"


def text(finding: Finding) -> str:
    """Return a finding as lines."""
    return "\n".join([f"  {finding.crash}", *(f"    {flaw}" for flaw in finding.flaws)])


def quick_folder() -> str | None:
    """Return a folder in memory where there is one: the disk is a model, real syncs prove nothing here."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - what is made there has its own name


if __name__ == "__main__":
    main()
