"""Python's thread switch interval: lowered for as long as somebody runs a loop beside users' threads.

It belongs to the process, so whoever lowers it does so here, and the last to leave puts it back.

Invariants:
    The interpreter is left as it was found.
"""

from __future__ import annotations

import sys
import threading
from typing import Final

SWITCH_INTERVAL_S: Final = 0.0005
"""How long a CPU-bound thread may keep the loop waiting for the interpreter. Measured beside one such
thread: 300 inserts a second at Python's own 5 ms, 22,000 at this, where the thread loses a few percent
of its speed; at a fifth of this it loses a fifth."""


class SwitchInterval:
    """Python's thread switch interval, lowered while anyone has entered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before_s = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._before_s = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before_s, SWITCH_INTERVAL_S))
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                sys.setswitchinterval(self._before_s)


# One for the process, because the interpreter has one interval, and several runtimes may be open.
SWITCH_INTERVAL: Final = SwitchInterval()
