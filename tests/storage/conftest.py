"""What the tests of storage share: one instance's file, just born, with a gate that nobody runs.

Without the gate's task nothing is committed by itself: a test says when, with `file.commit()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile, create_file, open_file
from perdure.storage.gate import Gate
from perdure.storage.lifecycle import bear
from perdure.storage.records import Birth

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
