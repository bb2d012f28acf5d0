"""What several commands take: the state folder, --json, JSON values, and what FILE:CLASS names."""

from __future__ import annotations

import getpass
import json
import os
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import click

from perdure import App, InvalidArgumentError, PerdureError, UnknownWorkflowError
from perdure.cli import exits
from perdure.engine.app import load_app
from perdure.engine.instance import parse_payload

Function = TypeVar("Function", bound=Callable[..., Any])
DEFAULT_STATE: Final = ".perdure"


def state_option(function: Function) -> Function:
    """Add --state, whose value is found as the help of `perdure` says, and --traceback."""
    option = click.option(
        "--state", type=click.Path(path_type=Path), metavar="DIR", callback=_find_state,
        help="The state folder. Default: $PERDURE_STATE, [tool.perdure] state in pyproject.toml, ./.perdure.",
    )  # fmt: skip
    return exits.traceback_option(option(function))


def json_option(function: Function) -> Function:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(function)


def reveal_option(function: Function) -> Function:
    """Add --reveal."""
    return click.option(
        "--reveal", is_flag=True, help="Show the values of sensitive steps, which are null otherwise."
    )(function)


def timeout_option(function: Function) -> Function:
    """Add --timeout of a command to an instance."""
    return click.option(
        "--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=60.0,
        show_default=True, metavar="SECONDS", help="How long the process that owns the folder may take.",
    )(function)  # fmt: skip


def _find_state(_ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> Path:
    return find_state(value)


def find_state(given: Path | None) -> Path:
    """Return the state folder: as given, else $PERDURE_STATE, else pyproject.toml's, else ./.perdure."""
    if given is not None:
        return given
    if named := os.environ.get("PERDURE_STATE"):
        return Path(named)
    here = Path.cwd()
    for folder in (here, *here.parents):
        project = folder / "pyproject.toml"
        if project.is_file():
            return _state_of(project) or Path(DEFAULT_STATE)
    return Path(DEFAULT_STATE)


def _state_of(project: Path) -> Path | None:
    try:
        table = tomllib.loads(project.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"{project} cannot be read: {error}; or name the folder with --state DIR"
        ) from error
    state = table.get("tool", {}).get("perdure", {}).get("state")
    if state is not None and not isinstance(state, str):
        raise InvalidArgumentError(f"{project}: [tool.perdure] state must be text, not {state!r}")
    return None if state is None else project.parent / state


def read_json(text: str | None, what: str) -> Any:
    """Return the JSON value in `text`, in the file after `@`, or on stdin for `-`. None for None."""
    if text is None:
        return None
    source = read_text(text, what)
    try:
        return parse_payload(source)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{what}: {error}") from error


def as_json_text(value: Any) -> str:
    """Return a value that came from JSON as compact JSON text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def read_text(text: str, what: str) -> str:
    """Return `text`, what is in the file after `@`, or on stdin for `-`."""
    if text == "-":
        return sys.stdin.read()
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidArgumentError(f"{what}: the file {text[1:]} cannot be read: {reason}") from error


class Target(NamedTuple):
    """A workflow on the command line: its app, its name, and how it was written."""

    app: App
    workflow: str
    text: str


def load_target(text: str) -> Target:
    """Import what `FILE:CLASS` names; `FILE` alone will do where it has one workflow.

    Raises `InvalidArgumentError` and `UnknownWorkflowError`, which list what there is.
    """
    file, colon, name = text.rpartition(":")
    if not colon or "/" in name or name.endswith(".py"):
        file, name = text, ""
    app = load_file(file)
    known = {definition.cls.__name__: key for key, definition in app.definitions.items()}
    known |= {key: key for key in app.definitions}
    names = ", ".join(sorted(app.definitions)) or "none"
    if not name:
        if len(app.definitions) == 1:
            return Target(app, next(iter(app.definitions)), text)
        raise UnknownWorkflowError(f"{file} has several workflows: say {file}:CLASS with one of {names}")
    if name not in known:
        raise UnknownWorkflowError(f"{file} has no workflow {name}; it has: {names}")
    return Target(app, known[name], text)


def load_file(file: str) -> App:
    """Import a file and return its app. Raises `InvalidArgumentError` where that fails."""
    try:
        return load_app(file)
    except InvalidArgumentError:
        raise
    except PerdureError as error:
        raise InvalidArgumentError(str(error)) from error


def who() -> str:
    """Return who gives a command, for the instance's history."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return f"user {os.getuid()}" if hasattr(os, "getuid") else "somebody"
