"""A parent, thirty children and a game of five generations, killed by SIGKILL at random instants.

Variables, read when the tests are collected, as in `test_chaos.py`: PERDURE_CHAOS_KILLS, PERDURE_CHAOS_SEED.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("PERDURE_CHAOS_KILLS", "4"))
SEED = int(os.environ.get("PERDURE_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
LIFE_S_MAX = 0.25

Launch = Callable[..., "subprocess.Popen[str]"]
Rows = Callable[..., list[tuple[object, ...]]]

EXPECTED = [0, "p.part[6]: seven", list(range(8, 30)), [0, 1, 2, 3, 4]]


def live(process: subprocess.Popen[str], life_s: float | None) -> str | None:
    """Let a process live that long, or to its end; return what it printed last where it got there."""
    assert process.stdout is not None
    process.stdout.readline()
    killer = threading.Timer(life_s or 0, process.kill)
    if life_s is not None:
        killer.start()
    output, errors = process.communicate()
    killer.cancel()
    assert process.returncode in (0, -9), errors
    return output.splitlines()[-1] if process.returncode == 0 else None


@pytest.mark.parametrize("durability", ["full", "process"])
@pytest.mark.parametrize("replay", ["warm", "always"])
def test_no_child_is_lost_or_doubled_by_kills(
    tmp_path: Path, launch: Launch, rows_of: Rows, replay: str, durability: str
) -> None:
    print(f"PERDURE_CHAOS_SEED={SEED} {replay} {durability}")  # noqa: T201 - to repeat a finding
    instants = random.Random(f"{SEED}-{replay}-{durability}")
    state, witness = tmp_path / "state", tmp_path / "witness"
    result = None
    for kill in range(KILLS + 1):
        life_s = None if kill == KILLS else instants.uniform(0, LIFE_S_MAX)
        result = live(launch("family", state, witness, "p", replay, durability), life_s)
        if result is not None:
            break

    assert EXPECTED == json.loads(result or "null")
    children = rows_of(
        state / "catalog.sqlite", "SELECT workflow, count(*), count(DISTINCT id) FROM instances GROUP BY 1"
    )
    assert [("Child", 30, 30), ("Game", 1, 1), ("Parent", 1, 1)] == children
    assert {f"{number} {what}" for number in range(30) for what in ("begin", "end")} == set(
        witness.read_text().splitlines()
    )
    assert [(31, 31)] == rows_of(
        state / "Parent" / "p.sqlite", "SELECT count(*), count(DISTINCT name) FROM steps WHERE kind = 'child'"
    )
