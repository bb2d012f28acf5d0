"""Each benchmark runs here at its smallest size, so that none of them rots.

What they measure is not looked at: the machine that runs the suite is busy with the suite. That the work
was done is, by the checksum, which no machine changes.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from perdure.benchmarks import suite
from perdure.benchmarks.peers.comparison import Peers
from perdure.benchmarks.results import Result, Results

CHECKSUMS = {
    "chain": "9da32ad0037704c6",
    "flat": "416d6c35fdbb9489",
    "replay": "e601a1913b1ca807",
    "short": "1cedf31bd9d4e6ce",
    "create": "0ef4a5d518ee25c3",
    "latency": "413b19bb6b2fcba8",
    "fanout": "6ddfd8f6ff15d6e3",
    "sleepers": "94dd8728bdc2b3cc",
    "asleep": "b890c69ec1538b22",
    "startup": "91dd1c0bdcba5c8c",
    "recover": "4726fa77309377ce",
    "large": "7fe87933e7409a2c",
    "bytes": "d1cf185a51a6df0d",
    "interference": "7ccd179c178012d1",
}
CHECKOUT = Path(__file__).resolve().parents[2] / "benchmarks"


def run(name: str, folder: Path, said: list[str] | None = None) -> Result:
    options = suite.Options(size="tiny", rounds=1, folder=folder)
    told = [] if said is None else said
    (result,) = suite.run([name], options, Peers([], "tiny", 1), told.append).results
    assert result.error is None
    return result


@pytest.mark.checkout
def test_every_benchmark_is_listed_and_runs_here() -> None:
    modules = {path.stem.removeprefix("bench_") for path in CHECKOUT.glob("bench_*.py")}

    assert set(suite.BENCHMARKS) == modules
    assert set(suite.BENCHMARKS) == set(CHECKSUMS)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(suite.BENCHMARKS))
def test_a_benchmark_does_the_work_that_its_checksum_says(name: str, tmp_path: Path) -> None:
    result = run(name, tmp_path)

    assert CHECKSUMS[name] == result.checksum
    assert all(measure.value is not None or measure.missing for measure in result.measures)
    assert len(result.measures) == len({measure.key for measure in result.measures})


@pytest.mark.slow
def test_a_benchmark_leaves_nothing_behind_and_says_what_it_is_at(tmp_path: Path) -> None:
    said: list[str] = []

    run("chain", tmp_path, said)

    assert [] == list(tmp_path.iterdir())
    assert any(re.fullmatch(r"chain: round 1 of 1, \d+ s: full", line) for line in said)


@pytest.mark.slow
def test_a_chain_costs_one_commit_and_one_sync_per_step(tmp_path: Path) -> None:
    full, process, syncs = run("chain", tmp_path).measures

    assert (1.0, 1.0) == (full.figures["syncs per step"], full.figures["commits per step"])
    assert (0.0, 1.0) == (process.figures["syncs per step"], process.figures["commits per step"])
    assert 1.0 == syncs.value


def test_a_benchmark_that_fails_tells_it_in_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise OSError("the disk is gone")

    module = SimpleNamespace(SIZES={"tiny": (1, 1)}, run=broken)

    def imported(_: str) -> SimpleNamespace:
        return module

    monkeypatch.setattr(suite, "import_module", imported)

    (result,) = suite.run(
        ["chain"], suite.Options(size="tiny", folder=tmp_path), Peers([], "tiny", 1), str
    ).results

    assert "OSError: the disk is gone" == result.error
    assert [] == result.measures


def test_results_are_the_same_after_a_way_through_json(tmp_path: Path) -> None:
    result = Result(benchmark="chain", about="a", rounds=1, seconds=1.0, checksum=None, measures=[])
    results = Results(size="tiny", environment={"processors": 2}, results=[result])
    file = tmp_path / "results.json"
    file.write_bytes(msgspec.json.encode(results))

    assert results == suite.read(file)
