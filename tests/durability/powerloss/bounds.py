"""Smaller bounds for the relay log, so that a short program goes through many of its segments.

The only file of the proof that knows of the log, and only how large it is.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from perdure.engine import opening
from perdure.storage import relay, track

SMALL: Final = "POWERLOSS_SMALL_LOG"
"""The variable that tells workers to have a small log too."""
SEGMENT_BYTES: Final = 96 * 1024
SETTLED_S: Final = 0.003


def shrink_log() -> None:
    """Have the runtime's relay log begin, settle and use again its segments all the time."""
    small = partial(relay.RelayLog, segment_bytes=SEGMENT_BYTES, segments_max=4, idle_s=SETTLED_S)
    setattr(opening, "RelayLog", small)  # noqa: B010 - the bounds are no setting of users
    setattr(track, "WHOLE_BYTES_MAX", SEGMENT_BYTES * 2 // 3)  # noqa: B010 - likewise
    setattr(track, "DIRECT_BYTES", SEGMENT_BYTES // 3)  # noqa: B010 - likewise
