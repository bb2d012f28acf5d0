"""Rounds, medians and shares: what turns times into figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.benchmarks import bare
from perdure.benchmarks.harness import Bench, WorkNotDoneError, checksum, compared, percentile, ratio


def test_variants_take_turns_forwards_and_backwards(tmp_path: Path) -> None:
    ran: list[str] = []
    bench = Bench(None, rounds=3, folder=tmp_path, say=len)

    def note(name: str) -> int:
        ran.append(name)
        return len(ran)

    found = bench.in_turn({name: lambda name=name: note(name) for name in "ab"})  # type: ignore[misc]  # bound now, on purpose

    assert ["a", "b", "b", "a", "a", "b"] == ran
    assert {"a": [1, 4, 5], "b": [2, 3, 6]} == found


def test_each_folder_is_new_and_lies_in_the_benchmarks_own(tmp_path: Path) -> None:
    bench = Bench(None, rounds=1, folder=tmp_path, say=len)
    first, second = bench.new_folder(), bench.new_folder()

    assert first != second
    assert {tmp_path} == {first.parent, second.parent}


def test_a_ratio_is_taken_within_each_round() -> None:
    assert 2.0 == ratio([2.0, 40.0, 9.0], [1.0, 20.0, 3.0])


@pytest.mark.parametrize(("better", "share"), [("more", 0.5), ("less", 2.0)])
def test_a_share_of_the_bare_loop_is_a_speed(better: str, share: float) -> None:
    measure = compared([1.0, 2.0], [2.0, 4.0], key="k", what="w", unit="u", better=better)  # type: ignore[arg-type]  # parametrised

    assert share == measure.share


@pytest.mark.parametrize(("percent", "value"), [(0, 1.0), (50, 2.0), (99, 4.0), (100, 4.0)])
def test_a_percentile_is_one_of_the_values(percent: float, value: float) -> None:
    assert value == percentile([4.0, 2.0, 1.0, 3.0], percent)


@pytest.mark.parametrize(
    ("value", "share", "reached"),
    [(9.0, 0.5, False), (10.0, 0.4, False), (10.0, 0.5, True), (12.0, 0.9, True)],
)
def test_a_measure_is_reached_when_both_its_targets_are(value: float, share: float, reached: bool) -> None:
    measure = compared([value], [value / share], key="k", what="w", unit="u", target=10.0, share_target=0.5)

    assert reached == measure.reached


def test_a_checksum_depends_on_what_was_computed_alone() -> None:
    assert checksum({"a": 1, "b": [2]}) == checksum({"b": [2], "a": 1})
    assert checksum([1]) != checksum([2])


def test_other_rows_than_perdures_are_no_result(tmp_path: Path) -> None:
    file = tmp_path / "bare.sqlite"
    table = bare.Table(
        name="t", schema=["CREATE TABLE t (a INTEGER, b INTEGER)"], columns=["a", "b"], rows=[(1, 2)]
    )
    bare.insert_rows(file, table, per_commit=1)
    other = bare.Table(name="t", schema=[], columns=["a", "b"], rows=[(1, 3)])

    with pytest.raises(WorkNotDoneError, match="other rows in t"):
        bare.check_rows(file, other)
