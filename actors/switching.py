"""Python's thread switch interval and its collector, as a loop beside users' threads wants them.

They belong to the process, so whoever changes them does so here, and the last to leave puts them back.

Invariants:
    The interpreter is left as it was found.
"""

from __future__ import annotations

import gc
import sys
import threading
from typing import Final

SWITCH_INTERVAL_S: Final = 0.0005
"""How long a CPU-bound thread may keep the loop waiting for the interpreter. Measured beside one such
thread: 300 inserts a second at Python's own 5 ms, 22,000 at this, where the thread loses a few percent
of its speed; at a fifth of this it loses a fifth."""

COLLECTED_AFTER: Final = 10_000
"""How many more objects than before are there when Python looks for cycles among them. At its own 700 the
looking takes a sixth of the loop's time with a thousand instances under way, for hardly any garbage."""


class SwitchInterval:
    """Python's thread switch interval, lowered while anyone has entered; its collector comes less often."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before_s = 0.0
        self._before = gc.get_threshold()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._before_s = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before_s, SWITCH_INTERVAL_S))
                self._before = first, *others = gc.get_threshold()
                if 0 < first < COLLECTED_AFTER:  # 0: somebody collects by himself
                    gc.set_threshold(COLLECTED_AFTER, *others)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                sys.setswitchinterval(self._before_s)
                gc.set_threshold(*self._before)


# One for the process, because the interpreter has one interval, and several runtimes may be open.
SWITCH_INTERVAL: Final = SwitchInterval()
