"""How many files this process may have open, and so how many instances may be warm.

A warm instance has its file, its WAL, its shared memory and a second look at the WAL open.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

import msgspec

from perdure.limits import Limits

if sys.platform != "win32":
    import resource

logger: Final = logging.getLogger("perdure.engine")
PER_INSTANCE: Final = 4
RESERVED: Final = 256
"""For everything else that a program opens."""


def fit(limits: Limits) -> Limits:
    """Raise the soft limit on open files as far as allowed, and return `limits` that fit under it."""
    if sys.platform == "win32":
        return limits
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.warm_max * PER_INSTANCE + RESERVED
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        except (OSError, ValueError):  # pragma: no cover - a system with a bound of its own (macOS)
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = (soft - RESERVED) // PER_INSTANCE if soft != resource.RLIM_INFINITY else limits.warm_max
    if room >= limits.warm_max:
        return limits
    warm_max = max(16, room)
    logger.warning(
        "the limit on open files (%d) allows %d warm instances instead of %d", soft, warm_max, limits.warm_max
    )
    return msgspec.structs.replace(limits, warm_max=warm_max)
