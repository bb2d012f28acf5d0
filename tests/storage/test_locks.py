"""A folder has one owner, which dies with its process; network file systems are told apart."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from perdure.errors import StateLockedError, StateUnusableError
from perdure.storage.locks import (
    HOLDER_UNKNOWN,
    FolderLock,
    Mount,
    network_file_system,
    parse_mount_output,
    parse_mountinfo,
)

HOLD = """
import sys
from perdure.storage.locks import FolderLock
lock = FolderLock.acquire(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
lock.release()
"""

HOLD_WITH_A_CHILD = """
import os, subprocess, sys
from perdure.storage.locks import FolderLock
lock = FolderLock.acquire(sys.argv[1])
if sys.argv[2] == "fork":
    child = os.fork()
    if child == 0:
        print("child", os.getpid(), flush=True)
        sys.stdin.read()
        os._exit(0)
else:
    code = "import os, sys; print('child', os.getpid(), flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], close_fds=False)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@contextlib.contextmanager
def process(code: str, *arguments: str | Path) -> Generator[subprocess.Popen[str], None, None]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def line_of(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    return running.stdout.readline().strip()


def test_a_lock_is_held_until_it_is_released(path: Path) -> None:
    assert FolderLock.holder(path) is None
    lock = FolderLock.acquire(path)
    assert os.getpid() == FolderLock.holder(path)
    assert "held" in repr(lock)
    lock.release()
    assert FolderLock.holder(path) is None
    assert "released" in repr(lock)


def test_a_released_lock_can_be_taken_again_and_released_twice(path: Path) -> None:
    with FolderLock.acquire(path) as lock:
        lock.release()
        with FolderLock.acquire(path):
            lock.release()
            assert os.getpid() == FolderLock.holder(path)


def test_the_same_process_cannot_take_it_twice_and_is_told_so(path: Path) -> None:
    with FolderLock.acquire(path), pytest.raises(StateLockedError, match="this very process") as caught:
        FolderLock.acquire(path)
    assert os.getpid() == caught.value.pid


def test_another_process_that_holds_it_is_named_with_its_command_line(path: Path) -> None:
    with process(HOLD, path) as other:
        assert "held" == line_of(other)
        with pytest.raises(StateLockedError) as caught:
            FolderLock.acquire(path)
        assert other.pid == caught.value.pid == FolderLock.holder(path)
        assert str(path) == caught.value.path
    assert f"{path.parent} is in use by process {other.pid} ({sys.executable}" in str(caught.value)
    assert "give another state folder" in str(caught.value)


def test_a_lock_ends_with_its_process_even_by_sigkill(path: Path) -> None:
    with process(HOLD, path) as other:
        assert "held" == line_of(other)
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert FolderLock.holder(path) is None
        FolderLock.acquire(path).release()


def test_a_frozen_process_keeps_its_lock(path: Path) -> None:
    with process(HOLD, path) as other:
        assert "held" == line_of(other)
        other.send_signal(signal.SIGSTOP)
        with pytest.raises(StateLockedError):
            FolderLock.acquire(path)


@pytest.mark.parametrize("kind", ["spawn", "fork"])
def test_a_child_does_not_keep_the_lock_of_a_killed_parent(path: Path, kind: str) -> None:
    with process(HOLD_WITH_A_CHILD, path, kind) as parent:
        word, child = line_of(parent).split()
        assert "child" == word
        assert parent.pid == FolderLock.holder(path)  # nor did the child free it
        parent.kill()
        parent.wait()
        os.kill(int(child), 0)  # the child is alive, which is the point
        assert FolderLock.holder(path) is None
        FolderLock.acquire(path).release()
        os.kill(int(child), signal.SIGKILL)


def test_the_descriptor_is_not_inheritable(path: Path) -> None:
    with FolderLock.acquire(path):
        ours = [fd for fd in range(256) if is_open(fd) and os.path.samestat(os.fstat(fd), path.stat())]
        assert [False] == [os.get_inheritable(fd) for fd in ours]


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_a_deleted_lock_file_is_made_anew_and_not_mistaken_for_the_old(path: Path) -> None:
    with FolderLock.acquire(path):
        path.unlink()
        with FolderLock.acquire(path):
            assert os.getpid() == FolderLock.holder(path)
        assert path.exists()


def test_a_holder_that_its_file_does_not_name_is_reported_as_unknown(path: Path) -> None:
    with FolderLock.acquire(path):
        path.write_text("not ours")
        assert HOLDER_UNKNOWN == FolderLock.holder(path)
        with pytest.raises(StateLockedError, match="does not name") as caught:
            FolderLock.acquire(path)
    assert caught.value.pid is None


def test_the_text_left_by_a_dead_process_locks_nothing(path: Path) -> None:
    path.write_text('{"pid": 1, "command": "old", "host": "here"}\n')
    assert FolderLock.holder(path) is None
    with FolderLock.acquire(path):
        assert os.getpid() == FolderLock.holder(path)


def test_a_folder_that_does_not_exist_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StateUnusableError, match="must exist and be writable"):
        FolderLock.acquire(tmp_path / "nowhere" / "lock")


MOUNTINFO = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / /srv/my\\040share rw - nfs4 nas:/export rw,vers=4.2
41 22 0:36 / /home/ada/remote rw shared:9 - fuse.sshfs ada@host: rw
42 22 0:37 / /mnt/c rw,noatime - 9p C:\\134 rw
43 40 0:38 / /srv/my\\040share/local rw - xfs /dev/sdb1 rw
44 22 0:39 / /data rw - cifs //nas/data rw
45 44 0:40 / /data rw - ext4 /dev/sdc1 rw
a line of some later kernel
"""


@pytest.mark.parametrize(
    ("expected", "place"),
    [
        (None, "/var/lib/state"),
        ("nfs4", "/srv/my share/state"),
        (None, "/srv/my share/local/state"),
        (None, "/srv/my shareholder"),
        ("fuse.sshfs", "/home/ada/remote"),
        ("9p", "/mnt/c/Users/ada/state"),
        (None, "/data/state"),
    ],
)
def test_the_innermost_and_latest_mount_decides(expected: str | None, place: str) -> None:
    assert expected == network_file_system(place, parse_mountinfo(MOUNTINFO))


def test_the_mount_command_of_macos_is_understood() -> None:
    text = (
        "/dev/disk3s1 on / (apfs, local)\n//ada@nas/my%20work on /Volumes/my work (smbfs, nodev)\nnonsense\n"
    )
    mounts = parse_mount_output(text)
    assert [Mount(point="/", type="apfs"), Mount(point="/Volumes/my work", type="smbfs")] == mounts
    assert "smbfs" == network_file_system("/Volumes/my work/state", mounts)


def test_a_place_under_no_known_mount_is_taken_for_local(tmp_path: Path) -> None:
    assert network_file_system(tmp_path, []) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own table is read on Linux only")
def test_the_table_of_this_machine_can_be_read() -> None:
    kernel = parse_mountinfo(Path("/proc/self/mountinfo").read_text())
    assert "/" in [mount.point for mount in kernel]
    assert network_file_system("/proc/self", kernel) is None
