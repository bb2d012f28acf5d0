"""How one stretch of an instance's life ended: a small union, matched once by the engine."""

from __future__ import annotations

import msgspec

from perdure.storage.records import Deadline, Stored


class Completed(msgspec.Struct, frozen=True, kw_only=True):
    """`run()` returned; `output` is what it returned, as stored."""

    output: Stored


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """`run()` raised; `error` is the stored error."""

    error: str


class Terminated(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody terminated it."""


class Paused(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody paused it, and nothing of it runs any more."""


class Parked(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing of it can move before `wake`, or before an event where `wake` is None."""

    wake: Deadline | None
    reason: str


class Dead(msgspec.Struct, frozen=True, kw_only=True):
    """It took its process down again and again; `reason` says how often."""

    reason: str


class Interrupted(msgspec.Struct, frozen=True, kw_only=True):
    """The runtime is ending; it goes on as soon as one is started again."""


class Broken(msgspec.Struct, frozen=True, kw_only=True):
    """A write failed; what was committed is intact and it is tried again from there."""

    error: Exception


Outcome = Completed | Failed | Terminated | Paused | Parked | Dead | Interrupted | Broken
