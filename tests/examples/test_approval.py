"""`examples/approval.py` on a clock that jumps: who is asked, how often, and when it gives up."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from perdure.actors.host import Replay
from perdure.engine.app import load_module
from perdure.testing import VirtualClock, open_test_runtime

pytestmark = pytest.mark.checkout

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "approval.py"
REPLAYS: list[Replay] = ["warm", "always"]


@pytest.fixture
def approval() -> ModuleType:
    return load_module(PROGRAM)


@pytest.mark.parametrize("replay", REPLAYS)
async def test_who_never_answers_is_reminded_and_then_somebody_else_is_asked(
    tmp_path: Path, approval: ModuleType, replay: Replay
) -> None:
    clock = VirtualClock()
    before = clock.wall_ms()
    async with open_test_runtime(
        tmp_path, workflows=[approval.Approval], replay=replay, clock=clock
    ) as runtime:
        request = await runtime.create(approval.Approval, params=approval.Request("a kite"))

        assert (
            approval.Verdict("expired: nobody answered", ["Ada", "Ada", "the boss"]) == await request.result()
        )

    assert 3 * 86_400_000 <= clock.wall_ms() - before < 3 * 86_400_000 + 1_000


@pytest.mark.parametrize("replay", REPLAYS)
async def test_an_answer_ends_the_reminders(tmp_path: Path, approval: ModuleType, replay: Replay) -> None:
    async with open_test_runtime(tmp_path, workflows=[approval.Approval], replay=replay) as runtime:
        answer = {"by": "Ada", "yes": False}
        request = await runtime.create(
            approval.Approval, params=approval.Request("a yacht"), event=("answer", answer)
        )

        assert approval.Verdict("refused by Ada", ["Ada"]) == await request.result()
