"""The example workflow: an audit of every Python distribution installed in its environment.

It is what `perdure demo` runs, and a workflow like anybody's: it uses the public face alone. For each
distribution it reads the metadata, hashes the files against the RECORD that the installer wrote, and
classifies the licence; the work is in plain functions, which run in threads.

`self.env` may be a `Watch`: it writes down each execution of a step function, so that the demo can
compare what really ran with what the instance's file says. Without one the audit runs all the same:
`perdure run audit.py:Audit`.

Invariants:
    Nothing is imported from, and nothing is run of, what is audited.
    A distribution that breaks the rules is a line of the report, never an error of the audit.
"""

from __future__ import annotations

import base64
import collections
import csv
import functools
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import msgspec

from perdure import Retries, WorkflowEntrypoint, WorkflowEvent, WorkflowStep, current_step
from perdure.cli import licences as known_licences
from perdure.cli.licences import Licence, LicenceFacts

P = ParamSpec("P")
T = TypeVar("T")

AT_ONCE: Final = 4
"""Distributions looked at at the same time: hashing is the work of the disk and of one or two cores."""
BLOCK_BYTES: Final = 1 << 20
NAMES_MAX: Final = 100
HOLD_S_MAX: Final = 60.0
"""How long the attempt that is to be killed waits for that, should nobody kill it."""
RETRIES: Final = Retries(limit=3, delay="1 second")
PHASES: Final = ("list distributions", "read metadata", "hash files", "classify licence", "sum up")


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One installed distribution."""

    name: str
    version: str


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a distribution's metadata says."""

    name: str
    requires: int
    licence: LicenceFacts


class Files(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution's files against its RECORD. `record` is False where it has none to compare with.

    `match` is 1 when every hash is as recorded, 0 when one is not, None where nothing is recorded.
    """

    name: str
    record: bool
    files: int
    bytes: int
    match: int | None
    changed: list[str]
    missing: list[str]


class Audited(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report."""

    name: str
    version: str
    licence: Licence
    files: int
    bytes: int
    match: int | None
    changed: int
    missing: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The result of the audit."""

    distributions: int
    files: int
    bytes: int
    not_matching: list[str]
    without_record: list[str]
    licences: dict[str, int]
    audited: list[Audited]


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the log of executions: a step function has started, or has ended."""

    what: str
    step: str
    attempt: int
    pid: int


class Watch:
    """Writes down each execution of a step function, and can hold one until its process is killed.

    `pause_s` slows each execution down, so that a person can follow. With `hold`, the first attempt
    that `over` was told to hold waits for the end of the process: then one is certainly under way.
    """

    def __init__(self, path: Path, *, pause_s: float = 0.0, hold: bool = False) -> None:
        self.holding = threading.Event()
        self._path = path
        self._pause_s = pause_s
        self._hold = hold

    def over(self, fn: Callable[P, T], *, hold: str | None = None) -> Callable[P, T]:
        """Return `fn`, watched; the first attempt of the step called `hold` is held."""

        @functools.wraps(fn)
        def watched(*args: P.args, **keywords: P.kwargs) -> T:
            context = current_step()
            self._write("start", context.step.name, context.attempt)
            value = fn(*args, **keywords)
            time.sleep(self._pause_s)
            if self._hold and context.step.name == hold and context.attempt == 1:
                self._wait_for_the_end()
            self._write("end", context.step.name, context.attempt)
            return value

        return watched

    def _write(self, what: str, step: str, attempt: int) -> None:
        line = msgspec.json.encode(Execution(what=what, step=step, attempt=attempt, pid=os.getpid())) + b"\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            # One write: lines of several threads do not mix, and a kill cuts none in two.
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def _wait_for_the_end(self) -> None:
        self.holding.set()
        context = current_step()
        until = time.monotonic() + HOLD_S_MAX
        while time.monotonic() < until and not context.cancelled:
            time.sleep(0.02)


class Audit(WorkflowEntrypoint[Watch | None]):
    """Audit what is installed."""

    version = "1"

    async def run(self, _event: WorkflowEvent[None], step: WorkflowStep) -> Report:
        """List the distributions, look at each in three steps, and sum up."""
        watch = self.env or Watch(Path(os.devnull))
        found = await step.do("list distributions", watch.over(list_distributions))
        read, classify = watch.over(read_metadata), watch.over(classify_licence)
        compare = watch.over(hash_files, hold=f"hash files[{len(found) // 2}]")
        facts = await step.map("read metadata", read, found, limit=AT_ONCE, retries=RETRIES)
        files = await step.map("hash files", compare, found, limit=AT_ONCE, retries=RETRIES)
        licences = await step.map("classify licence", classify, facts, limit=AT_ONCE, retries=RETRIES)
        return await step.do("sum up", watch.over(sum_up), found, files, licences)


# -- the step functions --------------------------------------------------------------------


def list_distributions() -> list[Found]:
    """Return what is installed, by name. Of two of one name the first counts, as for an import."""
    found: dict[str, Found] = {}
    for distribution in metadata.distributions():
        name = _field(distribution, "Name")
        if name:
            key = re.sub(r"[-_.]+", "-", name).lower()
            found.setdefault(key, Found(name=name, version=_field(distribution, "Version") or "?"))
    return [found[key] for key in sorted(found)]


def read_metadata(found: Found) -> Facts:
    """Return what the metadata of one distribution says of its licence."""
    distribution = metadata.distribution(found.name)
    fields = distribution.metadata
    licence = LicenceFacts(
        expression=_field(distribution, "License-Expression"),
        classifiers=[text for text in fields.get_all("Classifier") or [] if text.startswith("License ::")],
        field=(_field(distribution, "License") or "")[:200] or None,
    )
    if known_licences.classify(licence).spdx is None:
        names = [str(name) for name in fields.get_all("License-File") or []]
        licence = msgspec.structs.replace(licence, text=_licence_text(distribution, names))
    return Facts(name=found.name, requires=len(fields.get_all("Requires-Dist") or []), licence=licence)


def hash_files(found: Found) -> Files:
    """Hash the files of one distribution and compare with its RECORD."""
    distribution = metadata.distribution(found.name)
    record = distribution.read_text("RECORD")
    changed: list[str] = []
    missing: list[str] = []
    files = size = compared = 0
    for row in filter(None, csv.reader((record or "").splitlines())):
        name, expected = row[0], (row[1] if len(row) > 1 else "")
        path = Path(str(distribution.locate_file(name)))
        files += 1
        algorithm, _, digest = expected.partition("=")
        compared += bool(digest)
        if not path.is_file():
            missing += [name] if digest else []  # compiled files are listed without a hash, and come and go
            continue
        actual, read = _digest(path, algorithm or "sha256")
        size += read
        if digest and actual != digest:
            changed.append(name)
    match = None if record is None or not compared else int(not changed and not missing)
    return Files(
        name=found.name, record=record is not None, files=files, bytes=size, match=match,
        changed=changed[:NAMES_MAX], missing=missing[:NAMES_MAX],
    )  # fmt: skip


def classify_licence(facts: Facts) -> Licence:
    """Say which licence one distribution is under, and how that is known."""
    return known_licences.classify(facts.licence)


def sum_up(found: list[Found], files: list[Files], licences: list[Licence]) -> Report:
    """Put the findings together."""
    audited = [
        Audited(
            name=one.name, version=one.version, licence=licence, files=its.files, bytes=its.bytes,
            match=its.match, changed=len(its.changed), missing=len(its.missing),
        )
        for one, its, licence in zip(found, files, licences, strict=True)
    ]  # fmt: skip
    counted = collections.Counter(licence.spdx or "unknown" for licence in licences)
    return Report(
        distributions=len(found),
        files=sum(its.files for its in files),
        bytes=sum(its.bytes for its in files),
        not_matching=[its.name for its in files if its.match == 0],
        without_record=[its.name for its in files if its.match is None],
        licences=dict(counted.most_common()),
        audited=audited,
    )


# -- inside --------------------------------------------------------------------------------


def _field(distribution: metadata.Distribution, name: str) -> str | None:
    """Return one field of the metadata; None where it, or all metadata, is missing."""
    try:
        values = distribution.metadata.get_all(name)
    except (OSError, ValueError, AttributeError, metadata.PackageNotFoundError):  # half an installation
        return None
    return str(values[0]) if values else None


def _licence_text(distribution: metadata.Distribution, names: list[str]) -> str | None:
    """Return the beginning of the licence that lies beside the metadata."""
    places = [place for name in names for place in (f"licenses/{name}", name)]
    for place in (*places, "LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING"):
        try:
            text = distribution.read_text(place)
        except (OSError, ValueError):  # not readable, or not text: the next one may be
            continue
        if text:
            return text[:2000]
    return None


def _digest(path: Path, algorithm: str) -> tuple[str, int]:
    """Return the hash of a file as RECORD writes it, and how many bytes were read."""
    try:
        digest = hashlib.new(algorithm)
    except ValueError:
        return f"unknown algorithm {algorithm}", 0
    size = 0
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                size += len(block)
    except OSError as error:  # a file that this user may not read is a finding too
        return f"unreadable: {error.strerror}", size
    return base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode(), size


def read_executions(path: Path) -> list[Execution]:
    """Return what a `Watch` has written down, in order."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    return [msgspec.convert(json.loads(line), Execution) for line in lines]
