"""Programs of the shipped code, run under strace and read into a recording.

Invariants:
    What the model volume holds at the end is, byte for byte, what lies in the folder.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from powerloss.crash import CrashDisk, difference
from powerloss.losses import Loss
from powerloss.scripts import SCRIPTS
from powerloss.trace import CALLS, Call, TraceReader, descriptor, written
from powerloss.volume import Operation, Volume

HERE: Final = Path(__file__).resolve().parent.parent
PROGRAM_S_MAX: Final = 40.0
KILL_COMMITS: Final = (2, 14)
"""A life that is to be killed ends after a number of commits between these."""


class RecordingError(Exception):
    """A recording that could not be made, or is not whole."""


class StalledError(RecordingError):
    """A life did not end in its time."""


def record(script: str, folder: Path, *, strace: str, seed: int = 0, broken: str = "") -> list[Operation]:
    """As `_record`, and once more from the beginning where a life did not end: a tracer may stall."""
    try:
        return _record(script, folder, strace=strace, seed=seed, broken=broken)
    except StalledError as error:
        print(f"{error}; it is recorded anew")  # noqa: T201 - a finding, should it come often
        for entry in list(folder.iterdir()):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return _record(script, folder, strace=strace, seed=seed, broken=broken)


def _record(script: str, folder: Path, *, strace: str, seed: int = 0, broken: str = "") -> list[Operation]:
    """Run all lives of a script and return what they did to the volume `folder`/volume."""
    root = folder / "volume"
    root.mkdir(parents=True)
    recording = Recording(script, root, folder, strace)
    chance = random.Random(f"{script} {seed}")
    for number, life in enumerate(SCRIPTS[script].lives):
        options = ["--break", broken] if broken else []
        if life.killed:
            options += ["--kill", str(chance.randint(*KILL_COMMITS))]
        recording.live(number, *options, killed=life.killed)
    return recording.finish()


def record_recovery(script: str, folder: Path, *, strace: str) -> list[Operation]:
    """Have another boot take up what lies in `folder`/volume, and return what it did, with what was there."""
    recording = Recording(script, folder / "volume", folder, strace)
    recording.live(len(SCRIPTS[script].lives) - 1, "--boot", "2", "--recover")
    return recording.finish()


class Recording:
    """Lives of one script over one volume, in the making."""

    def __init__(self, script: str, root: Path, folder: Path, strace: str) -> None:
        self._script = script
        self._root = root
        self._folder = folder
        self._strace = strace
        self._acks = folder / "acks"
        self._volume = Volume.of(root)
        self._reader = TraceReader(self._volume, str(self._acks))

    def live(self, number: int, *options: str, killed: bool = False) -> None:
        """Run one life and read what it did."""
        words = [self._script, str(number), str(self._root / "state"), str(self._acks), *options]
        trace = self._folder / f"trace-{number}"
        run(words, trace, strace=self._strace, killed=killed)
        self._reader.read(trace)
        trace.unlink()
        for call in self._reader.under_way:
            if has_happened(call, self._volume):
                self._reader.apply(call._replace(result=str(len(written(call)))))
        self._volume.stamp_all()

    def finish(self) -> list[Operation]:
        """Return all operations. Raises `RecordingError` where some are missing."""
        disk = CrashDisk(self._volume.operations)
        disk.advance(len(self._volume.operations))
        wrong = difference(disk.fail(Loss(random.Random(0), disk.position)), self._root)
        if wrong:
            raise RecordingError(f"the recording does not lead to what lies in {self._root}: {wrong}")
        return self._volume.operations


def run(options: list[str], trace: Path, *, strace: str, killed: bool) -> None:
    """Run the program under strace."""
    command = [strace, "-f", "-y", "-v", "-xx", "-qq", "--seccomp-bpf", "-s", "100000000",
               "-e", "signal=none", "-e", f"trace={','.join(CALLS)}", "-o", str(trace),
               sys.executable, "-m", "powerloss.program", *options]  # fmt: skip
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=PROGRAM_S_MAX)
    except (
        subprocess.TimeoutExpired
    ) as error:  # the session is ended as a whole: a program outlives its tracer
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise StalledError(f"{' '.join(options)} has not ended after {PROGRAM_S_MAX:g} s") from error
    if process.returncode != 0 and not killed:
        raise RecordingError(f"{' '.join(options)} ended with {process.returncode}:\n{errors[-4000:]}")


def has_happened(call: Call, volume: Volume) -> bool:
    """Whether a write that a death cut short has been done all the same.

    Where another process has removed the file since, it makes no difference.
    """
    found = descriptor(call.arguments[0]) if call.name == "pwrite64" else None
    if found is None or found.deleted or not volume.holds(found.path):
        return False
    data, offset = written(call), int(call.arguments[3])
    if not Path(found.path).exists():
        return False
    with Path(found.path).open("rb") as file:
        file.seek(offset)
        return file.read(len(data)) == data
