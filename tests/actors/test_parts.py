"""`gather` and `race` make their parts together: a refusal of one leaves none behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from perdure import AmbiguousStepError, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.testing import open_test_runtime


class Refused(WorkflowEntrypoint[Any]):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> int:
        await step.do("all[b]", int, "3")  # takes the name, so that the second part is refused
        make = step.gather if event.payload == "gather" else step.race
        with pytest.raises(AmbiguousStepError):
            await make("all", {"a": lambda: 1, "b": lambda: 2})
        return 7


@pytest.mark.parametrize("replay", ["warm", "always"])
@pytest.mark.parametrize("how", ["gather", "race"])
async def test_a_refused_part_leaves_no_call_open(
    tmp_path: Path, replay: Literal["warm", "always"], how: str
) -> None:
    async with open_test_runtime(tmp_path / "state", workflows=[Refused], replay=replay) as runtime:
        instance = await runtime.create(Refused, params=how)
        assert 7 == await instance.result()
