"""What is told of a run: its log, its divergences (law 11), and what it left undone (law 8).

Invariants:
    A divergence is written down once, however often it is seen.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import MutableMapping
from typing import Any, Final

from perdure.actors.calls import line_of
from perdure.actors.host import Clock
from perdure.actors.run import Run
from perdure.actors.workflow import Definition
from perdure.errors import DivergenceError, ForgottenAwaitError, OpenStepError
from perdure.storage.journal import Journal
from perdure.storage.lifecycle import Lifecycle
from perdure.storage.records import Key

NAMES_SHOWN_MAX: Final = 5
"""Steps named in the report of those that nobody asked for."""


class QuietLog(logging.LoggerAdapter[logging.Logger]):
    """Says which instance speaks, and nothing while recorded steps are replayed."""

    def __init__(self, logger: logging.Logger, key: Key, journal: Journal) -> None:
        super().__init__(logger, {"instance": str(key)})
        self._key = key
        self._journal = journal

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - the name that logging calls
        """Whether to say anything of this level now."""
        return (level >= logging.WARNING or not self._journal.replaying) and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Put the instance before the message."""
        return f"{self._key}: {msg}", kwargs


class Reports:
    """The reports of one warm instance."""

    def __init__(
        self,
        definition: Definition | None,
        key: Key,
        lifecycle: Lifecycle,
        clock: Clock,
        log: logging.LoggerAdapter[logging.Logger],
    ) -> None:
        self._policy = None if definition is None else definition.on_divergence
        self._key = key
        self._lifecycle = lifecycle
        self._clock = clock
        self._log = log
        self._noted: set[str] = set()

    def warn_once(self, text: str) -> None:
        """Warn of something that would be seen again at every look."""
        if text not in self._noted:
            self._noted.add(text)
            self._log.warning("%s", text)

    def diverged(self, what: str, error: DivergenceError, *, serious: bool) -> None:
        """Report a divergence as the workflow's policy says; raises `error` where that is "fail"."""
        policy = self._policy or ("fail" if serious else "warn")
        if policy == "fail":
            raise error
        if policy == "ignore":
            return
        token = "divergence:" + hashlib.blake2b(f"{what}|{error}".encode(), digest_size=8).hexdigest()
        if token in self._noted:
            return
        self._noted.add(token)
        detail = f"{error} (recorded: {error.recorded}; requested: {error.requested})"
        self._lifecycle.command(
            "divergence", at_ms=self._clock.wall_ms(), actor="runtime", token=token, detail=detail
        )
        self._log.warning("%s", detail)

    def leftovers(self, run: Run, journal: Journal) -> BaseException | None:
        """Return the error for steps that are still open, or that nobody asked for (laws 8, 11)."""
        for call in run.open_calls:
            place = line_of(call.where)
            if call.awaited:
                journal.cancel_open(at_ms=run.host.clock.wall_ms())
                return OpenStepError(
                    f"run() of {run.key} ended while step {call.name!r} ({place}) was"
                    " open: await every step inside run()"
                )
            return ForgottenAwaitError(
                f"step {call.name!r} of {run.key} was called and never awaited, in"
                f" {place}: write `await step...({call.name!r}, ...)`"
            )
        left = [step for step in journal.left if step.status != "cancelled" and step.kind != "patch"]
        if left:
            names = ", ".join(f"{step.kind} {step.name!r}" for step in left[:NAMES_SHOWN_MAX]) + (
                " …" if len(left) > NAMES_SHOWN_MAX else ""
            )
            error = DivergenceError(
                f"run() of {run.key} ended without asking for recorded steps: {names}. The code has changed"
                " since they were recorded",
                recorded=names,
                requested="nothing",
            )
            try:
                self.diverged("unasked", error, serious=False)
            except DivergenceError as refused:
                return refused
        return None
