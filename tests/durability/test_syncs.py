"""Law 2 as the operating system sees it: the sync comes before the acknowledgement.

A program runs under strace, and its trace is read: before it says something that rests on a file,
all that was written to the relay log, or to the catalog's WAL, was synced. The same check must fail
for the same program on a disk that only says it has synced.
"""

from __future__ import annotations

import collections
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

CALL = re.compile(r"^\d+ +(?P<name>\w+)\((?P<fd>\d+)<(?P<path>[^>]*)>(?P<rest>.*)")
SAID = re.compile(r'^\d+ +write\(1<[^>]*>, "(?P<what>\w+)\\n"')
RESUMED = re.compile(r"^(?P<thread>\d+) +<\.\.\. (?P<name>\w+) resumed>")
UNFINISHED = re.compile(r"^(?P<thread>\d+) .*<unfinished \.\.\.>$")
LOG = "relay"
RESTS_ON = {
    "created": "catalog.sqlite-wal",
    "step": LOG,
    "sent": LOG,
    "result": LOG,
}
"""What the program says, and the file that it rests on."""
SAID_IN_ALL = ("creating", "sending", *RESTS_ON)

Launch = Callable[..., "subprocess.Popen[str]"]


def trace(tmp_path: Path, strace: str, launch: Launch, *options: str) -> list[str]:
    """Run the program under strace and return the trace, each call where it returned."""
    path = tmp_path / f"trace{''.join(options)}"
    watched = ("-e", "trace=fdatasync,fsync,write,pwrite64", "-e", "signal=none", "-s", "64")
    tracer = (strace, "-f", "-y", "-qq", *watched, "-o", str(path))
    process = launch("steps", tmp_path / f"state{''.join(options)}", *options, under=tracer)
    output, errors = process.communicate()
    assert set(SAID_IN_ALL) == set(output.split()), errors
    return path.read_text("utf-8").splitlines()


class Disk:
    """What a trace says of the disk: how often each file was written to, and up to which write it is synced.

    A write counts from its beginning, a sync once it has returned, for the writes before its beginning.
    """

    def __init__(self) -> None:
        self.written: collections.Counter[str] = collections.Counter()
        self.synced: collections.Counter[str] = collections.Counter()
        self._under_way: dict[str, tuple[str, int]] = {}

    def read(self, line: str) -> None:
        call, unfinished, resumed = CALL.match(line), UNFINISHED.match(line), RESUMED.match(line)
        if resumed and resumed["thread"] in self._under_way:
            self._sync(*self._under_way.pop(resumed["thread"]))
        if call is None:
            return
        path = Path(call["path"])
        name = LOG if path.suffix == ".log" else path.name
        if not call["name"].endswith("sync"):
            self.written[name] += 1
        elif unfinished:
            self._under_way[unfinished["thread"]] = (name, self.written[name])
        else:
            self._sync(name, self.written[name])

    def _sync(self, name: str, upto: int) -> None:
        self.synced[name] = max(self.synced[name], upto)

    def has(self, name: str, since: int) -> bool:
        """Whether something was written to a file after its first `since` writes, and is synced."""
        return self.synced[name] > since  # what was written for others since then may wait


def unsafe(lines: list[str]) -> set[str]:
    """Return what was said before what it rests on was written and synced."""
    disk = Disk()
    before: collections.Counter[str] = collections.Counter()
    too_early: set[str] = set()
    for line in lines:
        disk.read(line)
        said = SAID.match(line)
        if said:
            name = RESTS_ON.get(said["what"], "")
            if name and not disk.has(name, before[name]):
                too_early.add(said["what"])
            before = disk.written.copy()
    return too_early


def test_each_acknowledgement_comes_after_the_sync_it_rests_on(
    tmp_path: Path, strace: str, launch: Launch
) -> None:
    lines = trace(tmp_path, strace, launch)

    assert any("/relay/" in line and "fdatasync" in line for line in lines)
    assert not any("one.sqlite" in line and "sync(" in line for line in lines), "the log is there for that"
    assert any("catalog.sqlite-wal" in line and "fdatasync" in line for line in lines)
    assert set() == unsafe(lines)


def test_the_check_fails_on_a_disk_that_only_says_it_has_synced(
    tmp_path: Path, strace: str, launch: Launch
) -> None:
    lines = trace(tmp_path, strace, launch, "faked-sync")

    assert {"step", "sent", "result"} == unsafe(
        lines
    )  # SQLite itself syncs the catalog, on which "created" rests


def test_the_check_fails_where_the_catalog_is_not_synced(tmp_path: Path, strace: str, launch: Launch) -> None:
    lines = trace(tmp_path, strace, launch)

    assert {"created"} == unsafe([line for line in lines if not re.search(r"sync\([^>]*/catalog\.", line)])


def test_with_durability_process_no_instance_file_is_synced(
    tmp_path: Path, strace: str, launch: Launch
) -> None:
    lines = trace(tmp_path, strace, launch, "process")

    assert [] == [line for line in lines if re.search(r"sync\(.*one\.sqlite", line)]
