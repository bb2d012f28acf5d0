"""`perdure repair` as a person meets it; what it does is tested in engine/test_repair.py."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_after_the_catalog_was_lost_the_instances_are_listed_again(place: Any) -> None:
    place.run("run", "workflows.py:Greet", "--params", '"Ada"', "--id", "ada")
    (place.state / "catalog.sqlite").unlink()
    refused = place.run("list")

    done = place.run("repair")

    assert 4 == refused.status
    assert 0 == done.status, done.err
    assert "1 instance restored, missing from the catalog:\n  Greet/ada\n" in done.out
    assert "instances that were created and had not started" in done.out
    assert ["Greet/ada"] == [row["instance"] for row in place.json("list")]


def test_a_dry_run_changes_nothing_and_says_so(place: Any) -> None:
    place.run("run", "workflows.py:Greet", "--params", '"Ada"', "--id", "ada")
    (place.state / "catalog.sqlite").unlink()

    done = place.run("repair", "--dry-run")

    assert "would be restored" in done.out
    assert not (place.state / "catalog.sqlite").exists()


def test_a_damaged_file_ends_in_a_status_of_its_own_after_the_rest_was_repaired(place: Any) -> None:
    place.run("run", "workflows.py:Greet", "--params", '"Ada"', "--id", "ada")
    place.run("run", "workflows.py:Greet", "--params", '"Bo"', "--id", "bo")
    (place.state / "catalog.sqlite").unlink()
    (place.state / "Greet" / "bo.sqlite").write_bytes(b"spilt coffee" * 1000)

    done = place.run("repair")
    report = place.run("repair", "--json").json

    assert 4 == done.status
    assert "Greet/bo.sqlite: file is not a database" in done.out
    assert (True, ["Greet/bo.sqlite"]) == (
        report["needs_a_person"],
        [each["name"] for each in report["damaged"]],
    )
    assert ["Greet/ada"] == [row["instance"] for row in place.json("list")]


def test_a_folder_in_use_is_not_repaired(place: Any) -> None:
    serving = place.serve()

    done = place.run("repair")

    assert (4, 1) == (done.status, done.err.count("\n"))
    assert f"process {serving.pid}" in done.err


def test_a_folder_that_is_not_ours_is_refused_in_one_line(place: Any) -> None:
    done = place.run("repair", "--state", str(place.folder))

    assert (4, 1) == (done.status, done.err.count("\n"))
    assert not (place.folder / "owner.lock").exists()
