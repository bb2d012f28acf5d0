"""What the tests of storage share: one instance's file, just born, with a gate that nobody runs.

Without the gate's task nothing is committed by itself: a test says when, with `file.commit()`.
A yard has files whose commits go into a relay log, and knows what a dead machine leaves of them.
"""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio.lowlevel

from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile, create_file, open_file
from perdure.storage.gate import Gate
from perdure.storage.lifecycle import Lifecycle, bear
from perdure.storage.records import Birth
from perdure.storage.redo import Decision, log_of, redo, segments
from perdure.storage.relay import RelayLog
from perdure.storage.relay_format import Entry, decode_batches
from perdure.storage.schema import PAGE_BYTES
from perdure.storage.syncing import Failures
from perdure.storage.threads import Threads

BIRTH = Birth(workflow="Letters", id="one", incarnation=7, created_at_ms=1_000)


@pytest.fixture
def gate() -> Gate:
    return Gate(durability="process", threads_max=1)


@pytest.fixture
def born(tmp_path: Path, gate: Gate) -> Iterator[InstanceFile]:
    """Return the file of an instance that was born in a commit of its own."""
    path = tmp_path / "one.sqlite"
    create_file(path, disk=Disk(), durable=False)
    file = open_file(path, disk=Disk(), durability="process")
    bear(file, gate, BIRTH, '"params"', epoch=1)
    file.commit()
    yield file
    file.close()


@pytest.fixture
def reopened() -> Iterator[Callable[[InstanceFile], InstanceFile]]:
    """Return a function that closes a file and opens it again, as its next owner finds it."""
    opened: list[InstanceFile] = []

    def reopen(file: InstanceFile) -> InstanceFile:
        if file.in_transaction:
            file.commit()
        file.close()
        again = open_file(file.path, disk=Disk(), durability="process")
        again.epoch = file.epoch
        opened.append(again)
        return again

    yield reopen
    for file in opened:
        file.close()


# -- the relay log -----------------------------------------------------------------------------

OnDisk: TypeAlias = dict[str, tuple[bytes, int]]
"""Files by name, each with its bytes and the time of its last change."""


class Diary(Disk):
    """Writes down what was synced, and fails when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.fails = False
        self.file_systems_fail = 0

    def sync_descriptor(self, descriptor: int) -> None:
        self.lines.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        if self.fails:
            raise OSError(5, "Input/output error")
        super().sync_descriptor(descriptor)

    def sync_file_system(self, path: Path) -> None:
        self.lines.append("all")
        if self.file_systems_fail:
            self.file_systems_fail -= 1
            raise OSError(5, "Input/output error")
        super().sync_file_system(path)


class Yard:
    """A folder of instance files under a relay log, which the test runs by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "relay"
        self.threads = Threads("perdure test", 1)
        self.files: list[InstanceFile] = []
        self._later: list[Yard] = []
        self._gate = Gate(durability="full", threads_max=1)

    def log(self, disk: Disk | None = None, *, worker: int = 1, boot: int = 1, **options: Any) -> RelayLog:
        options = {"segment_bytes": 1024 * 1024, "idle_s": math.inf, **options}
        return RelayLog(
            self.folder, root=self.root, disk=disk or Disk(), worker=worker, boot=boot, **options
        )  # fmt: skip

    def path(self, name: str) -> Path:
        return self.root / f"{name}.sqlite"

    def create(self, log: RelayLog, name: str, *, disk: Disk | None = None) -> InstanceFile:
        """Make an instance's file, with its birth and a table of notes committed."""
        create_file(self.path(name), disk=Disk(), durable=False)
        file = open_file(self.path(name), disk=disk or Disk(), durability="full", is_new=True)
        log.adopt(file, name, 7, newborn=True, unsettled=False)
        bear(file, self._gate, BIRTH, None, epoch=1)
        file.execute("CREATE TABLE notes(note, filling)")
        file.commit()
        self.files.append(file)
        return file

    def take(self, log: RelayLog, name: str, *, epoch: int, unsettled: bool = False) -> InstanceFile:
        """Open a file as the owner of a later epoch, and commit that."""
        file = open_file(self.path(name), disk=Disk(), durability="full")
        log.adopt(file, name, 7, newborn=False, unsettled=unsettled)
        Lifecycle(file, self._gate).own(epoch)
        file.commit()
        self.files.append(file)
        return file

    def note(self, file: InstanceFile, note: object, *, size: int = 0) -> None:
        """Commit a note, with so many bytes beside it."""
        file.begin()
        file.execute("INSERT INTO notes VALUES(?, randomblob(?))", (note, size))
        file.commit()

    async def sync(self, log: RelayLog, *files: InstanceFile) -> Failures:
        return await log.sync(files, self.threads)

    def close(self, log: RelayLog, file: InstanceFile) -> None:
        """Close a file as its life does."""
        assert log.may_write(file)
        log.write_begins(file)
        file.close()
        log.write_ended(file, closed=True)

    def checkpoint(self, log: RelayLog, file: InstanceFile) -> None:
        """Move what is in a file's WAL into the file as the gate does."""
        assert log.may_write(file)
        file.prepare_checkpoint()
        log.write_begins(file)
        file.checkpoint()
        log.write_ended(file, closed=False)

    def batches(self) -> list[list[Entry]]:
        """Return what stands in the log's segments, in the order in which it was written."""
        found = sorted(segments(self.folder), key=lambda each: (log_of(each[0]), each[1].number))
        return [batch for path, each in found for batch in decode_batches(path.read_bytes(), each)]

    # -- the machine -----------------------------------------------------------------------

    def on_disk(self, *names: str) -> OnDisk:
        """Return the files as they are now, all or those of some instances, but for the log."""
        return {
            path.relative_to(self.root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in self.root.rglob("*.sqlite*")
            if not names or path.name.partition(".")[0] in names
        }

    def machine_dies(self, had: OnDisk) -> Yard:
        """Return a folder as it is after the machine's death: the log, and what the disk had of the files."""
        root = self.root.with_name(f"{self.root.name}-after")
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        if self.folder.exists():
            shutil.copytree(self.folder, root / "relay")
        for name, (data, time_ns) in had.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(data)
            os.utime(root / name, ns=(time_ns, time_ns))
        self._later.append(Yard(root))
        return self._later[-1]

    def redo(self, disk: Disk | None = None, *, safe_epoch: int = 0, incarnation: int = 7) -> Decision:
        """Redo as the first process after the death does, with a catalog that has all the instances."""

        def locate(name: str, of: int) -> tuple[Path, int] | None:
            return (self.path(name), safe_epoch) if of == incarnation else None

        return redo(self.folder, self.root, disk or Disk(), boot=2, locate=locate)

    def machine_dies_and_redoes(self, name: str, *, had: OnDisk | None = None) -> list[object]:
        """Return an instance's notes after the death of a machine whose disk had these files, or none."""
        after = self.machine_dies(had or {})
        after.redo()
        return after.notes(name)

    def edit(self, name: str, sql: str) -> None:
        """Change an instance's file as another program does."""
        with closing(sqlite3.connect(self.path(name), isolation_level=None)) as connection:
            connection.execute(sql)

    @contextmanager
    def wal_away(self, file: InstanceFile) -> Generator[None]:
        """Have a file's WAL where nobody finds it while inside."""
        wal = Path(f"{file.path}-wal")
        away = wal.rename(f"{file.path}-away")
        yield
        away.rename(wal)

    def spoil_last_page(self, file: InstanceFile) -> None:
        """Leave of the last frame in a file's WAL nothing but its header."""
        with Path(f"{file.path}-wal").open("r+b") as wal:
            wal.seek(-PAGE_BYTES, os.SEEK_END)
            wal.write(bytes(PAGE_BYTES))

    def notes(self, name: str) -> list[object]:
        """Return an instance's notes, in a file that holds together."""
        with closing(sqlite3.connect(self.path(name))) as connection:
            assert ("ok",) == connection.execute("PRAGMA integrity_check").fetchone()
            return [note for (note,) in connection.execute("SELECT note FROM notes ORDER BY rowid")]

    def end(self) -> None:
        for file in self.files:
            file.close()
        for yard in self._later:
            yard.end()
        self.threads.close()

    def diary(self) -> Diary:
        """Return a disk that writes down what is synced."""
        return Diary()

    @asynccontextmanager
    async def running(self, log: RelayLog) -> AsyncGenerator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            yield
            nursery.cancel_scope.cancel()

    async def settled(self, log: RelayLog) -> None:
        """Return once the log has nothing but its current segment."""
        while log.statistics().segments > 1 or not log.statistics().settled:
            await trio.lowlevel.checkpoint()

    async def write_much(self, log: RelayLog, file: Any, note: object) -> None:
        """Commit a tenth of a segment, have it logged, and move it into the file."""
        self.note(file, note, size=100_000)
        assert [] == await self.sync(log, file)
        self.checkpoint(log, file)

    async def fill(self, log: RelayLog, file: Any, *, segments: int) -> None:
        """Commit and sync until the log has so many segments in use."""
        while log.statistics().segments < segments:
            await self.write_much(log, file, "fill")


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    yard = Yard(tmp_path / "state")
    yard.root.mkdir()
    yield yard
    yard.end()
