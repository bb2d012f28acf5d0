"""`perdure create --batch`: instances from JSON lines, with and without a process that serves."""

from __future__ import annotations

import json
from typing import Any

import pytest

LINES = '"Ada"\n\n{"id": "b", "params": "Bea"}\n{"params": "Cleo"}\n'


def test_each_line_becomes_an_instance(anyplace: Any) -> None:
    anyplace.folder.joinpath("names.jsonl").write_text(LINES)
    done = anyplace.run("create", "workflows.py:Greet", "--batch", "names.jsonl")

    names = done.out.split()
    assert 0 == done.status
    assert "created 3\n" == done.err.split("queued:")[0]
    assert "Greet/b" == names[1]
    assert {"Greet"} == {name.partition("/")[0] for name in names}
    assert sorted(names) == sorted(row["instance"] for row in anyplace.json("list"))


def test_a_served_workflow_is_created_by_its_name_and_runs(place: Any) -> None:
    place.serve()
    done = place.run("create", "Greet", "--batch", "-", "--json", stdin=LINES)

    assert (3, 0) == (len(done.json["created"]), done.json["skipped"])
    for instance_id in done.json["created"]:
        assert 0 == place.run("watch", f"Greet/{instance_id}").status
    assert ["Ada", "Bea", "Cleo"] == sorted(place.ran())


def test_a_batch_with_ids_may_be_repeated(place: Any) -> None:
    lines = "".join(json.dumps({"id": f"n{number}", "params": "x"}) + "\n" for number in range(2_500))
    first = place.run("create", "workflows.py:Greet", "--batch", "-", "--json", stdin=lines)
    again = place.run(
        "create", "workflows.py:Greet", "--batch", "-", stdin=lines + '{"id": "new", "params": "y"}'
    )

    assert [f"n{number}" for number in range(2_500)] == first.json["created"]
    assert "Greet/new\n" == again.out
    assert "created 1; 2,500 exist already and were left as they are\n" in again.err


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('"Ada"\n{"id"\n', "line 2 is not JSON"),
        ('"Ada"\n"Bea"\n{"params": 7}\n', "line 3: params do not fit str"),
        ('"Ada"\n{"params": "Bea", "id": 7}\n', "line 2: an id is text, not 7"),
        ('"Ada"\n{"params": "Bea", "id": ""}\n', "instance id ''"),
    ],
)
def test_a_line_that_is_wrong_is_named_and_nothing_is_created(place: Any, lines: str, told: str) -> None:
    done = place.run("create", "workflows.py:Greet", "--batch", "-", stdin=lines)

    assert 2 == done.status
    assert told in done.err
    assert [] == (place.json("list") if place.state.exists() else [])


def test_params_that_an_owner_refuses_are_told_by_it(place: Any) -> None:
    place.serve()
    done = place.run("create", "Greet", "--batch", "-", stdin='"Ada"\n7\n')

    assert 2 == done.status
    assert "entry 1 of the batch: params do not fit str" in done.err
    assert [] == place.json("list")


@pytest.mark.parametrize("option", [["--params", "1"], ["--id", "a"], ["--if-exists", "attach"]])
def test_a_batch_takes_no_options_of_one_instance(cli: Any, option: list[str]) -> None:
    done = cli("create", "workflows.py:Greet", "--batch", "-", *option)

    assert 2 == done.status
    assert "--batch has params and ids in its lines" in done.err


def test_a_batch_for_a_name_that_nobody_serves_says_what_to_do(place: Any) -> None:
    place.create("Greet", "g", '"Ada"')
    done = place.run("create", "Greet", "--batch", "-", stdin='"Bea"\n')

    assert 2 == done.status
    assert "no process serves" in done.err


def test_a_file_that_is_not_there_is_named(cli: Any) -> None:
    done = cli("create", "workflows.py:Greet", "--batch", "missing.jsonl")

    assert 2 == done.status
    assert "missing.jsonl cannot be read: No such file" in done.err
