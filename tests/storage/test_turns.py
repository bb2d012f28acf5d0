"""Turns at a catalog: one process at a time, and a dead one holds up nobody."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.turns import Turn
from perdure.storage.writer import write_now

HOLD = """
import sys
from pathlib import Path
from perdure.storage.turns import Turn
with Turn(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(catalog: Path) -> subprocess.Popen[str]:
    """Start a process that has the turn."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(catalog)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert "held\n" == process.stdout.readline()
    return process


def take(turn: Turn, order: list[str], name: str) -> None:
    with turn:
        order.append(name)


def test_one_waits_for_the_other(tmp_path: Path) -> None:
    first, second = Turn(tmp_path / "catalog.sqlite"), Turn(tmp_path / "catalog.sqlite")
    order: list[str] = []
    with first:
        waiting = threading.Thread(target=take, args=(second, order, "second"))
        waiting.start()
        order.append("first")
    waiting.join()
    first.close()
    second.close()

    assert ["first", "second"] == order


def test_a_turn_ends_with_its_process(tmp_path: Path) -> None:
    process = holder(tmp_path / "catalog.sqlite")
    turn = Turn(tmp_path / "catalog.sqlite")
    order: list[str] = []
    waiting = threading.Thread(target=take, args=(turn, order, "mine"))
    waiting.start()
    assert [] == order
    process.kill()
    process.communicate()
    waiting.join()
    turn.close()

    assert ["mine"] == order


def test_who_writes_from_outside_takes_its_turn_where_there_are_any(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.sqlite"
    connection = open_catalog(catalog, checkpointer=False)
    turn = Turn(catalog)
    try:
        assert not turn.is_shared
        write_now(Catalog(connection), lambda catalog: catalog.crashed(), path=catalog)
        assert not turn.is_shared
        with turn:
            pass
        assert turn.is_shared
        write_now(Catalog(connection), lambda catalog: catalog.crashed(), path=catalog)
    finally:
        turn.close()
        connection.close()
