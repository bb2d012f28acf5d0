"""What users see inferred: `seen/` passes both type checkers, strict; `refused/` fails where it says so.

The programs are checked from another folder, without this project's settings, as a user's would be.
In `seen/` each `assert_type` states what is inferred. In `refused/` each line marked `# E:` must be
reported by both checkers, and no other line by either.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from perdure import Runtime, WorkflowStep, open_runtime
from perdure.actors.signatures import MapOptions, StepOptions
from perdure.engine.births import CreateOptions
from perdure.portal import RuntimeOptions

HERE = Path(__file__).resolve().parent
SEEN = sorted((HERE / "seen").glob("*.py"))
REFUSED = sorted((HERE / "refused").glob("*.py"))

Report = dict[tuple[str, int], str]
"""The first text that a checker has for a file and line."""


def run(*command: str, folder: Path) -> str:
    environment = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "NO_COLOR": "1"}
    environment.pop("FORCE_COLOR", None)
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def mypy(folder: Path) -> Report:
    report: Report = {}
    for line in run("mypy", "--strict", "--no-error-summary", ".", folder=folder).splitlines():
        found = re.match(r"(?P<file>[^:]+):(?P<line>\d+): error: (?P<text>.*)", line)
        if found is not None:
            report.setdefault((found["file"], int(found["line"])), found["text"])
    return report


def pyright(folder: Path) -> Report:
    settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    out = run("pyright", "--outputjson", "--pythonpath", sys.executable, folder=folder)
    report: Report = {}
    for found in json.loads(out)["generalDiagnostics"]:
        place = Path(found["file"]).name, found["range"]["start"]["line"] + 1
        report.setdefault(place, found["message"])
    return report


CHECKERS: list[Callable[[Path], Report]] = [mypy, pyright]


@pytest.fixture(params=CHECKERS, ids=lambda checker: checker.__name__)
def checker(request: pytest.FixtureRequest) -> Callable[[Path], Report]:
    chosen: Callable[[Path], Report] = request.param
    if find_spec(chosen.__name__) is None:
        pytest.skip(f"{chosen.__name__} is not installed here")
    return chosen


def copied(files: list[Path], folder: Path) -> Path:
    assert files
    for file in files:
        shutil.copy(file, folder)
    return folder


@pytest.mark.slow
def test_both_checkers_infer_what_is_stated(checker: Callable[[Path], Report], tmp_path: Path) -> None:
    assert {} == checker(copied(SEEN, tmp_path))


@pytest.mark.slow
def test_both_checkers_report_each_wrong_line_and_no_other(
    checker: Callable[[Path], Report], tmp_path: Path
) -> None:
    expected = {
        (file.name, number)
        for file in REFUSED
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if "  # E: " in line
    }
    report = checker(copied(REFUSED, tmp_path))

    assert set() == expected - set(report)
    assert {} == {place: text for place, text in report.items() if place not in expected}


# -- the options that checkers see are those there are ---------------------------------------


def names(fn: Callable[..., object], *but: str) -> set[str]:
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(fn).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is keyword} - set(but)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (StepOptions, names(WorkflowStep.do, "returns", "concurrent")),
        (MapOptions, names(WorkflowStep.map, "returns")),
        (CreateOptions, names(Runtime.create, "params")),
        (RuntimeOptions, names(open_runtime, "asyncio_loop", "modifiers")),
    ],
)
def test_the_options_that_checkers_see_are_those_that_are_taken(options: Any, expected: set[str]) -> None:
    assert expected == options.__optional_keys__
