"""`perdure doctor`: it finds what is wrong, changes nothing, and exits with 1 where a person is needed."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def finding(diagnosis: Any, what: str) -> Any:
    (found,) = [each for each in diagnosis["findings"] if each["what"] == what]
    return found


def listing(place: Any) -> list[str]:
    return sorted(str(path.relative_to(place.folder)) for path in place.folder.rglob("*"))


def test_where_there_is_no_state_yet_the_machine_is_looked_at(place: Any) -> None:
    before = listing(place)

    diagnosis = place.run("doctor", "--json").json

    assert sqlite3.sqlite_version == finding(diagnosis, "sqlite")["facts"]["version"]
    assert "serialized" == finding(diagnosis, "sqlite threads")["facts"]["mode"]
    assert finding(diagnosis, "syncs")["facts"]["syncs_per_s"] > 0
    assert "there is no state here yet" == finding(diagnosis, "catalog")["value"]
    assert before == listing(place)


def test_a_folder_in_order_has_no_problem(place: Any) -> None:
    place.run("run", "workflows.py:Greet", "--params", '"Ada"', "--id", "ada")
    before = listing(place)

    done = place.run("doctor")

    assert 0 == done.status, done.out
    assert "All in order" in done.out
    assert "1 complete" in done.out
    assert "1 of 1 checked" in done.out
    assert before == listing(place)


def test_a_damaged_file_needs_a_person(place: Any) -> None:
    place.run("run", "workflows.py:Greet", "--params", '"Ada"', "--id", "ada")
    (place.state / "Greet" / "ada.sqlite").write_bytes(b"spilt coffee" * 1000)

    done = place.run("doctor", "--json")

    assert (1, 1) == (done.status, done.json["problems"])
    assert "Greet/ada.sqlite" == finding(done.json, "damaged")["facts"]["file"]


def test_a_damaged_catalog_needs_a_person_and_repair_is_named(place: Any) -> None:
    place.run("run", "workflows.py:Greet", "--params", '"Ada"', "--id", "ada")
    (place.state / "catalog.sqlite").write_bytes(b"spilt coffee" * 1000)

    done = place.run("doctor", "--json")

    assert 1 == done.status
    assert "perdure repair" in finding(done.json, "catalog")["advice"]


def test_a_folder_that_a_process_has_is_looked_at_without_its_files(place: Any) -> None:
    serving = place.serve()
    place.create("Approval", "a1")

    done = place.run("doctor", "--json")

    assert 0 == done.status, done.json
    assert serving.pid == finding(done.json, "owner")["facts"]["pid"]
    assert 0 == finding(done.json, "files")["facts"]["checked"]
    assert 1 == sum(finding(done.json, "instances")["facts"].values())


def test_what_a_killed_process_had_open_is_a_note_and_no_problem(place: Any) -> None:
    serving = place.serve()
    place.create("Approval", "a1")
    while "asked" not in place.ran():
        pass
    serving.kill()
    serving.wait()

    done = place.run("doctor", "--json")

    assert 0 == done.status, done.json
    assert 1 == finding(done.json, "marked open")["facts"]["count"]
    assert finding(done.json, "relay log")["facts"]["segments"] > 0
    assert finding(done.json, "last process")["facts"] == {"pid": serving.pid, "died": True}


def test_no_more_files_are_checked_than_asked_for(place: Any) -> None:
    for name in ("ada", "bo"):
        place.run("run", "workflows.py:Greet", "--params", f'"{name}"', "--id", name)

    done = place.run("doctor", "--files", "1", "--json")

    assert finding(done.json, "files")["facts"] == {"checked": 1, "files": 2}
