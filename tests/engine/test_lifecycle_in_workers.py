"""Restart, deletion, retention and bulk commands where the instances run in other processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

from perdure import (
    InstanceExpiredError,
    InstanceNotFoundError,
    Retention,
    Runtime,
    StepNotFoundError,
)

pytestmark = pytest.mark.slow
OpenShared = Callable[..., AbstractAsyncContextManager[Runtime]]
LOOK_S = 0.02


async def test_an_instance_of_a_worker_is_restarted_running_and_finished(
    open_shared: OpenShared, shared: ModuleType, tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    async with open_shared(workers=2) as runtime:
        job = shared.Job(lines=str(lines), name="j")
        instance = await runtime.create(shared.Counted, params=job, id="j")
        await instance.result()
        for _ in range(3):
            await instance.restart(who="Ada")
            await instance.result()

        with pytest.raises(StepNotFoundError, match="it has: do"):
            await instance.restart("no such step")
        (own,) = await instance.sql("SELECT generation, status FROM instance")
        told = [entry.actor for entry in await instance.history() if entry.what == "restart"]

    assert (4, "complete") == (own.generation, own.status)
    assert ["Ada"] * 3 == told
    assert 4 * 3 == len(lines.read_text().splitlines())


async def test_an_instance_of_a_worker_is_deleted_running_and_finished(
    open_shared: OpenShared, shared: ModuleType, tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    async with open_shared(workers=2) as runtime:
        for number in range(3):
            job = shared.Job(lines=str(lines), name="j", nap_s=30.0 if number == 1 else 0.0)
            instance = await runtime.create(shared.Counted, params=job, id="j")
            if number != 1:
                await instance.result()
            else:
                await instance.sql("SELECT 1")
            await instance.delete()
            with pytest.raises(InstanceNotFoundError):
                await instance.result()
            assert [] == list((runtime.path / "Counted").iterdir())


async def test_many_instances_of_workers_are_commanded_and_deleted(
    open_shared: OpenShared, shared: ModuleType, tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    async with open_shared(workers=2) as runtime:
        jobs: list[Any] = [
            {"id": f"j{n}", "params": shared.Job(lines=str(lines), name=f"j{n}", nap_s=30.0)}
            for n in range(60)
        ]
        created = await runtime.create_batch(shared.Counted, jobs)

        ended = await runtime.select(shared.Counted).terminate(who="Ada")
        done = await runtime.delete_batch(shared.Counted, [*(each.id for each in created), "nobody"])

        assert 60 == len(ended.done)
        assert (60, ["not_found"]) == (len(done.deleted), [error.code for error in done.errors])
        assert [] == runtime.rows()


async def test_the_supervisor_expires_what_workers_have_ended(
    open_shared: OpenShared, shared: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.engine.expiry.LOOK_S", LOOK_S)
    lines = tmp_path / "lines"
    async with open_shared(workers=2) as runtime:
        job = shared.Job(lines=str(lines), name="j")
        instance = await runtime.create(shared.Counted, params=job, id="j", retention=Retention(complete=0))
        with trio.fail_after(60):
            while not (runtime.rows()[0].reason or "").startswith("expired"):  # noqa: ASYNC110 - of another process
                await trio.sleep(LOOK_S)

        assert [] == list((runtime.path / "Counted").iterdir())
        with pytest.raises(InstanceExpiredError):
            await instance.history()
