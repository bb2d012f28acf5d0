"""Exit statuses, and how an error leaves the command line: one line on stderr with the way out.

Invariants:
    A status means the same for every command.
    A traceback is shown only where --traceback asks for it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any, Final, TypeVar, cast

import click

from perdure import errors

Function = TypeVar("Function", bound=Callable[..., Any])

OK: Final = 0
FAILED: Final = 1
"""The instance ended without a result: it failed, was terminated, or is parked as dead."""
USAGE: Final = 2
"""The command is wrong: options, file, class, params, id or name. click's own status for that."""
INSTANCE: Final = 3
"""There is no such instance, the id means several, or it is in use."""
STATE: Final = 4
"""The state folder, or an instance's file, cannot be used."""
COMMAND: Final = 5
"""The instance or its owner did not take the command: it has finished, or nobody answers."""
QUERY: Final = 6
DEFECT: Final = 70
"""A defect in Perdure itself: EX_SOFTWARE."""
OVERRUN: Final = 75
"""A shutdown past its stated time: EX_TEMPFAIL, for starting again goes on. The engine's status, too."""
INTERRUPTED: Final = 130
"""128 and the number of the signal that ended it: 130 after Ctrl-C, 143 after SIGTERM."""

HELP: Final = """Exit status:
    0  done
    1  the instance ended without a result: failed, terminated or dead
    2  wrong options, file, class, params, id or name
    3  no such instance, several of that id, or the id is in use
    4  the state folder or an instance's file cannot be used
    5  the command could not be carried out
    6  the query failed or was refused
   70  a defect in Perdure
   75  stopped hard, past the time for an orderly end
  130  stopped by Ctrl-C (143: by SIGTERM); what was under way is parked"""

STATUSES: Final[tuple[tuple[type[errors.PerdureError], int], ...]] = (
    (errors.QueryError, QUERY),
    (errors.InstanceFailedError, FAILED),
    (errors.InstanceTerminatedError, FAILED),
    (errors.InstanceDeadError, FAILED),
    (errors.InstanceFinishedError, COMMAND),
    (errors.InstanceExpiredError, COMMAND),
    (errors.StepNotFoundError, COMMAND),
    (errors.InstanceDamagedError, STATE),
    (errors.InstanceError, INSTANCE),
    (errors.StateError, STATE),
    (errors.InvalidArgumentError, USAGE),
    (errors.WorkflowCodeError, USAGE),
    (errors.CommandError, COMMAND),
    (errors.RuntimeClosedError, COMMAND),
)
_TRACEBACK: ContextVar[bool] = ContextVar("perdure_traceback", default=False)


def traceback_option(function: Function) -> Function:
    """Add --traceback to a command."""
    return click.option(
        "--traceback", is_flag=True, expose_value=False, is_eager=True, callback=_remember_traceback,
        help="Show the traceback of an error.",
    )(function)  # fmt: skip


def _remember_traceback(_ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        _TRACEBACK.set(True)


def wants_traceback() -> bool:
    """Whether --traceback was given."""
    return _TRACEBACK.get()


def status_of(error: BaseException) -> int:
    """Return the exit status for an error."""
    return next((status for cls, status in STATUSES if isinstance(error, cls)), FAILED)


def status_named(name: str) -> int:
    """Return the exit status for an error of ours, by the name of its class."""
    cls = getattr(errors, name, errors.CommandError)
    return next((status for known, status in STATUSES if issubclass(cls, known)), FAILED)


def one_line(text: str) -> str:
    """Return a text in one line."""
    return " ".join(text.split())


@contextlib.contextmanager
def told() -> Generator[None, None, None]:
    """Turn what is raised inside into a line on stderr and an exit status."""
    _TRACEBACK.set(False)
    try:
        yield
    except BaseException as raised:
        error = only(raised)
        match error:
            case SystemExit() | GeneratorExit():
                raise
            case KeyboardInterrupt() | click.Abort():
                click.echo("perdure: interrupted", err=True)
                sys.exit(INTERRUPTED)
            case click.ClickException():
                tell(error, _usage(error))
                sys.exit(USAGE)
            case errors.PerdureError():
                tell(error)
                sys.exit(status_of(error))
            case _:
                tell(error, f"a defect in Perdure: {type(error).__name__}: {error} (--traceback shows where)")
                sys.exit(DEFECT)


def tell(error: BaseException, text: str | None = None) -> None:
    """Write an error to stderr: in one line, after its traceback where that is wanted."""
    if wants_traceback():
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    click.echo(f"perdure: {one_line(text or str(error))}", err=True)


def _usage(error: click.ClickException) -> str:
    text = error.format_message().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{text}; see {context.command_path} --help" if context is not None else text


def only(error: BaseException) -> BaseException:
    """Return the one error inside exception groups, where there is one."""
    found = error
    while isinstance(found, BaseExceptionGroup):
        inside = cast("BaseExceptionGroup[BaseException]", found).exceptions
        if len(inside) != 1:
            return error
        found = inside[0]
    return found


def after_signal(number: int | None) -> int:
    """Return the exit status of a command that a signal ended; 0 where none came."""
    return OK if number is None else INTERRUPTED - signal.SIGINT + number
