"""The command group: its help is true, quick, and complete; the state folder is found as it says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from perdure.cli import exits, options, render
from perdure.cli.main import COMMANDS, main
from perdure.errors import PerdureError

Run = Callable[..., Any]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_of_a_command_is_what_its_own_help_says_first(name: str) -> None:
    command = main.get_command(click.Context(main), name)

    assert command is not None
    assert " ".join((command.help or "").split()).startswith(COMMANDS[name].summary.rstrip("."))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_that_takes_arguments_teaches_with_an_example(cli: Run, name: str) -> None:
    done = cli(name, "--help")

    assert 0 == done.status
    usage, _, rest = done.out.partition("\n")
    takes_arguments = usage.split("[OPTIONS]")[1].strip() != ""
    assert not takes_arguments or f"perdure {name} " in rest


def test_the_help_of_the_group_imports_no_command(place: Any) -> None:
    program = (
        "import sys\nfrom perdure.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted(m for m in sys.modules if m.startswith(('rich', 'perdure.cli.'))), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert all(name in done.stdout for name in COMMANDS)
    assert "['perdure.cli.exits', 'perdure.cli.main']" == done.stderr.strip()


def test_the_help_of_the_group_lists_every_exit_status(cli: Run) -> None:
    out = cli("--help").out

    for status in {exits.OK, exits.DEFECT, exits.OVERRUN, exits.INTERRUPTED, *dict(exits.STATUSES).values()}:
        assert f" {status}  " in out


@pytest.mark.parametrize("error", [cls for cls, _ in exits.STATUSES])
def test_every_kind_of_error_has_an_exit_status_that_is_not_zero(error: type[PerdureError]) -> None:
    assert exits.status_of(error("no")) not in (0, exits.DEFECT)


def test_a_defect_is_told_in_one_line_with_a_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exits.told():
        raise ZeroDivisionError("by\nnothing")

    assert exits.DEFECT == ended.value.code
    assert "perdure: a defect in Perdure: ZeroDivisionError: by nothing" in capsys.readouterr().err


def test_the_state_folder_is_the_option_then_the_variable_then_the_project_then_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "package" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert Path(".perdure") == options.find_state(None)

    tmp_path.joinpath("pyproject.toml").write_text('[tool.perdure]\nstate = "var/state"\n')
    assert tmp_path / "var" / "state" == options.find_state(None)

    monkeypatch.setenv("PERDURE_STATE", "elsewhere")
    assert Path("elsewhere") == options.find_state(None)
    assert Path("given") == options.find_state(Path("given"))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.25, "250 ms"),
        (12.34, "12.3 s"),
        (59.97, "1 min"),
        (125, "2 min 5 s"),
        (4000, "1 h 6 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations_are_shown_in_the_two_greatest_units(seconds: float, shown: str) -> None:
    assert shown == render.duration(seconds)


def test_a_command_shows_no_traceback_unless_asked(cli: Run) -> None:
    plain = cli("describe", "x")
    asked = cli("describe", "x", "--traceback")

    assert "Traceback" not in plain.err
    assert "Traceback" in asked.err
    assert plain.err.strip() == asked.err.strip().splitlines()[-1]
