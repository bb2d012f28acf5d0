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
    TEMPLATE,
    VOID,
    Entry,
    Segment,
    decode_batches,
    read_header,
)

logger: Final = logging.getLogger("perdure.storage")
DECIDED: Final = "redo.json"
"""What an interrupted redo had decided: by then its own writing has changed the files' times."""


class Decision(msgspec.Struct, frozen=True):
    """Files that redo writes, and those that it leaves to whoever wrote them since."""

    redo: list[str]
    foreign: list[str]


class Story(msgspec.Struct):
    """What the log has of one incarnation of one file, in order."""

    entries: list[Entry]

    @property
    def images(self) -> list[Entry]:
        """The images that count: those behind the last entry that voids what is before it."""
        found: list[Entry] = []
        for entry in self.entries:
            if entry.kind == VOID or entry.born:
                found = []
            if entry.kind == IMAGES:
                found.append(entry)
        return found


def segments(folder: Path) -> list[tuple[Path, Segment]]:
    """Return the segments in the folder `relay/`. Raises `StateUnusableError` for another version's."""
    found: list[tuple[Path, Segment]] = []
    for path in sorted(folder.glob("*.log")):
        with path.open("rb") as file:
            segment = read_header(file.read(HEADER_BYTES))
        if segment is not None:
            found.append((path, segment))
    return found


def settle(folder: Path, root: Path, disk: Disk, *, worker: int | None = None) -> None:
    """Make all that dead processes of this boot wrote safe by itself, and remove their logs, or one's."""
    disk.sync_file_system(root)
    for path in sorted(folder.glob("*.log" if worker is None else f"{worker}.*.log")):
        path.unlink()
    if folder.exists():
        disk.sync_directory(folder)


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
    decision = _decide(folder, disk, count)
    for path, story in count.items():
        if str(path) in decision.redo:
            _apply(path, story.images, templates, disk)
    for name in decision.foreign:
        logger.error(
            "%s was changed by another program after Perdure closed it and before the machine died: it is"
            " left as that program wrote it",
            name,
        )
    settle(folder, root, disk)
    (folder / DECIDED).unlink(missing_ok=True)
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
    for _, entry in sorted(ordered, key=lambda each: each[0]):
        stories.setdefault((entry.name, entry.incarnation), Story([])).entries.append(entry)
    return stories, templates


def _decide(folder: Path, disk: Disk, stories: dict[Path, Story]) -> Decision:
    """Decide which files to write, and write that down, before the first is written."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode((folder / DECIDED).read_bytes(), type=Decision)
    decision = Decision([], [])
    for path, story in stories.items():
        (decision.foreign if _is_foreign(path, story) else decision.redo).append(str(path))
    if stories:
        disk.write_new(folder / DECIDED, msgspec.json.encode(decision), durable=True)
        disk.sync_directory(folder)
    return decision


def _is_foreign(path: Path, story: Story) -> bool:
    """Whether somebody has written the file after this runtime closed it."""
    last = story.entries[-1]
    return last.kind == CLOSED and path.exists() and path.stat().st_mtime_ns > last.number


def _apply(path: Path, images: list[Entry], templates: dict[int, bytes], disk: Disk) -> None:
    """Write the images over the file, in order, and sync it."""
    for suffix in ("-wal", "-shm"):  # an old WAL would shadow the images
        Path(f"{path}{suffix}").unlink(missing_ok=True)
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
