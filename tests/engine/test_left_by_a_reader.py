"""A reader that is open when the owner closes a file keeps the WAL: nothing in it may be overlooked."""

from __future__ import annotations

from pathlib import Path

import perdure
from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep

MANY = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
    SELECT n.i, steps.name FROM n, steps"""


class Signed(WorkflowEntrypoint[None]):
    async def run(self, _event: WorkflowEvent[None], step: WorkflowStep) -> str:
        await step.do("write", lambda: "a letter")
        await step.wait_for_event("signature", type="signed")
        return await step.do("send", lambda: "sent")


async def test_rows_written_under_a_readers_eyes_are_read_after_it_has_gone(tmp_path: Path) -> None:
    async with perdure.open_runtime(tmp_path, workflows=[Signed]) as runtime:
        instance = await runtime.create(Signed, id="letter")
        while not await instance.sql("SELECT 1 FROM steps WHERE status = 'waiting'"):
            pass
        async with instance.sql_stream(MANY) as rows:
            await rows.next_batch()
            await instance.send_event("signed")
            await instance.result()
            while runtime.statistics().warm:
                await instance.status()
            left_behind = (tmp_path / "Signed" / "letter.sqlite-wal").exists()

        names = [row.name for row in await instance.sql("SELECT name FROM steps ORDER BY seq")]

    assert left_behind
    assert names == ["write", "signature", "send"]
    assert ["letter.sqlite"] == [path.name for path in (tmp_path / "Signed").iterdir()]
