"""SIGINT and SIGTERM as an orderly end: the first one cancels, the second one exits at once.

The handlers are Python's own, so that they run also where the loop is held up by a step that does
not await. The engine bounds how long the orderly end may take.

Invariants:
    The handlers that stood before are put back.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any, Final, Self

import trio

from perdure.cli import exits

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Listens while inside. `signal` is the one that came, or None; `hard` is said before a hard exit."""

    def __init__(self, *, hard: str) -> None:
        self.signal: int | None = None
        self._hard = hard
        self._before: dict[int, Any] = {}
        self._scope: trio.CancelScope | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._received) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def scope(self) -> trio.CancelScope:
        """Return the cancel scope that the first signal cancels. Only within trio."""
        self._token = trio.lowlevel.current_trio_token()
        self._scope = trio.CancelScope()
        if self.signal is not None:
            self._scope.cancel()
        return self._scope

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            os.write(sys.stderr.fileno(), f"\nperdure: {self._hard}\n".encode())
            os._exit(exits.OVERRUN)
        self.signal = number
        if self._scope is not None and self._token is not None:
            self._token.run_sync_soon(self._scope.cancel)
