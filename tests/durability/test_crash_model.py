"""The model disk of the power-loss proof: what each system call does to it, and what a crash may leave."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from powerloss.crash import CrashDisk, Found, difference, materialise
from powerloss.losses import LOSSES, All, Loss, Subset
from powerloss.trace import TraceReader, UnknownCallError
from powerloss.volume import Said, Volume

ROOT = "/v"


def hexed(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def fd(number: int, name: str) -> str:
    return f"{number}<{hexed(f'{ROOT}/{name}')}>"


def opened(number: int, name: str, flags: str = "O_RDWR|O_CREAT") -> str:
    return (
        f'9 openat(AT_FDCWD<{hexed(ROOT)}>, "{hexed(f"{ROOT}/{name}")}", {flags}, 0644) = {fd(number, name)}'
    )


def put(number: int, name: str, data: str, at: int = 0) -> str:
    return f'9 pwrite64({fd(number, name)}, "{hexed(data)}", {len(data)}, {at}) = {len(data)}'


def synced(number: int, name: str, call: str = "fdatasync") -> str:
    return f"9 {call}({fd(number, name)}) = 0"


ROOT_SYNCED = f"9 fsync(7<{hexed(ROOT)}>) = 0"


def disk_after(tmp_path: Path, *lines: str) -> CrashDisk:
    volume = Volume(ROOT)
    trace = tmp_path / "trace"
    trace.write_text("\n".join(lines) + "\n", "ascii")
    TraceReader(volume, "/acks").read(trace)
    disk = CrashDisk(volume.operations)
    disk.advance(len(volume.operations))
    return disk


def left(disk: CrashDisk, loss: type[Loss] = All, seed: int = 0) -> dict[str, bytes | None]:
    return contents(disk.fail(loss(random.Random(seed), disk.position)))


def contents(found: Found) -> dict[str, bytes | None]:
    return {path: None if file is None else file.content for path, file in found.items()}


def test_a_file_without_a_synced_entry_is_lost_however_often_it_was_synced(tmp_path: Path) -> None:
    lines = (opened(3, "a"), put(3, "a", "abc"), synced(3, "a"))

    assert {} == left(disk_after(tmp_path, *lines))
    assert {"a": b"abc"} == left(disk_after(tmp_path, *lines, ROOT_SYNCED))


def test_what_was_written_since_the_sync_may_be_lost(tmp_path: Path) -> None:
    disk = disk_after(
        tmp_path, opened(3, "a"), ROOT_SYNCED, put(3, "a", "abc"), synced(3, "a"), put(3, "a", "xyz", 2)
    )

    assert {"a": b"abc"} == left(disk)
    assert {"a": b"abxyz"} == left(disk, Loss)
    assert {b"abc", b"abx", b"abxyz", b"abc\0\0"} >= {left(disk, Subset, seed)["a"] for seed in range(50)}


def test_a_sync_covers_what_had_returned_when_it_was_called(tmp_path: Path) -> None:
    disk = disk_after(
        tmp_path,
        opened(3, "a"),
        ROOT_SYNCED,
        put(3, "a", "a"),
        f"8 fdatasync({fd(3, 'a')} <unfinished ...>",
        put(3, "a", "b", 1),
        "8 <... fdatasync resumed>) = 0",
    )

    assert {"a": b"a"} == left(disk)


def test_a_sync_of_the_file_system_covers_names_and_bytes(tmp_path: Path) -> None:
    disk = disk_after(
        tmp_path, f'9 mkdir("{hexed(f"{ROOT}/d")}", 0755) = 0', opened(3, "d/a"), put(3, "d/a", "abc"),
        f"9 syncfs(7<{hexed(ROOT)}>) = 0", opened(4, "b"),
    )  # fmt: skip

    assert {"d": None, "d/a": b"abc"} == left(disk)


def test_a_rename_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    renamed = f'9 rename("{hexed(f"{ROOT}/a")}", "{hexed(f"{ROOT}/b")}") = 0'
    disk = disk_after(tmp_path, opened(3, "a"), put(3, "a", "x"), synced(3, "a"), ROOT_SYNCED, renamed)

    assert {("a",), ("b",)} == {tuple(left(disk, Subset, seed)) for seed in range(50)}


def test_a_removed_file_comes_back_where_the_removal_is_lost(tmp_path: Path) -> None:
    removed = f'9 unlink("{hexed(f"{ROOT}/a")}") = 0'
    disk = disk_after(tmp_path, opened(3, "a"), put(3, "a", "x"), synced(3, "a"), ROOT_SYNCED, removed)

    assert {"a": b"x"} == left(disk)
    assert {} == left(disk, Loss)


def test_a_file_that_was_appended_to_may_have_its_size_and_not_its_bytes(tmp_path: Path) -> None:
    disk = disk_after(tmp_path, opened(3, "a"), ROOT_SYNCED, put(3, "a", "abc"))

    assert {"a": b"\0\0\0"} == left(disk, LOSSES["DataLost"])
    assert {"a": b""} == left(disk, LOSSES["GrowthLost"])


def test_what_the_program_says_stands_where_it_was_said(tmp_path: Path) -> None:
    volume = Volume(ROOT)
    said = '{"what": "x"}\n'
    trace = tmp_path / "trace"
    trace.write_text(f'9 write(5<{hexed("/acks")}>, "{hexed(said)}", {len(said)}) = {len(said)}\n', "ascii")
    TraceReader(volume, "/acks").read(trace)

    assert [Said({"what": "x"})] == volume.operations


@pytest.mark.parametrize(
    "line",
    [
        f"9 fallocate({fd(3, 'a')}, FALLOC_FL_PUNCH_HOLE, 0, 10) = 0",
        f'9 symlink("{hexed(f"{ROOT}/a")}", "{hexed(f"{ROOT}/b")}") = 0',
        f'9 write({fd(3, "a")}, "{hexed("abc")}"..., 3) = 3',
    ],
)
def test_a_call_that_the_model_does_not_know_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(UnknownCallError):
        disk_after(tmp_path, opened(3, "a"), line)


def test_what_is_materialised_does_not_differ(tmp_path: Path) -> None:
    disk = disk_after(tmp_path, opened(3, "a"), put(3, "a", "ab\0\0"))
    found = disk.fail(Loss(random.Random(0), disk.position))

    materialise(found, tmp_path / "made")

    assert [] == difference(found, tmp_path / "made")
    assert ["a"] == difference({}, tmp_path / "made")
