"""What every test of the suite may use.

Tests share code through fixtures only: test folders are no packages, so nothing is imported from one
test file into another. Fixtures of one floor stand in that floor's own conftest.py.

Options:
    --shuffle SEED   run the tests in a random order, the same for the same seed, so that none
                     leans on what another left behind. The seed is printed in the header.
"""

from __future__ import annotations

import os
import random
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import perdure

ROOT = Path(__file__).resolve().parent.parent

# The machine that runs the suite may be busy: an example that is slow once is no finding.
hypothesis.settings.register_profile("perdure", deadline=None, print_blob=True)
hypothesis.settings.load_profile("perdure")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in this random order")


def pytest_report_header(config: pytest.Config) -> list[str]:
    lines = [f"perdure: from {Path(perdure.__file__).parent}"]
    seed: int | None = config.getoption("--shuffle")
    return lines if seed is None else [*lines, f"order: random, --shuffle {seed}"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not (ROOT / "src" / "perdure").is_dir():
        skip = pytest.mark.skip(reason="needs the source tree; an installed Perdure is being tested")
        for item in items:
            if item.get_closest_marker("checkout") is not None:
                item.add_marker(skip)
    seed: int | None = config.getoption("--shuffle")
    if seed is not None:
        random.Random(seed).shuffle(items)


@pytest.fixture(scope="session", autouse=True)
def plain_environment() -> Iterator[None]:
    """Take away the variables by which a user points Perdure at a state folder of their own.

    The `perdure` that programs started by tests find is the one beside this interpreter, whether
    its environment is active or not.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", sysconfig.get_path("scripts"), prepend=os.pathsep)
        for name in [name for name in os.environ if name.startswith("PERDURE_")]:
            patch.delenv(name)
        yield


@pytest.fixture
def strace() -> str:
    """Return the path of strace, or skip: with it a test counts the system calls of a program."""
    return require_program("strace")


@pytest.fixture
def sqlite3_program() -> str:
    """Return the path of SQLite's own command line, or skip: it stands for any foreign tool."""
    return require_program("sqlite3")


def require_program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed here")
    return path
