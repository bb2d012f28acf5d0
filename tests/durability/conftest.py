"""What the durability tests share: programs that are really killed, and a look at what they leave.

Each program under `programs/` is a small application. A test starts it as a process of its own,
reads the lines that it prints as it gets on, and ends it in whatever way the test is about.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).resolve().parent / "programs"
PROGRAM_S_MAX = 60.0
"""A program that hangs is killed, so that the test ends as a failure."""

Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Return a function that starts a program: `launch("chaos", folder, "--id", "x")`."""
    with contextlib.ExitStack() as running:

        def start(name: str, *args: object, under: tuple[str, ...] = ()) -> subprocess.Popen[str]:
            command = [*under, sys.executable, str(PROGRAMS / f"{name}.py"), *map(str, args)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            watchdog = threading.Timer(PROGRAM_S_MAX, process.kill)
            watchdog.start()
            running.callback(_end, process, watchdog)
            return process

        yield start


def _end(process: subprocess.Popen[str], watchdog: threading.Timer) -> None:
    watchdog.cancel()
    process.kill()
    process.communicate()


@pytest.fixture
def next_line() -> Callable[[subprocess.Popen[str]], str]:
    """Return a function that waits for the next line a program prints, without its line end."""

    def read(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            _, errors = process.communicate()
            pytest.fail(f"the program ended with status {process.returncode} and said:\n{errors}")
        return line.rstrip("\n")

    return read


@pytest.fixture
def damage_in(tmp_path: Path) -> Callable[[Path], dict[str, str]]:
    """Return a function that tells which databases of a dead process do not hold together.

    It looks at copies: to open a database is to repair it, and the next process is to find it as it was left.
    """

    def look(folder: Path) -> dict[str, str]:
        place = tmp_path / "autopsy"
        shutil.rmtree(place, ignore_errors=True)
        found: dict[str, str] = {}
        for path in folder.rglob("*.sqlite"):
            copy = place / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            for suffix in ("", "-wal"):
                if Path(f"{path}{suffix}").exists():
                    shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
            verdict = _verdict(copy)
            if verdict != "ok":
                found[str(path.relative_to(folder))] = verdict
        return found

    return look


def _verdict(path: Path) -> str:
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            verdict: str = connection.execute("PRAGMA integrity_check").fetchone()[0]
            return verdict
    except sqlite3.DatabaseError as error:
        return str(error)


@pytest.fixture
def rows_of() -> Callable[..., list[tuple[object, ...]]]:
    """Return a function that asks one database, as a foreign tool would: `rows_of(path, "SELECT ...")`."""

    def ask(path: Path, query: str, *values: object) -> list[tuple[object, ...]]:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return connection.execute(query, values).fetchall()

    return ask
