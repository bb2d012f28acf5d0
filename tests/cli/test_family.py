"""`perdure describe` and `perdure list` tell of parents and children."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_children_are_listed_with_their_status(place: Any) -> None:
    place.serve()
    place.create("Errand", "e1")
    while place.status("e1") != "waiting" or "ask" not in (place.json("describe", "e1")["reason"] or ""):
        continue

    children = place.json("describe", "e1")["children"]
    told = place.run("describe", "e1").out

    assert [
        ("greet[0]", "Greet/e1.greet[0]", "complete"),
        ("greet[1]", "Greet/e1.greet[1]", "complete"),
        ("ask", "Approval/e1.ask"),
    ] == [*[tuple(child.values())[:3] for child in children[:2]], tuple(children[2].values())[:2]]
    assert "child 'ask' (Approval/e1.ask)" in told
    assert "3 children: 2 complete, 1 " in told

    listed = place.json("list", "--parent", "e1", "--status", "complete")
    assert {"Greet/e1.greet[0]", "Greet/e1.greet[1]"} == {row["instance"] for row in listed}
    assert {"Errand/e1"} == {row["parent"] for row in listed}
    assert 3 == len(place.json("list", "--parent", "Errand/e1"))
    assert "parent   Errand/e1" in place.run("describe", "e1.ask").out

    place.run("send-event", "e1.ask", "approve", "7")
    while place.status("e1") != "complete":
        continue
    assert ["Ada", "Grace"] != place.json("describe", "e1")["result"]
    assert {"complete"} == {child["status"] for child in place.json("describe", "e1")["children"]}
