"""The lock on a state folder, and whether its file system can carry one.

A `FolderLock` is an operating-system lock (`flock`) on a file kept for it. The file's text says who
took it, for people and for error messages; the lock alone decides. No other module opens the file.

Invariants:
    At most one `FolderLock` on a path is held, within a process as between processes.
    It ends with `release` or with the process, however that dies; nothing has to be cleaned up.
    No child keeps it unless it is handed `descriptor`: that closes on exec, and a forked child drops its
    copy. Workers are handed it, so that their folder stays locked for as long as one of them lives.
    The file is never deleted: whoever waits on a deleted file locks something nobody else sees.

`flock`, and not the POSIX lock of `fcntl`: that one falls when *any* descriptor of the file is
closed in the process, and does not keep a process from locking twice.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from perdure.errors import StateLockedError, StateUnusableError, StorageFullError

if sys.platform != "win32":
    import fcntl

__all__ = [
    "FolderLock",
    "LockHolder",
    "Mount",
    "network_file_system",
    "parse_mount_output",
    "parse_mountinfo",
]

HOLDER_UNKNOWN: Final = 0
"""What `FolderLock.holder` answers when the lock is held and its file does not say by whom."""

_COMMAND_CHARS_MAX: Final = 200
_TEXT_BYTES_MAX: Final = 4096
# Between taking the lock and writing who did lies a moment, and `holder` takes the lock for another:
# a refusal that cannot name a living process looks again this often before it is believed.
_LOOKS: Final = 5
_BETWEEN_LOOKS_S: Final = 0.01

_NETWORK_TYPES: Final = frozenset(
    {"9p", "acfs", "afpfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs", "gfs2", "glusterfs"}
    | {
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "pvfs2",
        "smb2",
        "smb3",
        "smbfs",
        "webdav",
    }
    | {"fuse.ceph", "fuse.davfs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.grpcfuse"}
    | {"fuse.juicefs", "fuse.mfs", "fuse.osxfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"}
)
_MOUNTINFO_POINT: Final = 4  # the field of a mountinfo line that says where the file system hangs


class LockHolder(msgspec.Struct, frozen=True, kw_only=True):
    """Who took a lock, as its file says: process id, command line and machine."""

    pid: int
    command: str = ""
    host: str = ""


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """One mounted file system: where it hangs, and its type as the system names it."""

    point: str
    type: str


class FolderLock:
    """A held lock on a state folder. Made by `acquire`, over after `release`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, path: str | os.PathLike[str]) -> FolderLock:
        """Take the lock whose file is `path`, in a folder that exists, without waiting.

        Raises StateLockedError, which names the holder, when it is taken; StateUnusableError where
        the file cannot be opened or locked; StorageFullError.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as state, FolderLock.acquire(f"{state}/lock") as lock:
        ...     FolderLock.holder(lock.path) == os.getpid()
        True
        """
        if sys.platform == "win32":
            raise StateUnusableError(
                "Perdure does not run on Windows: its locks need flock. Use Linux, macOS or WSL.",
                path=str(path),
            )
        lock_path = Path(path)
        holder: LockHolder | None = None
        for look in range(_LOOKS):
            if look:
                time.sleep(_BETWEEN_LOOKS_S)
            descriptor = _open(lock_path)
            try:
                if _try_lock(descriptor, lock_path, exclusive=True) and _is_at(descriptor, lock_path):
                    return cls._held(lock_path, descriptor)
                holder = _read_holder(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            if holder is not None and _is_alive(holder):
                break
        raise _locked(lock_path, holder)

    @staticmethod
    def holder(path: str | os.PathLike[str]) -> int | None:
        """Return the process id of whoever holds the lock at `path`, or None when nobody does.

        `HOLDER_UNKNOWN` when it is held and the file does not say by whom. The file is left as it is.
        Raises StateUnusableError where it cannot be read.
        """
        lock_path = Path(path)
        if not lock_path.exists():
            return None
        descriptor = _open(lock_path, os.O_RDONLY)
        try:
            if _try_lock(descriptor, lock_path, exclusive=False):
                return None
            holder = _read_holder(descriptor)
            return holder.pid if holder else HOLDER_UNKNOWN
        finally:
            os.close(descriptor)

    @property
    def descriptor(self) -> int:
        """The descriptor that carries the lock, for a child that is to hold it too."""
        if self._descriptor is None:
            raise ValueError("the lock has been released")
        return self._descriptor

    def release(self) -> None:
        """Give the lock back. A second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):  # the text is a courtesy, the lock goes all the same
                os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "released" if self._descriptor is None else "held"
        return f"<FolderLock {str(self.path)!r}, {state}>"

    @classmethod
    def _held(cls, path: Path, descriptor: int) -> FolderLock:
        _write_holder(descriptor, path)
        lock = cls(path, descriptor)
        # A forked child shares the lock, and would hold it after our death. Close-on-exec does not
        # help one that never calls exec, such as a `multiprocessing` worker.
        os.register_at_fork(after_in_child=lock._forget)
        return lock

    def _forget(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)  # and no unlock: that would free the parent's too


def network_file_system(path: str | os.PathLike[str], mounts: list[Mount] | None = None) -> str | None:
    """Return the type of the network file system that `path` lies on, or None for a local one.

    As `file_system`; None also where the system does not say what is mounted.
    """
    kind = file_system(path, mounts)
    return kind if kind in _NETWORK_TYPES else None


def file_system(path: str | os.PathLike[str], mounts: list[Mount] | None = None) -> str | None:
    """Return the type of the file system that `path` lies on, or None where the system does not say.

    `path` need not exist; `mounts` replaces what the system says is mounted. On macOS, which CI does
    not run, it is asked through `mount`.
    """
    place = Path(path).resolve()
    best: Mount | None = None
    for mount in _mounts() if mounts is None else mounts:
        # On equal length the later one wins: it lies over the earlier.
        if place.is_relative_to(mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return None if best is None else best.type


def parse_mountinfo(text: str) -> list[Mount]:
    """Read the text of Linux's `/proc/self/mountinfo`; lines of another form are passed over."""
    mounts: list[Mount] = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, about = before.split(" "), after.split(" ")
        if len(fields) > _MOUNTINFO_POINT and about[0]:
            mounts.append(Mount(point=_unescaped(fields[_MOUNTINFO_POINT]), type=about[0]))
    return mounts


def parse_mount_output(text: str) -> list[Mount]:
    """Read what `mount` prints on macOS: `//me@nas/work on /Volumes/work (smbfs, nodev)`."""
    mounts: list[Mount] = []
    for line in text.splitlines():
        before, _, about = line.rpartition(" (")
        _, separator, point = before.partition(" on ")
        if separator:
            mounts.append(Mount(point=point, type=about.rstrip(")").split(",")[0]))
    return mounts


def _mounts() -> list[Mount]:
    try:
        if sys.platform == "darwin":
            done = subprocess.run(["/sbin/mount"], capture_output=True, text=True, timeout=5, check=True)
            return parse_mount_output(done.stdout)
        return parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    except (OSError, subprocess.SubprocessError):
        return []  # not knowing is no reason to refuse a folder


def _unescaped(field: str) -> str:
    for escape, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(escape, char)
    return field


def _open(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _unusable(path, error) from error


def _try_lock(descriptor: int, path: Path, *, exclusive: bool) -> bool:
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _unusable(path, error) from error
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the locked file is still the one at `path`, and not one that somebody deleted."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int, path: Path) -> None:
    command = " ".join(sys.orig_argv)[:_COMMAND_CHARS_MAX].encode(errors="replace").decode()
    holder = LockHolder(pid=os.getpid(), command=command, host=socket.gethostname())
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, msgspec.json.encode(holder) + b"\n", 0)
    except OSError as error:
        raise _unusable(path, error) from error


def _read_holder(descriptor: int) -> LockHolder | None:
    try:
        return msgspec.json.decode(os.pread(descriptor, _TEXT_BYTES_MAX, 0), type=LockHolder)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _is_alive(holder: LockHolder) -> bool:
    if holder.host != socket.gethostname():
        return True  # another machine or container: it cannot be asked from here
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _locked(path: Path, holder: LockHolder | None) -> StateLockedError:
    if holder is None:
        who = "another process, which its lock file does not name"
    elif holder.pid == os.getpid() and holder.host == socket.gethostname():
        who = f"this very process ({holder.pid})"
    else:
        where = "" if holder.host == socket.gethostname() else f" on {holder.host}"
        who = f"process {holder.pid}{where} ({holder.command or 'command line unknown'})"
    pid = holder.pid if holder else None
    if holder is not None and not _is_alive(holder):  # whom it shared the lock with has it still
        return StateLockedError(
            f"{path.parent} is in use by workers of {who}, which has died. They park what they run and end by"
            " themselves within seconds: try again then.",
            path=str(path), pid=pid, is_orphaned=True,
        )  # fmt: skip
    return StateLockedError(
        f"{path.parent} is in use by {who}. Stop that first, or give another state folder.",
        path=str(path),
        pid=pid,
    )


def _unusable(path: Path, error: OSError) -> StateUnusableError | StorageFullError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(f"no room for the lock file {path}: free some disk space", path=str(path))
    if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
        text = "this file system has no locks; put the state folder on a local disk"
    else:
        text = f"{error.strerror or error}; the folder must exist and be writable by this user"
    return StateUnusableError(f"the lock file {path} cannot be used: {text}", path=str(path))
