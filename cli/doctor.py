"""`perdure doctor`: what Perdure finds on this machine and in this state folder."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from perdure.cli import exits, options, render
from perdure.engine.doctor import Diagnosis, Finding, Level, examine

MARKS: Final[dict[Level, tuple[str, str, str]]] = {
    "ok": ("✓", "ok", "green"),
    "note": ("•", "--", "yellow"),
    "problem": ("✗", "!!", "bold red"),
}
LABEL_CHARS: Final = 16


@click.command()
@options.state_option
@options.json_option
@click.option(
    "--files", "files_max", type=click.IntRange(min=0), default=200, show_default=True, metavar="N",
    help="Check at most N instances' files, the latest first.",
)  # fmt: skip
@click.pass_context
def doctor(ctx: click.Context, *, state: Path, as_json: bool, files_max: int) -> None:
    """Say whether this machine and this state folder are in order.

    Versions, the disk (its kind, free space, and how many syncs a second it really does), who has
    the state folder, the catalog, and whether the instances' files hold together. Nothing is
    changed. Files are not checked while a process has the folder.

    Exits with 1 when something needs a person.
    """
    diagnosis = examine(state, files_max=files_max)
    if as_json:
        found = msgspec.to_builtins(diagnosis)
        render.print_json(found | {"problems": len(diagnosis.problems)})
    else:
        show(diagnosis, render.console())
    if diagnosis.problems:
        ctx.exit(exits.FAILED)


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print the findings, by section, and what they come to."""
    console.print(f"[bold]State folder[/] {escape(diagnosis.state)}", soft_wrap=True)
    section = ""
    for finding in diagnosis.findings:
        if finding.section != section:
            section = finding.section
            console.print(f"\n  [bold]{escape(section)}[/]")
        _line(console, finding)
    console.print()
    problems, notes = len(diagnosis.problems), sum(f.level == "note" for f in diagnosis.findings)
    if problems:
        console.print(f"[bold red]{problems} need{'s' if problems == 1 else ''} a person.[/]")
    else:
        tail = f"; {notes} note{'' if notes == 1 else 's'}" if notes else ""
        console.print(f"[green]All in order[/]{tail}.")


def _line(console: Console, finding: Finding) -> None:
    mark, letters, style = MARKS[finding.level]
    head = letters if console.options.ascii_only else mark
    for text, tone in ((finding.value, ""), (finding.advice, "dim")):
        for line in textwrap.wrap(exits.one_line(text), max(20, console.width - LABEL_CHARS - 3)):
            label = f"{finding.what:<{LABEL_CHARS}}" if head else " " * LABEL_CHARS
            console.print(
                Text(f"{head or ' '} ", style=style),
                Text(label),
                Text(line, style=tone),
                sep="",
                soft_wrap=True,
            )
            head = ""
