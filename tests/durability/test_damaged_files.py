"""A damaged instance file: it is reported and left alone, and the others go on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.storage.schema import PAGE_BYTES
from perdure.testing import open_test_runtime


async def page(n: int) -> str:
    return f"{n:05}" * 1_000


class Diary(perdure.WorkflowEntrypoint[None]):
    """Writes a few pages, waits to be told to go on, and reads them again."""

    async def run(self, event: perdure.WorkflowEvent[None], step: perdure.WorkflowStep) -> int:
        pages = [await step.do(f"page {n}", page, n) for n in range(20)]
        await step.wait_for_event("go", type="go", timeout=None)
        return len(pages)


def whole(path: Path) -> None:
    """Overwrite the file from its first byte to its last."""
    path.write_bytes(b"\xa5" * path.stat().st_size)


def middle(path: Path) -> None:
    """Overwrite all pages but the first, on which the header stands."""
    with path.open("r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(b"\xa5" * (path.stat().st_size - PAGE_BYTES))


def last_pages(path: Path) -> None:
    """Overwrite the second half, where results stand."""
    half = path.stat().st_size // PAGE_BYTES // 2 * PAGE_BYTES
    with path.open("r+b") as file:
        file.seek(half)
        file.write(b"\xa5" * (path.stat().st_size - half))


def half_gone(path: Path) -> None:
    """Cut the file off in the middle."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // PAGE_BYTES // 2 * PAGE_BYTES)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path) -> None:
    path.unlink()


DAMAGES = [whole, middle, last_pages, half_gone, empty, missing]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_a_damaged_instance_is_reported_and_the_others_go_on(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    async with open_test_runtime(tmp_path / "state", workflows=[Diary]) as runtime:
        for name in ("hurt", "well"):
            instance = await runtime.create(Diary, id=name)
            await until_it_waits(instance)
    path = tmp_path / "state" / "Diary" / "hurt.sqlite"
    damage(path)
    left = path.read_bytes() if path.exists() else None

    async with open_test_runtime(tmp_path / "state", workflows=[Diary]) as runtime:
        well = await runtime.get(Diary, "well")
        hurt = await runtime.get(Diary, "hurt")
        await well.send_event("go")
        assert 20 == await well.result()
        with pytest.raises(perdure.PerdureError, match="hurt.sqlite"):
            await hurt.send_event("go")
        with pytest.raises(perdure.PerdureError, match="hurt.sqlite"):
            await hurt.result()
        status = await hurt.status()
        assert "dead" == status.status
        assert "hurt.sqlite" in (status.reason or "")
        with pytest.raises(perdure.PerdureError):
            await hurt.sql("SELECT count(*) FROM steps")

    assert left == (path.read_bytes() if path.exists() else None), "what may be salvaged was left as it was"


async def until_it_waits(instance: perdure.Instance[Any]) -> None:
    """Return once the instance has written all it writes before it waits."""
    async with contextlib.aclosing(instance.subscribe()) as entries:
        async for entry in entries:
            if entry.step == "go":
                return


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_the_result_of_an_instance_whose_file_was_damaged_later_is_a_clear_error(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    async with open_test_runtime(tmp_path / "state", workflows=[Diary]) as runtime:
        instance = await runtime.create(Diary, id="hurt", event=("go", None))
        assert 20 == await instance.result()
    damage(tmp_path / "state" / "Diary" / "hurt.sqlite")

    async with open_test_runtime(tmp_path / "state", workflows=[Diary]) as runtime:
        instance = await runtime.get(Diary, "hurt")
        if damage is last_pages:  # its own row is whole, and so is its result
            assert 20 == await instance.result()
            return
        with pytest.raises(perdure.InstanceDamagedError, match="hurt.sqlite"):
            await instance.result()
        assert "complete" == (await instance.status()).status
