"""A workflow of 200 steps, killed by SIGKILL at random instants until it has had enough.

In the suite each combination of replay mode and durability gets a few kills; `make chaos` is the
whole campaign. Variables, read when the tests are collected:

    PERDURE_CHAOS_KILLS   kills for each combination, 4 by default
    PERDURE_CHAOS_SEED    the seed of an earlier campaign, to repeat its instants as far as a machine can
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.engine.clock import SystemClock
from perdure.engine.folder import StateFolder
from perdure.engine.recovery import settle_logs
from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.disk import Disk
from perdure.storage.records import Key

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("PERDURE_CHAOS_KILLS", "4"))
SEED = int(os.environ.get("PERDURE_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
STEPS = 200
LIFE_S_MAX = 0.08
"""A life is killed this long after it has opened, at the latest; a run takes a few times as long."""
STARTUP_S_MAX = 0.4

ATTEMPTS = """
    SELECT name, step_seq, a.attempt, outcome
    FROM _perdure_attempts AS a JOIN _perdure_steps ON seq = step_seq
    UNION ALL SELECT name, seq, attempt, status FROM _perdure_steps WHERE kind = 'do' AND attempt > 0"""

Launch = Callable[..., "subprocess.Popen[str]"]
Rows = Callable[..., list[tuple[object, ...]]]
Damage = Callable[[Path], dict[str, str]]
Attempts = dict[tuple[str, int], str]


def lines(path: Path) -> list[tuple[str, str, str, int]]:
    """Return what step functions told: (begin or end, instance, step, attempt)."""
    told = [line.split("|") for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    return [(what, instance, step, int(attempt)) for what, instance, step, attempt in told]


def recorded_attempts(rows_of: Rows, path: Path) -> Attempts:
    return {(str(name), int(str(n))): str(outcome) for name, _, n, outcome in rows_of(path, ATTEMPTS)}


def steps_begun(witness: Path, instance: str) -> collections.Counter[tuple[str, int]]:
    return collections.Counter(
        (step, n) for what, of, step, n in lines(witness) if (what, of) == ("begin", instance)
    )


class Campaign:
    """One combination's kills, over as many instances as they take."""

    def __init__(self, folder: Path, launch: Launch, seed: str, replay: str, durability: str) -> None:
        self.state = folder / "state"
        self.witness = folder / "witness"
        self.finished: dict[str, list[list[int]]] = {}
        self.kills = 0
        self._random = random.Random(seed)
        self._launch = launch
        self._options = (replay, durability)

    @property
    def id(self) -> str:
        return f"chaos-{len(self.finished)}"

    def live(self, *, undisturbed: bool = False) -> bool:
        """Let one process live, to a random instant where it may be disturbed; whether it was killed."""
        process = self._launch("chaos", self.state, self.witness, self.id, *self._options)
        assert process.stdout is not None
        if undisturbed:
            return self._note(process)
        if self._random.random() < 0.1:
            delay_s = self._random.uniform(0, STARTUP_S_MAX)
        else:
            process.stdout.readline()
            delay_s = self._random.uniform(0, LIFE_S_MAX)
        killer = threading.Timer(delay_s, process.kill)
        killer.start()
        try:
            return self._note(process)
        finally:
            killer.cancel()

    def _note(self, process: subprocess.Popen[str]) -> bool:
        output, errors = process.communicate()
        killed = process.returncode == -9
        assert killed or process.returncode == 0, errors
        if killed:
            self.kills += 1
        else:
            self.finished[self.id] = json.loads(output.splitlines()[-1])
        return killed


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, list[list[int]]]:
    """Return a place for what a run without a kill returned."""
    return {}


@pytest.mark.parametrize("durability", ["full", "process"])
@pytest.mark.parametrize("replay", ["warm", "always"])
def test_a_workflow_goes_on_by_itself_after_every_kill(  # noqa: PLR0917 - pytest names them
    tmp_path: Path, launch: Launch, damage_in: Damage, rows_of: Rows, replay: str, durability: str,
    undisturbed: dict[str, list[list[int]]],
) -> None:  # fmt: skip
    print(f"PERDURE_CHAOS_SEED={SEED} {replay} {durability}")  # noqa: T201 - to repeat a finding
    expected = run_undisturbed(tmp_path, launch, undisturbed)
    campaign = Campaign(tmp_path / "killed", launch, f"{SEED}-{replay}-{durability}", replay, durability)
    campaign.state.parent.mkdir()

    while campaign.kills < KILLS:
        if campaign.live():
            assert {} == damage_in(campaign.state)
            assert_attempts_were_recorded_first(campaign, rows_of, tmp_path)
    campaign.live(undisturbed=True)

    print(f"{campaign.kills} kills, {len(campaign.finished)} instances")  # noqa: T201 - for make chaos
    for instance, result in campaign.finished.items():
        assert expected == result
        assert_each_step_succeeded_once(campaign, rows_of, instance)


def run_undisturbed(folder: Path, launch: Launch, known: dict[str, list[list[int]]]) -> list[list[int]]:
    if not known:
        campaign = Campaign(folder, launch, "", "warm", "full")
        campaign.live(undisturbed=True)
        known["result"] = campaign.finished["chaos-0"]
    return known["result"]


def assert_attempts_were_recorded_first(campaign: Campaign, rows_of: Rows, folder: Path) -> None:
    """Law 4, in the killed state: no function had begun whose attempt is not on record."""
    state = StateFolder(folder / "autopsy")  # made by damage_in
    if not state.catalog.exists():  # the process was killed before it had begun
        assert not steps_begun(campaign.witness, f"Chaos/{campaign.id}")
        return
    if (campaign.state / "relay").exists():
        shutil.copytree(campaign.state / "relay", state.relay)
    with contextlib.closing(Catalog(open_catalog(state.catalog, checkpointer=False))) as catalog:
        settle_logs(state, SystemClock().boot, catalog, Disk())  # a short instance is in the log alone
    copy = state.instance(Key("Chaos", campaign.id))
    begun = steps_begun(campaign.witness, f"Chaos/{campaign.id}")
    recorded = recorded_attempts(rows_of, copy) if copy.exists() else {}

    assert set() == set(begun) - set(recorded)


def assert_each_step_succeeded_once(campaign: Campaign, rows_of: Rows, instance: str) -> None:
    path = campaign.state / "Chaos" / f"{instance}.sqlite"
    recorded = recorded_attempts(rows_of, path)
    begun = steps_begun(campaign.witness, f"Chaos/{instance}")
    ended = {
        (step, n)
        for what, of, step, n in lines(campaign.witness)
        if (what, of) == ("end", f"Chaos/{instance}")
    }
    successes = {step: n for (step, n), outcome in recorded.items() if outcome == "completed"}

    assert [(STEPS, STEPS - 20, 20)] == rows_of(
        path, "SELECT count(*), sum(status = 'completed'), sum(status = 'cancelled') FROM steps"
    )
    assert set() == set(begun) - set(recorded), "a function ran whose attempt is not on record"
    assert [] == [attempt for attempt, times in begun.items() if times > 1], "an attempt's function ran twice"
    assert set() == set(successes.items()) - ended, "a recorded success whose function had not ended"
    assert [] == [(step, n) for step, n in begun if n > successes[step]], "a step ran after its success"
    assert [(20, 20)] == rows_of(path, "SELECT count(*), count(DISTINCT n) FROM rounds")
