"""`perdure watch`: an instance's history, as it is written."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Final, cast

import click
import trio
from rich.console import Console
from rich.text import Text

from perdure.cli import exits, options, render
from perdure.engine.remote import ENDED, open_remote

HISTORY: Final = 'SELECT "commit", at, what, step, actor, detail FROM history WHERE "commit" > ?'


@click.command()
@click.argument("instance")
@options.state_option
@options.json_option
@click.option(
    "--after", type=click.IntRange(min=0), default=0, metavar="COMMIT", help="Begin behind this commit."
)
def watch(*, instance: str, state: Path, as_json: bool, after: int) -> None:
    """Follow an instance's history until it has ended.

    With --json each fact is one line. Ctrl-C stops watching and leaves the instance alone. The exit
    status says how it ended: 0 complete, 1 otherwise.

    \b
    perdure watch ResearchAgent/tides-1
    perdure watch tides-1 --json --after 40
    """
    status = trio.run(_watch, state, instance, as_json, after)
    raise SystemExit(exits.OK if status == "complete" else exits.FAILED)


async def _watch(state: Path, instance: str, as_json: bool, after: int) -> str:
    console = render.console()
    async with open_remote(state) as remote:
        key = remote.resolve(instance)
        told = False
        async with contextlib.aclosing(remote.changes(key)) as changes:
            async for _ in changes:
                async with remote.read(key) as file:
                    rows = await file.fetch(HISTORY, after) if file.has_file else []
                    status, owned = file.status, file.owned
                for row in rows:
                    after = row["commit"]
                    _print(console, row, as_json)
                if status.status in ENDED:
                    _ended(status.status, status.reason, as_json)
                    return status.status
                if not owned and not told:
                    click.echo(
                        f"perdure: no process runs {state} now: waiting for `perdure serve FILE`", err=True
                    )
                told = not owned
    raise AssertionError("changes never ends")


def _ended(status: str, reason: str | None, as_json: bool) -> None:
    if status == "dead" and not as_json:
        click.echo(f"dead: {reason}; `perdure resume` tries it again", err=True)


def _print(console: Console, row: Any, as_json: bool) -> None:
    detail = render.loaded(row["detail"]) if _is_json(row["detail"]) else row["detail"]
    if as_json:
        render.print_json(row.as_dict() | {"detail": detail}, pretty=False)
        return
    console.print(line(row, detail), soft_wrap=True)


def _is_json(text: str | None) -> bool:
    return text is not None and text.startswith("{")


def line(row: Any, detail: Any) -> Text:
    """Return one fact of the history as a line."""
    what: str = row["what"]
    made = Text(f"{render.moment(render.parse_time(row['at'])):<9} ", style="dim")
    made.append(f"{what:<20} ", style=render.STYLES.get(what.rpartition(" ")[2], ""))
    if row["step"]:
        made.append(row["step"], style="bold")
    if isinstance(detail, dict):
        facts = cast("dict[str, Any]", detail)
        if (facts.get("attempt") or 1) > 1:
            made.append(f"  attempt {facts['attempt']}", style="dim")
        if facts.get("error"):
            made.append(f"  {exits.one_line(facts['error'])}", style="red")
    elif detail:
        made.append(f" {exits.one_line(detail)}")
    if row["actor"]:
        made.append(f"  by {row['actor']}", style="dim")
    return made
