"""`perdure doctor`: is this machine fit to run workflows, and is this state folder in order?

Everything is measured or looked up, nothing is assumed. A finding is `ok`, a `note` that is worth
knowing, or a `problem` that needs a person.

Invariants:
    Nothing in the state folder is changed; the one file that is written, to measure the disk, is
    removed again.
    Files of a folder that a process has open are left alone: that process knows better.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import msgspec

from perdure.engine.clock import SystemClock
from perdure.engine.descriptors import PER_INSTANCE, RESERVED
from perdure.engine.folder import StateFolder
from perdure.errors import PerdureError, StateLockedError
from perdure.limits import Limits
from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.disk import Disk
from perdure.storage.locks import FolderLock, network_file_system
from perdure.storage.posts import WorkerRow
from perdure.storage.records import CatalogRow
from perdure.storage.redo import segments
from perdure.storage.survey import catalog_fault, instance_paths, leftovers, look_at, sqlite_facts

if sys.platform != "win32":
    import resource

Level = Literal["ok", "note", "problem"]
FREE_BYTES_MIN: Final = 200_000_000
"""Below this a checkpoint or a large value may soon find no room."""
FREE_BYTES_LOW: Final = 2_000_000_000
SYNCS_PER_S_SLOW: Final = 50
SYNCS_PER_S_UNREAL: Final = 50_000
"""No disk is that quick: the file system is in memory, or answers before the bytes are safe."""
MEASURE_S: Final = 0.3
SYNCS_MAX: Final = 2_000
NAMES_MAX: Final = 5


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at. `value` is for people, `facts` for programs."""

    section: str
    what: str
    level: Level
    value: str
    advice: str = ""
    facts: dict[str, str | int | float | bool | None] = {}


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """All findings, in the order in which they are shown."""

    state: str
    findings: list[Finding]

    @property
    def problems(self) -> list[Finding]:
        """The findings that need a person."""
        return [finding for finding in self.findings if finding.level == "problem"]


def examine(path: str | os.PathLike[str], *, files_max: int = 200) -> Diagnosis:
    """Look at this machine and the state folder `path`; at most `files_max` files are checked whole."""
    folder = StateFolder(path)
    findings = [*_versions(), *_clock(), *_place(folder)]
    if folder.exists():
        findings += _contents(folder, files_max)
    else:
        findings.append(_finding("state", "catalog", "note", "there is no state here yet"))
    return Diagnosis(state=str(folder.root), findings=findings)


def _finding(
    section: str, what: str, level: Level, value: str, advice: str = "", **facts: str | float | bool | None
) -> Finding:
    return Finding(section=section, what=what, level=level, value=value, advice=advice, facts=dict(facts))


# -- the machine ---------------------------------------------------------------------------


def _versions() -> Iterator[Finding]:
    for name in ("perdure", "trio", "msgspec"):
        version = metadata.version(name)
        yield _finding("versions", name, "ok", version, version=version)
    python = ".".join(map(str, sys.version_info[:3]))
    yield _finding("versions", "python", "ok", f"{python} ({sys.implementation.name})", version=python)
    facts = sqlite_facts()
    safe = facts.threads == "serialized"
    yield _finding(
        "versions", "sqlite", "note" if facts.has_wal_reset_bug else "ok",
        f"{facts.version}, {'has' if facts.has_wal_reset_bug else 'without'} the WAL-reset bug",
        "Perdure lets one connection checkpoint, which keeps clear of the bug; do not let other programs"
        " write to these files while they run" if facts.has_wal_reset_bug else "",
        version=facts.version, has_wal_reset_bug=facts.has_wal_reset_bug,
    )  # fmt: skip
    yield _finding(
        "versions", "sqlite threads", "ok" if safe else "problem", facts.threads,
        "" if safe else "Perdure needs an SQLite built as serialized: use another Python", mode=facts.threads,
    )  # fmt: skip


def _clock() -> Iterator[Finding]:
    clock = SystemClock()
    now = datetime.fromtimestamp(clock.wall_ms() / 1000, UTC)
    up_s = clock.boot_ms() // 1000
    yield _finding("machine", "clock", "ok", f"{now:%Y-%m-%d %H:%M:%S} UTC", now=now.isoformat())
    yield _finding(
        "machine", "boot", "ok", f"{clock.boot:016x}, up {up_s // 3600} h {up_s // 60 % 60} min",
        boot=clock.boot, up_s=up_s,
    )  # fmt: skip
    if sys.platform != "win32":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = Limits().warm_max * PER_INSTANCE + RESERVED
        enough = hard == resource.RLIM_INFINITY or hard >= wanted
        yield _finding(
            "machine", "open files", "ok" if enough else "note", f"{soft}, may be raised to {hard}",
            "" if enough else f"{Limits().warm_max} instances in memory want {wanted} (ulimit -n)",
            soft=soft, hard=hard,
        )  # fmt: skip


# -- the place -----------------------------------------------------------------------------


def _place(folder: StateFolder) -> Iterator[Finding]:
    existing = folder.root
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    network = network_file_system(existing)
    yield _finding(
        "disk", "file system", "problem" if network else "ok", network or "local",
        "SQLite's write-ahead log does not work there: use a folder on a local disk" if network else "",
        network=network,
    )  # fmt: skip
    free = shutil.disk_usage(existing).free
    level: Level = "problem" if free < FREE_BYTES_MIN else "note" if free < FREE_BYTES_LOW else "ok"
    yield _finding(
        "disk", "free", level, f"{free / 1e9:.1f} GB",
        "instances stop, without loss, when the disk is full: make some room" if level != "ok" else "",
        free_bytes=free,
    )  # fmt: skip
    if not os.access(existing, os.W_OK | os.X_OK):
        yield _finding(
            "disk", "writable", "problem", "no", f"this user cannot write to {existing}", writable=False
        )
        return
    yield _syncs(existing)


def _syncs(place: Path) -> Finding:
    """Measure how often a second this disk makes 4 KB durable: what bounds `durability='full'`."""
    disk = Disk()
    with tempfile.TemporaryDirectory(prefix=".perdure-doctor-", dir=place) as folder:
        descriptor = os.open(Path(folder, "page"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            count, started = 0, time.perf_counter()
            while count < SYNCS_MAX and time.perf_counter() - started < MEASURE_S:
                os.pwrite(descriptor, count.to_bytes(4) * 1024, 0)
                disk.sync_descriptor(descriptor)
                count += 1
            per_s = count / (time.perf_counter() - started)
        finally:
            os.close(descriptor)
    level: Level = "ok"
    advice = ""
    if per_s < SYNCS_PER_S_SLOW:
        level, advice = "note", "slow: durability='full' waits for one sync before each step starts"
    elif per_s > SYNCS_PER_S_UNREAL:
        level, advice = "note", "no disk is that quick: this one is in memory, or does not wait for the bytes"
    return _finding("disk", "syncs", level, f"{per_s:,.0f} a second", advice, syncs_per_s=round(per_s))


# -- the state folder ----------------------------------------------------------------------


def _contents(folder: StateFolder, files_max: int) -> Iterator[Finding]:
    try:
        with FolderLock.acquire(folder.lock):
            yield _finding("state", "owner", "ok", "no process has the folder", pid=None)
            yield from _at_rest(folder, files_max)
    except StateLockedError as error:
        who = str(error.pid) if error.pid else "unknown"
        yield _finding("state", "owner", "ok", f"process {who} has the folder", pid=error.pid)
        yield _finding("state", "files", "note", "not checked while that process runs", checked=0)
        yield from _rows(folder, owned=True)
    except PerdureError as error:
        yield _finding("state", "owner", "problem", "the lock cannot be taken", str(error))


def _at_rest(folder: StateFolder, files_max: int) -> Iterator[Finding]:
    fault = catalog_fault(folder.catalog)
    if fault is not None:
        yield _finding(
            "state",
            "catalog",
            "problem",
            f"damaged: {fault}",
            "perdure repair rebuilds it from the files",
            sound=False,
        )
    else:
        yield from _rows(folder, owned=False)
    logs = segments(folder.relay)
    if logs:
        yield _finding(
            "state", "relay log", "note", f"{len(logs)} segments left by a process that died",
            "the next start brings the files up to it; until then they may look older than they are",
            segments=len(logs),
        )  # fmt: skip
    yield from _files(folder, files_max)


def _rows(folder: StateFolder, *, owned: bool) -> Iterator[Finding]:
    try:
        with contextlib.closing(
            Catalog(open_catalog(folder.catalog, checkpointer=False, create=False))
        ) as catalog:
            counts = catalog.counts()
            dead = catalog.select(status="dead")
            opened = catalog.opened()
            last = catalog.workers.last()
    except PerdureError as error:
        yield _finding("state", "catalog", "problem", "cannot be read", str(error), sound=False)
        return
    yield _finding("state", "catalog", "ok", "sound" if not owned else "can be read", sound=True)
    yield _statuses(counts)
    if opened and not owned:
        yield _finding(
            "state", "marked open", "note", f"{len(opened)}: {_first(opened)}",
            "their process died; the next start takes them up by itself", count=len(opened),
        )  # fmt: skip
    if dead:
        yield _finding(
            "state", "dead", "problem", f"{len(dead)}: {_first(dead)}",
            "perdure describe says why; perdure resume tries it again", count=len(dead),
        )  # fmt: skip
    if last is not None and not owned:
        yield _last_process(last)


def _statuses(counts: list[tuple[str, str, int]]) -> Finding:
    by_status: dict[str, int] = {}
    for _, status, count in counts:
        by_status[status] = by_status.get(status, 0) + count
    text = ", ".join(f"{count} {status}" for status, count in by_status.items()) or "none"
    facts: dict[str, str | int | float | bool | None] = {**by_status}
    return Finding(section="state", what="instances", level="ok", value=text, facts=facts)


def _last_process(last: WorkerRow) -> Finding:
    ended = "ended in order" if last.stopped_at_ms is not None else "died"
    where = "" if last.boot == SystemClock().boot else ", before the machine's last start"
    return _finding(
        "state", "last process", "ok", f"{last.pid} {ended}{where}", pid=last.pid, died=ended == "died"
    )


def _files(folder: StateFolder, files_max: int) -> Iterator[Finding]:
    paths = instance_paths(folder.root)
    checked = sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)[:files_max]
    looks = [look_at(path) for path in checked]
    damaged = [look for look in looks if look.kind in ("damaged", "newer")]
    rest = "" if len(checked) == len(paths) else ", the latest; --files N checks more"
    yield _finding(
        "state",
        "files",
        "ok",
        f"{len(checked)} of {len(paths)} checked{rest}",
        checked=len(checked),
        files=len(paths),
    )
    for look in damaged[:NAMES_MAX]:
        advice = (
            "upgrade perdure" if look.kind == "newer"
            else "restore it from a copy, or salvage it with: sqlite3 FILE .recover"
        )  # fmt: skip
        name = str(look.path.relative_to(folder.root))
        yield _finding("state", look.kind, "problem", f"{name}: {look.why}", advice, file=name)
    if len(damaged) > NAMES_MAX:
        yield _finding(
            "state",
            "damaged",
            "problem",
            f"and {len(damaged) - NAMES_MAX} more files",
            "perdure repair lists all",
        )
    left = leftovers(folder.root)
    if left:
        yield _finding(
            "state", "side files", "note", f"{len(left)} left by a crash or a reader",
            "harmless, and read with their files; perdure repair folds them in",
            count=len(left),
        )  # fmt: skip


def _first(rows: list[CatalogRow]) -> str:
    more = ", …" if len(rows) > NAMES_MAX else ""
    return ", ".join(str(row.key) for row in rows[:NAMES_MAX]) + more
