"""What commands to instances share: which instances are meant, whether that is wanted, and what came of it.

`pause`, `resume`, `terminate`, `restart` and `delete` take one instance, several, or a condition on the
catalog. All that is wrong is refused before the first instance gets the command.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec
import trio

from perdure import InvalidArgumentError
from perdure.cli import exits, options, render
from perdure.engine.bulk import (
    PLAIN,
    STATUSES,
    BulkCommand,
    BulkOptions,
    BulkReport,
    Refused,
    Selection,
    selection,
)
from perdure.engine.remote import Remote, open_remote

Function = TypeVar("Function", bound=Callable[..., Any])
AT_ONCE: Final = 200
"""Instances that one message to the process that owns the folder names; progress is shown between two."""
SHOWN_MAX: Final = 20
"""How many instances are named for people; --json names all."""
MOVING: Final = ("queued", "running", "waiting")
UNFINISHED: Final = (*MOVING, "waiting_for_pause", "paused", "dead")
CAN_CHANGE: Final[dict[str, tuple[str, ...]]] = {
    "pause": MOVING,
    "resume": ("paused", "waiting_for_pause", "dead"),
    "terminate": UNFINISHED,
    "restart": (),
    "delete": (),
}
"""What a command means where a condition says no status: the instances that it can change."""
PAST: Final[dict[str, str]] = {
    "pause": "paused",
    "resume": "resumed",
    "terminate": "terminated",
    "restart": "restarted",
    "delete": "deleted",
}


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says of the instances that are meant, and of how to go about it."""

    state: Path
    names: tuple[str, ...]
    everything: bool
    workflow: str | None
    status: tuple[str, ...]
    tag: str | None
    where: str | None
    dry_run: bool
    yes: bool
    as_json: bool
    timeout_s: float

    @property
    def by_condition(self) -> bool:
        """Whether instances are meant that meet a condition, rather than those named."""
        return self.everything or bool(self.status) or any((self.workflow, self.tag, self.where))


def wanted(function: Function) -> Function:
    """Add the arguments by which instances are meant; the command gets them as one `Wanted`."""

    @functools.wraps(function)  # with the options that the command has besides
    def command(**given: Any) -> Any:
        fields = {name: given.pop(name) for name in Wanted.__struct_fields__}
        return function(Wanted(**fields), **given)

    decorators = (
        click.argument("names", nargs=-1, metavar="[INSTANCE]..."),
        click.option("--all", "everything", is_flag=True, help="All instances that the command can change."),
        click.option("--workflow", metavar="NAME", help="Those of this workflow."),
        click.option(
            "--status", type=click.Choice(STATUSES), multiple=True, help="Those with this status; repeatable."
        ),
        click.option("--tag", metavar="TAG", help="Those that were created with this tag."),
        click.option(
            "--where", metavar="SQL", help="Those that meet this condition on the catalog's view `instances`."
        ),
        click.option("--dry-run", is_flag=True, help="Say which instances are meant, and do nothing."),
        click.option("--yes", is_flag=True, help="Do not ask."),
        options.state_option,
        options.json_option,
        options.timeout_option,
    )
    decorated: Any = command
    for decorator in reversed(decorators):
        decorated = decorator(decorated)
    return decorated  # type: ignore[no-any-return]  # what click makes of a function has its parameters added


def give(
    command: BulkCommand,
    meant: Wanted,
    *,
    ask: bool,
    one: Callable[[Remote, Any], Any] | None = None,
    options_: BulkOptions = PLAIN,
) -> None:
    """Give a command to the instances that are meant; `one` gives it to a single one that is named.

    With `ask` people are asked first where many are meant, and always before a deletion.
    """
    _check(meant)
    options_.origin.check()
    if one is not None and len(meant.names) == 1 and not meant.dry_run:
        trio.run(_give_one, meant, one)
        return
    trio.run(_give_all, command, meant, options_, ask and not meant.yes and not meant.dry_run)


def _check(meant: Wanted) -> None:
    if meant.names and meant.by_condition:
        raise InvalidArgumentError("name instances, or say which by --all, --workflow, --status, --tag and"
                                   " --where: not both")  # fmt: skip
    if not meant.names and not meant.by_condition:
        raise InvalidArgumentError("name an instance, or say which by --all, --workflow, --status, --tag or"
                                   " --where")  # fmt: skip


async def _give_one(meant: Wanted, one: Callable[[Remote, Any], Any]) -> None:
    async with open_remote(meant.state) as remote:
        await one(remote, remote.resolve(meant.names[0]))


async def _give_all(command: BulkCommand, meant: Wanted, options_: BulkOptions, ask: bool) -> None:
    async with open_remote(meant.state) as remote:
        if meant.names:
            keys = list(dict.fromkeys(remote.resolve(name) for name in meant.names))
        else:
            keys = await remote.select(_condition(command, meant))
        if meant.dry_run:
            _tell_meant(command, keys, meant)
            return
        if ask and keys:
            _confirm(command, keys)
        report = BulkReport(done=[], refused=[])
        for begin in range(0, len(keys), AT_ONCE):
            part = await remote.give_all(
                keys[begin : begin + AT_ONCE], command, options=options_, who=options.who(),
                timeout_s=meant.timeout_s,
            )  # fmt: skip
            report = BulkReport(done=report.done + part.done, refused=report.refused + part.refused)
            if len(keys) > AT_ONCE and sys.stderr.isatty():
                click.echo(f"\r{min(begin + AT_ONCE, len(keys))} of {len(keys)}", nl=False, err=True)
        if len(keys) > AT_ONCE and sys.stderr.isatty():
            click.echo("\r", nl=False, err=True)
    _tell_done(command, report, meant)


def _condition(command: BulkCommand, meant: Wanted) -> Selection:
    statuses = meant.status or CAN_CHANGE[command]
    return selection(meant.workflow, statuses, meant.tag, meant.where)


def _confirm(command: str, keys: Sequence[Any]) -> None:
    """Ask whether that is wanted. Where nobody can be asked, --yes has to say so."""
    if not sys.stdin.isatty():
        raise InvalidArgumentError(
            f"{command} of {_number(keys)} is not asked for twice without a terminal: say --yes, or look"
            " first with --dry-run"
        )
    for key in keys[:SHOWN_MAX]:
        click.echo(f"  {key}", err=True)
    if len(keys) > SHOWN_MAX:
        click.echo(f"  … and {len(keys) - SHOWN_MAX} more", err=True)
    click.confirm(f"{command} {_number(keys)}?", abort=True, err=True)


def _number(keys: Sequence[Any]) -> str:
    return str(keys[0]) if len(keys) == 1 else f"{len(keys)} instances"


def _tell_meant(command: str, keys: Sequence[Any], meant: Wanted) -> None:
    if meant.as_json:
        render.print_json({"command": command, "dry_run": True, "instances": [str(key) for key in keys]})
        return
    for key in keys:
        click.echo(str(key))
    click.echo(f"{command} would reach {_number(keys) if keys else 'no instance'}", err=True)


def _tell_done(command: str, report: BulkReport, meant: Wanted) -> None:
    if meant.as_json:
        refused = [msgspec.to_builtins(each) for each in report.refused]
        render.print_json({"command": command, "done": report.done, "refused": refused})
    else:
        click.echo(f"{PAST[command]} {_number(report.done) if report.done else 'no instance'}")
        for each in report.refused[:SHOWN_MAX]:
            click.echo(f"refused: {exits.one_line(each.why)}", err=True)
        if len(report.refused) > SHOWN_MAX:
            click.echo(f"… and {len(report.refused) - SHOWN_MAX} more refused", err=True)
    if report.refused:
        sys.exit(_status(report.refused))


def _status(refused: Sequence[Refused]) -> int:
    """Return the exit status that all refusals have in common, else that of a command not carried out."""
    found = {exits.status_named(each.error) for each in refused}
    return found.pop() if len(found) == 1 else exits.COMMAND
