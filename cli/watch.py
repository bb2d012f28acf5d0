"""`perdure watch`: an instance's history, as it is written."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, cast

import click
import msgspec
import trio
from rich.console import Console
from rich.text import Text

from perdure import HistoryEntry, InvalidArgumentError
from perdure.cli import exits, options, render
from perdure.engine.remote import ENDED, open_remote
from perdure.engine.story import Cursor, Story


def _check_after(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        Cursor.of(value)
    except InvalidArgumentError as error:
        raise click.BadParameter(str(error)) from error
    return value


@click.command()
@click.argument("instance")
@options.state_option
@options.json_option
@click.option(
    "--after", default="0", callback=_check_after, metavar="CURSOR",
    help="Begin behind this fact: the cursor that --json gives for each, or the number of a commit.",
)  # fmt: skip
def watch(*, instance: str, state: Path, as_json: bool, after: str) -> None:
    """Follow an instance's history until it has ended.

    With --json each fact is one line, and its `cursor` is where --after goes on: no fact is left out and
    none comes twice. Ctrl-C stops watching and leaves the instance alone. The exit
    status says how it ended: 0 complete, 1 otherwise.

    \b
    perdure watch ResearchAgent/tides-1
    perdure watch tides-1 --json --after 40
    """
    status = trio.run(_watch, state, instance, as_json, after)
    raise SystemExit(exits.OK if status == "complete" else exits.FAILED)


async def _watch(state: Path, instance: str, as_json: bool, after: str) -> str:
    console = render.console()
    async with open_remote(state) as remote:
        key = remote.resolve(instance)
        told = False
        story = Story(str(key), after)
        async with contextlib.aclosing(remote.changes(key)) as changes:
            async for _ in changes:
                async with remote.read(key) as file:
                    status, owned = file.status, file.owned
                    while file.has_file and (entries := await story.take(file.fetch)):
                        for entry in entries:
                            _print(console, entry, as_json)
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


def _print(console: Console, entry: HistoryEntry, as_json: bool) -> None:
    if as_json:
        render.print_json(msgspec.structs.asdict(entry) | {"detail": _detail(entry)}, pretty=False)
        return
    console.print(line(entry), soft_wrap=True)


def _detail(entry: HistoryEntry) -> Any:
    text = entry.detail
    return render.loaded(text) if text is not None and text.startswith("{") else text


def line(entry: HistoryEntry) -> Text:
    """Return one fact of the history as a line."""
    what, detail = entry.what, _detail(entry)
    made = Text(f"{render.moment(render.parse_time(entry.at)):<9} ", style="dim")
    made.append(f"{what:<20} ", style=render.STYLES.get(what.rpartition(" ")[2], ""))
    if entry.step:
        made.append(entry.step, style="bold")
    if isinstance(detail, dict):
        facts = cast("dict[str, Any]", detail)
        if (facts.get("attempt") or 1) > 1:
            made.append(f"  attempt {facts['attempt']}", style="dim")
        if facts.get("error"):
            made.append(f"  {exits.one_line(facts['error'])}", style="red")
    elif detail:
        made.append(f" {exits.one_line(detail)}")
    if entry.actor:
        made.append(f"  by {entry.actor}", style="dim")
    return made
