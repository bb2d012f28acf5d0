"""A disk that fills up, on a real file system of a few megabytes: told, survived, gone on from.

Needs the right to mount a tmpfs; the tests are skipped with that reason where there is none.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import perdure
from perdure.storage.disk import Disk

pytestmark = pytest.mark.slow

DISK_BYTES = 6 * 1024 * 1024
SOON_S = 20.0
"""A machine that is busy may take its time; nobody waits for this long where all is well."""
LIMITS = perdure.Limits(reset_delay_s=0.1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return the folder where a file system of a few megabytes is mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux may mount a tmpfs")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a tmpfs be mounted")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


class Filler:
    """A file that takes all the room there is."""

    def __init__(self, disk: Path) -> None:
        self._path = disk / "filler"

    def fill(self) -> None:
        with contextlib.suppress(OSError), self._path.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def leave(self, free_bytes: int) -> None:
        """Take all the room but so much."""
        self.fill()
        os.truncate(self._path, self._path.stat().st_size - free_bytes)

    def clear(self) -> None:
        self._path.unlink()


@pytest.fixture
def filler(small_disk: Path) -> Filler:
    return Filler(small_disk)


async def bulky(n: int) -> str:
    return f"{n:05}" * 4_000


class Bulky(perdure.WorkflowEntrypoint[None]):
    """Writes twenty values of 20 KB and counts its events."""

    async def run(self, event: perdure.WorkflowEvent[int], step: perdure.WorkflowStep) -> int:
        for n in range(event.payload):
            text = await step.do(f"bulky {n}", bulky, n)
            assert text.startswith(f"{n:05}")
            await step.sleep(f"nap {n}", 0.001)
        return event.payload


class Count(perdure.WorkflowEntrypoint[None]):
    """Takes events until it is told how many there were."""

    async def run(self, event: perdure.WorkflowEvent[None], step: perdure.WorkflowStep) -> list[int]:
        seen: list[int] = []
        while -1 not in seen:
            seen.append((await step.wait_for_event("next", type="next", timeout=None, returns=int)).payload)
        return seen


async def until_refused(call: Callable[[int], Awaitable[Any]]) -> tuple[int, perdure.PerdureError]:
    """Call with 0, 1, 2 … until it is refused; return how many calls came through, and the refusal."""
    for n in range(100_000):
        try:
            await call(n)
        except perdure.PerdureError as error:
            return n, error
    raise AssertionError("the disk did not fill up")


async def until_under_way(instance: perdure.Instance[Any]) -> None:
    """Return once the instance has begun a few steps."""
    async with contextlib.aclosing(instance.subscribe()) as entries:
        async for entry in entries:
            if entry.step == "bulky 5":
                return


async def until_reported(instance: perdure.Instance[Any]) -> None:
    """Return once the instance's status tells that the disk is full."""
    with trio.fail_after(SOON_S):
        reason: str | None = None
        while "is full" not in (reason or ""):
            await trio.sleep(0.01)
            try:
                reason = (await instance.status()).reason
            except perdure.StorageFullError as error:  # asked while the write was failing
                reason = str(error)


def test_a_file_for_which_there_is_half_the_room_is_not_there(small_disk: Path, filler: Filler) -> None:
    filler.leave(8192)

    with pytest.raises(OSError, match="No space"):
        Disk().write_new(small_disk / "one.sqlite", bytes(65536), durable=True)

    assert ["filler"] == [path.name for path in small_disk.iterdir()]


async def test_a_full_disk_refuses_creations_and_keeps_those_it_took(
    small_disk: Path, filler: Filler
) -> None:
    async with perdure.open_runtime(small_disk / "state", workflows=[Bulky], limits=LIMITS) as runtime:
        await runtime.create(Bulky, params=0, id="before")
        filler.fill()
        taken, error = await until_refused(lambda n: runtime.create(Bulky, params=1, id=f"n{n}"))
        assert isinstance(error, perdure.StorageFullError)
        assert "is full" in str(error)

        filler.clear()
        with trio.fail_after(SOON_S):
            for n in range(taken):
                assert 1 == await (await runtime.get(Bulky, f"n{n}")).result()
            with pytest.raises(perdure.InstanceNotFoundError):
                await runtime.get(Bulky, f"n{taken}")
            assert 2 == await (await runtime.create(Bulky, params=2, id=f"n{taken}")).result()


async def test_an_instance_goes_on_by_itself_when_there_is_room_again(
    small_disk: Path, filler: Filler
) -> None:
    async with perdure.open_runtime(small_disk / "state", workflows=[Bulky], limits=LIMITS) as runtime:
        instance = await runtime.create(Bulky, params=60, id="one")
        await until_under_way(instance)
        filler.fill()
        await until_reported(instance)

        filler.clear()
        with trio.fail_after(SOON_S):
            assert 60 == await instance.result()
            rows = await instance.sql("SELECT status, count(*) AS n FROM steps GROUP BY 1")
            assert [("completed", 120)] == [(row.status, row.n) for row in rows]


async def test_an_event_is_refused_on_a_full_disk_and_none_that_was_taken_is_lost(
    small_disk: Path, filler: Filler
) -> None:
    async with perdure.open_runtime(small_disk / "state", workflows=[Count], limits=LIMITS) as runtime:
        instance = await runtime.create(Count, id="one")
        await instance.send_event("next", 1_000_000)
        filler.fill()
        taken, error = await until_refused(lambda n: instance.send_event("next", n))
        assert isinstance(error, perdure.StorageFullError)

        filler.clear()
        with trio.fail_after(SOON_S):
            await send_the_last(instance)
            seen = await instance.result()
    assert [1_000_000, *range(taken)] == [n for n in seen if n not in (-1, taken)]


async def send_the_last(instance: perdure.Instance[Any]) -> None:
    """Send the last event; the instance may still be resting from its failed write."""
    while True:
        try:
            await instance.send_event("next", -1)
        except perdure.StateError:
            await trio.sleep(0.05)
        else:
            return


async def test_a_runtime_that_ends_on_a_full_disk_leaves_everything_to_the_next(
    small_disk: Path, filler: Filler
) -> None:
    with trio.fail_after(SOON_S):
        async with perdure.open_runtime(small_disk / "state", workflows=[Bulky], limits=LIMITS) as runtime:
            instance = await runtime.create(Bulky, params=60, id="one")
            await until_under_way(instance)
            filler.fill()
            await until_reported(instance)
        filler.clear()
        async with perdure.open_runtime(small_disk / "state", workflows=[Bulky], limits=LIMITS) as runtime:
            assert 60 == await (await runtime.get(Bulky, "one")).result()


async def test_no_state_folder_is_made_on_a_full_disk(small_disk: Path, filler: Filler) -> None:
    filler.fill()

    with pytest.raises(perdure.StateError, match="full|no room|No space"):
        async with perdure.open_runtime(small_disk / "state", workflows=[Bulky]):
            pass

    filler.clear()
    async with perdure.open_runtime(small_disk / "state", workflows=[Bulky]) as runtime:
        assert 1 == await (await runtime.create(Bulky, params=1)).result()


async def test_a_state_folder_on_a_read_only_disk_is_refused(small_disk: Path) -> None:
    async with perdure.open_runtime(small_disk / "state", workflows=[Bulky]) as runtime:
        await (await runtime.create(Bulky, params=1, id="one")).result()
    await trio.run_process(["mount", "-o", "remount,ro", str(small_disk)])

    with pytest.raises(perdure.StateUnusableError, match="read-only"):
        async with perdure.open_runtime(small_disk / "state", workflows=[Bulky]):
            pass

    assert ["one.sqlite"] == [path.name for path in (small_disk / "state" / "Bulky").iterdir()]
