"""What is done with a relay log that its process did not take away: redo, after the machine has died.

Within one boot nothing is lost with a process: the operating system has all it wrote, and one sync
of the file system settles the log. After a change of boot the files are brought to what the log
says, before anything else opens them.

Only the process that holds the folder alone may call this. See ARCHITECTURE.md for what each rule
would lose if it were not kept.

Invariants:
    A file is touched only while its row in the catalog is of the incarnation that the log means,
    and never one that an owner of a later epoch, or another program, has written since.
    The log goes after all files are on disk, so redo may be interrupted and repeated.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from perdure.storage.disk import Disk
from perdure.storage.relay_format import (
    CLOSED,
    HEADER_BYTES,
    IMAGES,
    SECTOR_BYTES,
    TEMPLATE,
    VOID,
    Entry,
    Segment,
    decode_batches,
    read_header,
)
from perdure.storage.wal import WalFound, examine_wal

logger: Final = logging.getLogger("perdure.storage")
DECIDED: Final = "redo.json"
"""What an interrupted redo had decided: by then its own writing has changed the files' times."""


SETTLED: Final = ".settled"
"""End of the name of a list of logs that are about to be removed, and do not count any more."""


class Decision(msgspec.Struct, frozen=True):
    """Files that redo writes, and those that it leaves to whoever wrote them since."""

    redo: list[str]
    foreign: list[str]


class Story(msgspec.Struct):
    """What the log has of one incarnation of one file, in order.

    `salts` are those of all WALs of this runtime, of any incarnation under that name, that the log knows.
    """

    entries: list[Entry]
    salts: set[bytes]

    @property
    def images(self) -> list[Entry]:
        """The images that count: those behind the last entry that voids what is before it.

        So does somebody who wrote the file between two times that this runtime had it open: they synced it.
        """
        found: list[Entry] = []
        closed: int | None = None
        for entry in self.entries:
            foreign = entry.kind == IMAGES and closed is not None and entry.opened != closed
            if entry.kind == VOID or entry.born or foreign:
                found = []
            closed = entry.number if entry.kind == CLOSED else None
            if entry.kind == IMAGES:
                found.append(entry)
        return found


def segments(folder: Path) -> list[tuple[Path, Segment]]:
    """Return the segments that count. Raises `StateUnusableError` for those of another version.

    Those do not count that were settled when a later one of their log began: some of them may have been
    written over since, and what is left would bring back pages that are older than the file.
    """
    found: list[tuple[Path, Segment]] = []
    first: dict[str, int] = {}
    settled = _settled(folder)
    for path in sorted(folder.glob("*.log")):
        with path.open("rb") as file:
            segment = read_header(file.read(HEADER_BYTES))
        if segment is not None and log_of(path) not in settled:
            found.append((path, segment))
            first[log_of(path)] = max(segment.first, first.get(log_of(path), 0))
    return [(path, segment) for path, segment in found if segment.number >= first[log_of(path)]]


def log_of(path: Path) -> str:
    """Return the name of the log whose segment `path` is."""
    return path.name.rsplit(".", 2)[0]


def forget(folder: Path, disk: Disk, logs: Iterable[str]) -> None:
    """Remove logs all of whose segments are settled; what an interruption leaves of them does not count.

    One mark speaks for all: with a later owner's log gone, an earlier one's would take files back.
    """
    gone = sorted(logs)
    if not gone:
        return
    mark = folder / f"{gone[0]}{SETTLED}"
    disk.write_new(mark, "\n".join(gone).encode(), durable=True)
    disk.sync_directory(folder)
    for log in gone:
        for path in folder.glob(f"{log}.*.log"):
            path.unlink()
    (folder / DECIDED).unlink(missing_ok=True)
    disk.sync_directory(folder)
    mark.unlink()


def _settled(folder: Path) -> set[str]:
    """Return the logs that do not count any more."""
    logs: set[str] = set()
    for mark in folder.glob(f"*{SETTLED}"):
        with contextlib.suppress(FileNotFoundError):  # whoever made it is alive, and has just finished
            logs.update(mark.read_text().split())
    return logs


def settle(folder: Path, root: Path, disk: Disk, *, worker: int | None = None) -> None:
    """Make all that dead processes of this boot wrote safe by itself, and remove their logs, or one's."""
    disk.sync_file_system(root)
    if not folder.exists():
        return
    logs = {log_of(path) for path in folder.glob(f"{worker or '*'}.*.log")}
    if worker is not None:
        forget(folder, disk, logs)
        return
    forget(folder, disk, logs | _settled(folder))
    for path in (*folder.glob(f"*{SETTLED}"), folder / DECIDED):  # an interruption left them
        path.unlink(missing_ok=True)


def revive(
    folder: Path,
    disk: Disk,
    *,
    locate: Callable[[str, int], tuple[Path, int] | None],
    worker: int | None = None,
) -> None:
    """Write the files that dead processes of this boot, or one of them, had in memory only."""
    stories, templates = _read(
        [(path, segment) for path, segment in segments(folder) if worker in (None, segment.worker)]
    )
    for key, story in stories.items():
        found = locate(*key)
        images = story.images
        if found is not None and images and images[0].born and not _is_there(found[0]):
            _apply(found[0], story, templates, disk)


def _is_there(path: Path) -> bool:
    """Whether a file is there, and not the nothing that a tool makes which looks for it too early."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def redo(
    folder: Path, root: Path, disk: Disk, *, boot: int, locate: Callable[[str, int], tuple[Path, int] | None]
) -> Decision:
    """Bring the files of a folder to what its logs of another boot say, and remove the logs.

    `locate` tells, by name and incarnation, where a file lies and the last epoch of which the catalog
    says that all is safe without a log; None where the catalog has no such incarnation.
    """
    stories, templates = _read(
        [(path, segment) for path, segment in segments(folder) if segment.boot != boot]
    )
    count: dict[Path, Story] = {}
    for key, story in stories.items():
        found = locate(*key)
        # The owner of a later epoch may have settled a log of its own since: then this one is behind.
        if found is not None and found[1] <= story.entries[-1].epoch and story.images:
            count[found[0]] = story
    decision = _decide(folder, root, disk, count, templates)
    for path, story in count.items():
        if path.relative_to(root).as_posix() in decision.redo:
            _apply(path, story, templates, disk)
    for name in decision.foreign:
        logger.error(
            "%s was changed by another program after Perdure closed it and before the machine died: it is"
            " left as that program wrote it",
            name,
        )
    settle(folder, root, disk)
    return decision


def _read(found: Iterable[tuple[Path, Segment]]) -> tuple[dict[tuple[str, int], Story], dict[int, bytes]]:
    stories: dict[tuple[str, int], Story] = {}
    templates: dict[int, bytes] = {}
    ordered: list[tuple[tuple[int, int, int], Entry]] = []
    for path, segment in found:
        for entries in decode_batches(path.read_bytes(), segment):
            for entry in entries:
                if entry.kind == TEMPLATE:
                    templates[entry.number] = entry.images[1]
                else:
                    ordered.append(((entry.epoch, segment.worker, segment.number), entry))
    salts: dict[str, set[bytes]] = {}
    for _, entry in sorted(ordered, key=lambda each: each[0]):
        known = salts.setdefault(entry.name, set())
        stories.setdefault((entry.name, entry.incarnation), Story([], known)).entries.append(entry)
        known.add(entry.salts)
    return stories, templates


def _decide(
    folder: Path, root: Path, disk: Disk, stories: dict[Path, Story], templates: dict[int, bytes]
) -> Decision:
    """Decide which files to write, and write that down, before the first is written."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode((folder / DECIDED).read_bytes(), type=Decision)
    decision = Decision([], [])
    for path, story in stories.items():
        name = path.relative_to(root).as_posix()
        (decision.foreign if _is_foreign(path, story, templates) else decision.redo).append(name)
    if stories:
        disk.write_new(folder / DECIDED, msgspec.json.encode(decision), durable=True)
        disk.sync_directory(folder)
    return decision


def _is_foreign(path: Path, story: Story, templates: dict[int, bytes]) -> bool:
    """Whether somebody has written the file itself after this runtime closed it.

    Before they removed their WAL they synced the file, with all that this runtime had written. As long
    as that WAL is there the file may lack some of that, and redo goes beneath the WAL.
    """
    last = story.entries[-1]
    if last.kind != CLOSED or not path.exists() or path.stat().st_mtime_ns <= last.number:
        return False
    wal = examine_wal(Path(f"{path}-wal"))
    if wal is None or wal.rounds > 0 or wal.salts in story.salts:
        return True
    return not _lacks_images(path.read_bytes(), story, templates)


def _lacks_images(content: bytes, story: Story, templates: dict[int, bytes]) -> bool:
    """Whether a page of the file is older than its last image, and nothing but older."""
    known: dict[int, list[bytes]] = {}
    for entry in story.images:
        if entry.born:
            template, size = templates[entry.number], entry.page_bytes
            for at in range(0, len(template), size):
                known[at // size + 1] = [template[at : at + size]]
        for page, image in entry.images.items():
            known.setdefault(page, []).append(image)
    return any(_is_older(content, page, versions) for page, versions in known.items())


def _is_older(content: bytes, page: int, versions: list[bytes]) -> bool:
    """Whether each sector of a page is of some version, or was never written, and not all are of the last."""
    size = len(versions[-1])
    found = content[(page - 1) * size : page * size].ljust(size, b"\0")
    sectors = [slice(at, at + SECTOR_BYTES) for at in range(0, size, SECTOR_BYTES)]
    return found != versions[-1] and all(
        not any(found[sector]) or any(found[sector] == version[sector] for version in versions)
        for sector in sectors
    )


def _is_behind(wal: WalFound | None, story: Story) -> bool:
    """Whether a WAL found beside a file holds less than the log: played back, it would undo what the log has.

    One that holds more has commits that nobody waited for, or that another program has made.
    """
    if wal is None:
        return True
    last = story.images[-1]
    return wal.end < last.end if wal.salts == last.salts else wal.salts in story.salts


def _apply(path: Path, story: Story, templates: dict[int, bytes], disk: Disk) -> None:
    """Write the images over the file, in order, and sync it."""
    images, wal = story.images, Path(f"{path}-wal")
    if _is_behind(examine_wal(wal), story):
        wal.unlink(missing_ok=True)
    Path(f"{path}-shm").unlink(missing_ok=True)
    disk.make_folder(path.parent, durable=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        for entry in images:
            if entry.born:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, templates[entry.number], 0)
            for page, image in entry.images.items():
                if page <= entry.file_pages:
                    os.pwrite(descriptor, image, (page - 1) * entry.page_bytes)
            if entry.file_pages:
                os.ftruncate(descriptor, entry.file_pages * entry.page_bytes)
        disk.sync_descriptor(descriptor)
    finally:
        os.close(descriptor)
    disk.sync_directory(path.parent)
