"""The table in docs/conformance.md and the tests agree: every case stands there once, every test exists."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.checkout

HERE: Final = Path(__file__).resolve().parent
PAGE: Final = HERE.parent.parent / "docs" / "conformance.md"
ROW: Final = re.compile(r"^\| (D?\d+) \| (passed|adapted: [^|]+|not applicable: [^|]+) \| ([^|]*) \|$")
TEST: Final = re.compile(r"^(?:async )?def (test_(?:case|defect)_\w+)", re.MULTILINE)

# The numbers of the peer's cases that are about behaviour, as they stand: some numbers were never given.
FIRST: Final = [*range(1, 9), *range(10, 30), *range(31, 44), *range(45, 62)]
SECOND: Final = [
    *range(62, 65),
    *range(66, 72),
    *range(73, 79),
    *range(80, 94),
    *range(96, 100),
    *range(101, 108),
    *range(109, 123),
    *range(124, 141),
    *range(169, 171),
    *range(173, 176),
    *range(177, 183),
]
HALVES: Final = [
    {*map(str, FIRST), *(f"D{number}" for number in range(1, 10))},
    {*map(str, SECOND), *(f"D{number}" for number in range(10, 20))},
]


def rows() -> list[tuple[str, str, list[str]]]:
    """Return the rows of the table: the case, the verdict, the names of its tests."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    found = [(line, ROW.match(line)) for line in lines if re.match(r"\| D?\d", line)]
    assert [] == [line for line, match in found if match is None]
    return [(match[1], match[2], re.findall(r"`(test_\w+)`", match[3])) for _, match in found if match]


def known_tests() -> set[str]:
    """Return the names of all conformance tests that bear the number of a case."""
    return {
        name for path in HERE.glob("test_*.py") for name in TEST.findall(path.read_text(encoding="utf-8"))
    }


@pytest.mark.parametrize("half", [0, 1], ids=["first", "second"])
def test_every_case_is_listed_once(half: int) -> None:
    listed = Counter(case for case, _, _ in rows() if case in HALVES[half])

    assert HALVES[half] == set(listed)
    assert {1} == set(listed.values())


def test_no_case_is_listed_that_there_is_not() -> None:
    assert {case for case, _, _ in rows()} <= HALVES[0] | HALVES[1]


def test_every_test_that_the_table_names_exists() -> None:
    named = {name for _, _, names in rows() for name in names}

    assert set() == named - known_tests()


def test_every_case_that_is_passed_or_adapted_has_a_test() -> None:
    assert [] == [case for case, verdict, names in rows() if not names and not verdict.startswith("not ")]
