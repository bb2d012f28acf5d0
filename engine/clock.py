"""The only file that asks the time or draws a random number.

Everything else is handed a clock. Two clocks run side by side: the wall clock, which people and
`sleep_until` follow and which can be set, and the clock since boot, which decides when a sleeper
wakes within one boot (law 7).
"""

from __future__ import annotations

import functools
import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path

import trio


class SystemClock:
    """The clock of the machine."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    @property
    def boot(self) -> int:
        """A number that no other boot of this machine has."""
        return boot_number()

    @property
    def wall_look_ms(self) -> float:
        """Nobody is told when a machine's clock is set, so one looks once a second."""
        return 1_000

    def wall_ms(self) -> int:
        """Now, in milliseconds since the epoch."""
        return time.time_ns() // 1_000_000

    def boot_ms(self) -> int:
        """Now, in milliseconds since boot; runs on in suspend."""
        return since_boot_ns() // 1_000_000

    def random(self) -> float:
        """Return a random number from 0 up to 1."""
        return random.random()  # for jitter and step.random: nothing secret

    def random_bits(self, bits: int) -> int:
        """Return a random whole number of that many bits, fit for ids."""
        return self._random.getrandbits(bits)

    async def wait(self, delay_ms: float | None, changed: trio.Event) -> None:
        """Return after `delay_ms`, or when `changed` is set; None waits for `changed` alone."""
        if delay_ms is None:
            await changed.wait()
            return
        with trio.move_on_after(max(0.0, delay_ms / 1000)):
            await changed.wait()


if sys.platform == "linux":

    def since_boot_ns() -> int:
        """Return nanoseconds since boot, time in suspend included."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

else:  # macOS's monotonic clock runs on in sleep

    def since_boot_ns() -> int:
        """Return nanoseconds since boot, time in suspend included."""
        return time.monotonic_ns()


@functools.cache
def boot_number() -> int:
    """Return a number made of the boot's id; it fits SQLite's integers."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    except OSError:
        text = _boot_id_elsewhere()
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def _boot_id_elsewhere() -> str:
    command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError):
        # Without an id the moment of boot stands for it; a clock step then looks like another boot,
        # and the wall clock decides.
        return str(round((time.time_ns() - time.monotonic_ns()) / 1e10))
