"""`perdure call`: methods of instances, from a second process."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_a_method_is_called_and_its_result_printed(place: Any) -> None:
    place.serve()
    place.create("Approval", "a1")

    assert "[4]" == place.run("call", "a1", "answer", "[4]").out.strip()
    assert 0 == place.run("watch", "a1").status
    assert {"answer": 4} == place.json("describe", "a1")["result"]
    history = place.json("sql", "a1", "SELECT what, actor, detail FROM history WHERE what = 'call'")
    assert [("call", "answer")] == [(row["what"], row["detail"]) for row in history]
    assert history[0]["actor"]


def test_arguments_go_by_name_too_and_the_answer_is_json(place: Any) -> None:
    place.serve()
    place.create("Approval", "a1")

    told = place.json("call", "a1", "answer", '{"number": 4, "twice": true}')

    assert {"instance": "Approval/a1", "method": "answer", "value": [4]} == told
    place.run("watch", "a1")
    assert {"answer": 8} == place.json("describe", "a1")["result"]


def test_what_a_method_raises_and_what_does_not_fit_is_told(place: Any) -> None:
    place.serve()
    place.create("Approval", "a1")

    for arguments, why in (
        ("[-1]", "answer() raised ValueError: no such answer"),
        ("[]", "missing a required argument: 'number'"),
        ('["four"]', "int"),
        ("7", "must be a JSON list of arguments"),
        ("[", "not valid JSON"),
    ):
        refused = place.run("call", "a1", "answer", arguments)
        assert 0 != refused.status
        assert why in refused.err
    assert "has no method 'ask'" in place.run("call", "a1", "ask").err


def test_where_nobody_runs_the_workflow_the_call_is_refused(place: Any) -> None:
    place.create("Approval", "a1")

    refused = place.run("call", "a1", "answer", "[4]")

    assert 0 != refused.status
    assert "this process has no class for it" in refused.err
