"""The peers beside Perdure's figures, and the one that may be installed here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from perdure.benchmarks import suite
from perdure.benchmarks.harness import WorkNotDoneError
from perdure.benchmarks.peers import dbos_adapter, program, restate_adapter
from perdure.benchmarks.peers.comparison import HERE, Peers, adapters
from perdure.benchmarks.peers.recorded import RECORDED, SOURCE
from perdure.benchmarks.results import Found, Measure, PeerFigure

CHAIN = Measure(key="chain/full", what="a chain", unit="steps/s", value=5_000.0)


class Snail:
    """A peer of the tests: slower each time, or not installed."""

    peer = "Snail"

    def __init__(self, missing: str | None = None, error: str | None = None) -> None:
        self.asked: list[Path] = []
        self._missing = missing
        self._error = error

    def missing(self) -> str | None:
        return self._missing

    def keys(self, benchmark: str) -> Sequence[str]:
        return ["chain/full"] if benchmark == "chain" else []

    def rounds_max(self, benchmark: str) -> int:
        return 5 if benchmark == "chain" else 1

    def measure(self, benchmark: str, size: str, folder: Path) -> dict[str, float]:
        if self._error:
            raise OSError(self._error)
        self.asked.append(folder)
        return {"chain/full": 100.0 / len(self.asked)}


def beside(snail: Snail, folder: Path, benchmark: str = "chain") -> list[PeerFigure]:
    found = Found(measures=[CHAIN], computed=1)
    made = Peers([snail], "tiny", 3).beside(benchmark, found, folder, len)
    return [peer for peer in made.measures[0].peers if peer.peer == "Snail"]


def test_a_peers_figure_is_the_median_of_its_rounds(tmp_path: Path) -> None:
    snail = Snail()

    assert [PeerFigure(peer="Snail", value=50.0, source=HERE)] == beside(snail, tmp_path)
    assert 3 == len(set(snail.asked))


def test_a_peer_that_is_not_installed_says_what_to_install(tmp_path: Path) -> None:
    (figure,) = beside(Snail(missing="not installed: pip install snail"), tmp_path)

    assert (None, "not installed: pip install snail") == (figure.value, figure.missing)


def test_a_peer_that_fails_leaves_perdures_figures_as_they_are(tmp_path: Path) -> None:
    (figure,) = beside(Snail(error="out of lettuce"), tmp_path)

    assert (None, "failed: out of lettuce") == (figure.value, figure.missing)


def test_a_peer_without_a_counterpart_is_not_asked(tmp_path: Path) -> None:
    assert [] == beside(Snail(), tmp_path, "bytes")


def test_figures_on_record_stand_with_their_date() -> None:
    made = Peers([], "tiny", 1).beside("chain", Found(measures=[CHAIN], computed=1), Path(), len)
    recorded = {peer.peer: peer for peer in made.measures[0].peers}

    assert {each.peer for each in RECORDED if "chain/full" in each.figures} == set(recorded)
    assert {SOURCE} == {peer.source for peer in recorded.values()}


def test_every_key_of_an_adapter_is_on_record_or_known() -> None:
    on_record = {key for each in RECORDED for key in each.figures}
    every = (*dbos_adapter.KEYS.values(), *restate_adapter.KEYS.values())
    asked = {key for keys in every for key in keys}

    assert {"sleepers/p50"} == asked - on_record


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", list(suite.BENCHMARKS))
def test_a_peer_does_the_work_where_it_is_installed(benchmark: str, tmp_path: Path) -> None:
    installed = [each for each in adapters(sys.executable) if not each.missing() and each.keys(benchmark)]
    if not installed:
        pytest.skip("no peer with this benchmark is installed here")
    for number, adapter in enumerate(installed):
        folder = tmp_path / f"{number}"
        folder.mkdir()

        assert set(adapter.keys(benchmark)) <= set(adapter.measure(benchmark, "tiny", folder))


def test_an_interpreter_without_a_peer_is_told_so(tmp_path: Path) -> None:
    told = {each.peer: each.missing() for each in adapters(str(tmp_path / "no-python"))}

    assert "not installed: pip install dbos" == told["DBOS"]
    assert "not installed: pip install restate-sdk hypercorn" in str(told["Restate"])


def test_a_program_that_fails_is_told_by_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(WorkNotDoneError, match="the disk is gone"):
        program.run([sys.executable, "-c", "raise SystemExit('the disk is gone')"], tmp_path)


@pytest.mark.parametrize("name", ["dbos_program", "restate_program"])
def test_a_peers_program_can_be_imported_without_the_peer(name: str) -> None:
    assert importlib.import_module(f"perdure.benchmarks.peers.{name}").MEASURES
