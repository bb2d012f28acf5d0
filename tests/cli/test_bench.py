"""`perdure bench` as people run it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perdure.benchmarks import suite


def test_without_a_name_it_lists_every_benchmark(place: Any) -> None:
    done = place.run("bench")

    assert 0 == done.status
    assert all(f"{name} " in done.out and about in done.out for name, about in suite.BENCHMARKS.items())
    assert set(suite.BENCHMARKS) == {entry["benchmark"] for entry in place.json("bench")}


def test_an_unknown_name_is_refused_with_those_there_are(place: Any) -> None:
    done = place.run("bench", "chian")

    assert 2 == done.status
    assert "there is no benchmark 'chian'; there are: chain, flat" in done.err


def test_a_plot_of_an_unknown_kind_is_refused_before_anything_is_measured(place: Any) -> None:
    done = place.run("bench", "chain", "--tiny", "--plot", "results.pdf")

    assert 2 == done.status
    assert "round" not in done.err


@pytest.mark.slow
def test_results_go_to_stdout_and_progress_to_stderr(place: Any) -> None:
    done = place.run("bench", "replay", "--tiny", "--no-peers")

    assert 0 == done.status, done.err
    assert "replay: round 1 of " in done.err
    assert "round 1 of " not in done.out
    assert "recorded steps" in done.out
    assert "≥ 500,000" in done.out


@pytest.mark.slow
def test_json_has_what_a_reader_needs_and_can_be_shown_again(place: Any) -> None:
    done = place.run("bench", "chain", "replay", "--tiny", "--rounds", "1", "--json", "--quiet")
    assert (0, "") == (done.status, done.err)
    place.folder.joinpath("results.json").write_text(done.out)
    found = json.loads(done.out)

    assert (1, "tiny") == (found["format"], found["size"])
    depends = {"perdure", "python", "sqlite", "system", "file system", "processors", "load"}
    assert depends == set(found["environment"])
    assert ["chain", "replay"] == [result["benchmark"] for result in found["results"]]
    for result in found["results"]:
        assert {"about", "rounds", "seconds", "checksum", "measures", "notes", "error"} < set(result)
        for measure in result["measures"]:
            assert {"key", "what", "unit", "value", "target", "bare", "share", "peers"} < set(measure)
    again = place.run("bench", "replay", "--from", "results.json", "--markdown", "--plot", "results.svg")
    assert 0 == again.status, again.err
    assert "| `replay` | 20 recorded steps |" in again.out
    assert "`chain`" not in again.out
    assert place.folder.joinpath("results.svg").read_text().startswith("<svg ")


def test_a_file_that_is_no_report_is_refused(place: Any) -> None:
    done = place.run("bench", "--from", "workflows.py")

    assert 2 == done.status
    assert "not what `perdure bench --json` writes" in done.err
