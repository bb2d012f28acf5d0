"""How an adapter runs its peer's program: in a process of its own, for one line of JSON.

Invariants:
    A program that failed is no figure: its last words are the error.
"""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any, Final

from perdure.benchmarks.harness import WorkNotDoneError

SECONDS_MAX: Final = 400


def run(command: list[str], folder: Path) -> dict[str, Any]:
    """Run a program in a folder and return what it prints last. Raises `WorkNotDoneError`."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False, cwd=folder
        )
    except subprocess.TimeoutExpired as error:
        raise WorkNotDoneError(f"not done after {SECONDS_MAX} s") from error
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise WorkNotDoneError((done.stderr.strip().splitlines() or ["it printed nothing"])[-1])
    found: dict[str, Any] = json.loads(lines[-1])
    return found


@functools.cache
def has_modules(python: str, *modules: str) -> bool:
    """Whether an interpreter finds all these modules."""
    # The first entry is the folder in which one happens to be: what lies there is not installed.
    code = "import sys; del sys.path[0]; from importlib.util import find_spec as find"
    code += "; sys.exit(None in map(find, sys.argv[1:]))"
    try:
        return (
            subprocess.run([python, "-c", code, *modules], capture_output=True, check=False).returncode == 0
        )
    except OSError:  # there is no such interpreter
        return False
