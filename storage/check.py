"""What is looked at after the machine itself has died under `durability="process"`.

Without syncs a file that was open then may have lost pages. It is checked before use, and one
that does not hold together is left alone, under another name, for its owner to salvage.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Final

logger: Final = logging.getLogger("perdure.storage")


def check_after_machine_death(paths: Iterable[Path]) -> list[Path]:
    """Check each file and return those that are damaged. Runs off the loop, before any is opened."""
    damaged: list[Path] = []
    for path in paths:
        if not path.exists():
            continue
        try:
            connection = sqlite3.connect(path, isolation_level=None)
            try:
                (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            finally:
                connection.close()
        except sqlite3.DatabaseError as error:
            verdict = str(error)
        if verdict != "ok":
            logger.error(
                "%s did not survive the death of the machine under durability='process': %s", path, verdict
            )
            damaged.append(path)
    return damaged
