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

from perdure.storage.files import remove_file

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


def remove_unless_whole(path: Path) -> None:
    """Remove a file that was being made when the machine died; what it is made from is in the catalog still.

    Nothing of it was acknowledged: a relay log would have brought it back. Runs off the loop.
    """
    if not path.exists():
        return
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            born = connection.execute("SELECT 1 FROM _perdure_instance").fetchone()
        finally:
            connection.close()
    except sqlite3.DatabaseError:
        verdict, born = "unreadable", None
    if verdict != "ok" or born is None:
        remove_file(path)
