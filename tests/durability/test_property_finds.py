"""The property test finds what it is for: the runtime is broken by hand, and programs fail.

Each break is one that a careless change could make. Where no program fails, the property test has
stopped to look.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from perdure.actors.child_host import ChildRequest
from perdure.actors.rollback import InstanceRollback
from perdure.engine.children import ChildMaker
from perdure.storage.journal import Journal
from property.expected import expect
from property.lives import Case, survive
from property.strategy import programs
from property.tree import AnyNode, Child, Do, Program, Raise, Sleep, Wait
from property.verdict import judge

pytestmark = pytest.mark.slow

PROGRAMS_MAX = 60
CHECKS: list[HealthCheck] = list(HealthCheck)  # pyright: ignore[reportAssignmentType]  # hypothesis' iteration is untyped
DONE = (Do(), Do(), Do(), Do())
UNDONE = (Do(undo="ok"), Do(undo="ok"), Raise())


def look(program: Program, stops: list[int]) -> None:
    """Run one program and fail where it does not come to what it must."""
    expected = expect(program, "p")
    with tempfile.TemporaryDirectory() as folder:
        case = Case(folder=Path(folder), program=program, sends=expected.sends, replay="always")
        ended, _ = survive(case, stops)
        judge(case, expected, ended)


def found_by_programs(*last: AnyNode) -> None:
    """Generate programs, each with these nodes at its end, until one fails, which is raised."""

    @seed(1)
    @settings(
        max_examples=PROGRAMS_MAX, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=CHECKS, report_multiple_bugs=False,
    )  # fmt: skip
    @given(programs(), st.lists(st.integers(1, 80), max_size=5))
    def search(program: Program, stops: list[int]) -> None:
        *others, block = program.generations
        look(msgspec.structs.replace(program, generations=(*others, (*block, *last))), stops)

    search()


def test_a_journal_that_forgets_a_record_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Journal.load

    opened: set[Journal] = set()

    def forget_one(self: Journal) -> None:
        whole(self)
        finished = [identity for identity, step in self.unasked.items() if step.finished]
        if finished and self not in opened:
            opened.add(self)
            del self.unasked[finished[-1]]

    monkeypatch.setattr(Journal, "load", forget_one)

    with pytest.raises(AssertionError, match="expected"):
        found_by_programs(*DONE)


def test_a_rollback_in_the_order_of_the_starts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped: Any = InstanceRollback.__dict__["_left"]

    def turned(self: InstanceRollback) -> Any:
        return shipped(self)[::-1]

    monkeypatch.setattr(InstanceRollback, "_left", turned)

    with pytest.raises(AssertionError, match="rollback"):
        found_by_programs(*UNDONE)


def test_a_child_that_is_started_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = ChildMaker.start
    replace = msgspec.structs.replace

    async def start_twice(self: ChildMaker, requests: Sequence[ChildRequest]) -> Any:
        others = [
            replace(
                each, ref=replace(each.ref, child=f"{each.ref.child}-2", incarnation=each.ref.incarnation ^ 1)
            )
            for each in requests
        ]
        await shipped(self, others)
        return await shipped(self, requests)

    monkeypatch.setattr(ChildMaker, "start", start_twice)

    with pytest.raises(AssertionError, match="instances there are"):
        found_by_programs(Child((Do(),)))


@pytest.mark.parametrize(
    "block",
    [
        (Do(undo="ok"), Do(undo="flaky"), Raise()),
        (Do(undo="ok"), Do(undo="stuck"), Do(ending="exhausted", undo="ok")),
        (Sleep(), Wait(), Wait(picky=True), Child((Do(fails=2), Do(large=True)))),
    ],
)
def test_what_a_person_would_write_down_first_comes_to_what_it_must(block: tuple[AnyNode, ...]) -> None:
    look(Program((block,)), [])
    look(Program((block,)), list(range(1, 40)))
