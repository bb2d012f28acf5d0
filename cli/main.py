"""`perdure`: the command group. A command's module is imported when that command is asked for.

`COMMANDS` is the whole list; `perdure --help` is made from it alone, so that it is quick. A new
command is one line here.

Invariants:
    Every error of ours leaves as one line on stderr and an exit status of `exits`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import Any, Final, NamedTuple

import click

from perdure.cli import exits


class Entry(NamedTuple):
    """Where a command is, in which section of the help it stands, and what it does in one line."""

    target: str
    section: str
    summary: str


RUN: Final = "Run workflows"
LOOK: Final = "Look at instances"
CONTROL: Final = "Control instances"
FOLDER: Final = "Begin and maintain"

COMMANDS: Final[dict[str, Entry]] = {
    "run": Entry("perdure.cli.run:run", RUN, "Run one instance to its end, with a live view of its steps."),
    "serve": Entry("perdure.cli.serve:serve", RUN, "Run the instances of a state folder until stopped."),
    "create": Entry("perdure.cli.create:create", RUN, "Create an instance."),
    "list": Entry("perdure.cli.list:list_", LOOK, "List instances, newest first."),
    "describe": Entry(
        "perdure.cli.describe:describe", LOOK, "Show one instance: where it stands and why, and its timeline."
    ),
    "watch": Entry("perdure.cli.watch:watch", LOOK, "Follow an instance's history until it has ended."),
    "stream": Entry(
        "perdure.cli.stream:stream",
        LOOK,
        "Print a stream, or the result of a step that yields, while it is written.",
    ),
    "sql": Entry("perdure.cli.sql:sql", LOOK, "Ask instances with SQL."),
    "schedules": Entry(
        "perdure.cli.schedules:schedules",
        LOOK,
        "List schedules: when each came last, when it comes next, and whether it is paused.",
    ),
    "top": Entry("perdure.cli.top:top", LOOK, "Show what the processes that serve a state folder are doing."),
    "send-event": Entry("perdure.cli.control:send_event", CONTROL, "Send an event to an instance."),
    "call": Entry("perdure.cli.call:call", CONTROL, "Call a method of a running instance."),
    "backfill": Entry(
        "perdure.cli.schedules:backfill", CONTROL, "Create what a schedule missed in a stretch of time."
    ),
    "pause": Entry(
        "perdure.cli.control:pause", CONTROL, "Pause instances: steps under way finish, none starts."
    ),
    "resume": Entry("perdure.cli.control:resume", CONTROL, "Take a pause back, or revive a dead instance."),
    "terminate": Entry("perdure.cli.control:terminate", CONTROL, "End instances for good."),
    "restart": Entry(
        "perdure.cli.control:restart", CONTROL, "Run instances again, from the beginning or from a step."
    ),
    "delete": Entry("perdure.cli.control:delete", CONTROL, "Remove instances, and all that is kept of them."),
    "demo": Entry(
        "perdure.cli.demo:demo", FOLDER, "Watch a real workflow survive SIGKILL, and ask it with SQL."
    ),
    "init": Entry("perdure.cli.init:init", FOLDER, "Write a first workflow, hello.py, and its test."),
    "check": Entry(
        "perdure.cli.check:check", FOLDER, "Replay instances against changed code, without running a step."
    ),
    "doctor": Entry(
        "perdure.cli.doctor:doctor", FOLDER, "Say whether this machine and this state folder are in order."
    ),
    "repair": Entry("perdure.cli.repair:repair", FOLDER, "Rebuild the catalog from the instances' files."),
    "bench": Entry(
        "perdure.cli.bench:bench", FOLDER, "Measure Perdure on this machine, beside bare sqlite3 and peers."
    ),
}


class LazyGroup(click.Group):
    """A group whose commands are imported at first need."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the help."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        del ctx
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of the help, without importing a command."""
        del ctx
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [(name, entry.summary) for name, entry in COMMANDS.items() if entry.section == section]
                )

    def main(  # type: ignore[override]  # click's overloads tell its two modes apart; here both are one
        self, args: Sequence[str] | None = None, prog_name: str | None = None, *,
        standalone_mode: bool = True, **extra: Any,
    ) -> Any:  # fmt: skip
        """Run the command line; what it raises is told in one line."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        with exits.told():
            status = super().main(args, prog_name, standalone_mode=False, **extra)
            sys.exit(status if isinstance(status, int) else exits.OK)


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"perdure {metadata.version('perdure')}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\n" + exits.HELP,
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
)
@exits.traceback_option
def main() -> None:
    """Durable workflows: every instance is an actor that owns its own SQLite file.

    \b
    perdure init hello                      write a first workflow
    perdure run hello.py:Hello --params '{"name": "Ada"}'
    perdure describe Hello/1f0c             its timeline; a bare id will do
    perdure sql Hello/1f0c 'SELECT name, duration_ms FROM steps'

    State lies in --state DIR, else $PERDURE_STATE, else `state` under [tool.perdure] in the
    nearest pyproject.toml, else ./.perdure.
    """
