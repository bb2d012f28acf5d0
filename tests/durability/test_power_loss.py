"""Nothing that was acknowledged is lost to a power failure, at whatever instant it comes.

The package `powerloss` beside this file says how that is tried and which disk is assumed. In the suite
each script gets a few crashes; `make powerloss` is the whole campaign. Variables, read when the
tests are collected:

    PERDURE_POWERLOSS_CRASHES   crashes for each script, 8 by default
    PERDURE_POWERLOSS_SEED      the seed of an earlier campaign, to repeat its choices
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from powerloss.campaign import Finding, crashes, findings, quick_folder, second_findings, text
from powerloss.recorder import record
from powerloss.scripts import SCRIPTS

pytestmark = pytest.mark.slow

CRASHES = int(os.environ.get("PERDURE_POWERLOSS_CRASHES", "8"))
SEED = int(os.environ.get("PERDURE_POWERLOSS_SEED", random.SystemRandom().randrange(10**6)))
RECOVERED = ("chains", "hot", "killed", "foreign")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return an empty folder, in memory where that is possible: the disk is a model."""
    with TemporaryDirectory(dir=quick_folder(), prefix="perdure-powerloss-") as place:
        yield Path(place)


def told(found: list[Finding]) -> str:
    return "\n".join([f"PERDURE_POWERLOSS_SEED={SEED}", *map(text, found)])


@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_acknowledged_is_lost_to_a_power_failure(folder: Path, strace: str, name: str) -> None:
    operations = record(name, folder, strace=strace, seed=SEED)
    chosen = crashes(operations, count=CRASHES, seed=SEED)

    found = list(findings(SCRIPTS[name], operations, chosen, folder))

    assert not found, told(found)


@pytest.mark.parametrize("name", RECOVERED)
def test_a_recovery_may_be_interrupted_by_another_power_failure(folder: Path, strace: str, name: str) -> None:
    operations = record(name, folder, strace=strace, seed=SEED)
    first = random.Random(SEED).choice(crashes(operations, count=8, seed=SEED))

    found = list(
        second_findings(
            SCRIPTS[name], operations, first, folder / "again", strace=strace, count=1 + CRASHES // 2
        )
    )

    assert not found, f"after {first}:\n{told(found)}"


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        ("file-sync", "chains"),
        ("directory-sync", "chains"),
        ("late", "chains"),
        ("file-system-sync", "segments"),
    ],
)
def test_the_proof_fails_on_a_disk_that_breaks_a_promise(
    folder: Path, strace: str, broken: str, name: str
) -> None:
    operations = record(name, folder, strace=strace, seed=SEED, broken=broken)
    chosen = crashes(operations, count=max(CRASHES, 16), seed=SEED)

    assert any(findings(SCRIPTS[name], operations, chosen, folder))
