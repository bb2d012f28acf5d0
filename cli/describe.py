"""`perdure describe`: one instance, its timeline, and what it waits for."""

from __future__ import annotations

import functools
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import msgspec
import trio
from rich.console import Console
from rich.text import Text

from perdure import InstanceStatus
from perdure.cli import exits, family, options, picture, previews, render
from perdure.engine.reader import Reader
from perdure.engine.remote import ENDED, Remote, open_remote

STEPS: Final = "SELECT * FROM steps ORDER BY seq"
ATTEMPTS: Final = "SELECT * FROM attempts"
EVENTS: Final = "SELECT * FROM events WHERE delivered_to IS NULL ORDER BY seq"
COMMANDS: Final = "SELECT at, what, actor, detail FROM history WHERE actor IS NOT NULL"
VALUE_CHARS_MAX: Final = 200


class Description(NamedTuple):
    """What is told of an instance. `owned` is whether a process runs its folder."""

    key: str
    path: Path
    status: InstanceStatus
    owned: bool
    picture: picture.Picture | None
    events: list[dict[str, Any]]
    commands: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    attempts: list[dict[str, Any]]
    children: list[dict[str, Any]] = []  # noqa: RUF012 - never changed
    streams: list[dict[str, Any]] = []  # noqa: RUF012 - never changed


@click.command()
@click.argument("instance")
@options.state_option
@options.json_option
@click.option("--steps", "steps_max", type=click.IntRange(min=1), default=100, show_default=True,
              help="How many steps to show, the last ones.")  # fmt: skip
@options.reveal_option
def describe(*, instance: str, state: Path, as_json: bool, steps_max: int, reveal: bool) -> None:
    """Show one instance: where it stands and why, and its timeline.

    The timeline has each step with its attempts, its duration, and a bar that shows when in the
    whole run it ran; errors of failed attempts stand below their step. Children are listed with the
    step that waits for them and their status, streams with how they begin.

    \b
    perdure describe ResearchAgent/tides-1
    perdure describe tides-1 --json | jq '.steps[].duration_ms'
    """
    found = trio.run(_describe, state, instance, steps_max, reveal)
    if as_json:
        render.print_json(_json(found))
    else:
        _show(render.console(), found, state)


async def _describe(state: Path, instance: str, steps_max: int, reveal: bool) -> Description:
    async with open_remote(state) as remote:
        key = remote.resolve(instance)
        async with remote.read(key) as file:
            return await _read(remote, str(key), file, steps_max, reveal=reveal)


async def _read(remote: Remote, key: str, file: Reader, steps_max: int, *, reveal: bool) -> Description:
    if not file.has_file:
        return Description(key, file.path, file.status, file.owned, None, [], [], [], [])
    rows = [
        [row.as_dict() for row in await file.fetch(query, reveal=reveal)]
        for query in (EVENTS, COMMANDS, STEPS, ATTEMPTS)
    ]
    taken = await picture.take(file.fetch, steps_max=steps_max)
    children = family.children_of(remote, rows[2])
    return Description(key, file.path, file.status, file.owned, taken, *rows)._replace(
        children=children,
        streams=await previews.streams_of(functools.partial(file.fetch, reveal=reveal), rows[2]),
    )


# -- for people ----------------------------------------------------------------------------


def _show(console: Console, found: Description, state: Path) -> None:
    console.print(_head(found))
    for name, value in _facts(found, state):
        line = Text(f"  {name:<9}", style="dim")
        line.append_text(value if isinstance(value, Text) else Text(value))
        console.print(line)
    if found.picture is not None and found.picture.steps:
        console.print()
        hidden = sum(found.picture.counts.values()) - len(found.picture.steps)
        if hidden > 0:
            console.print(Text(f"… {hidden} earlier steps: --steps shows more", style="dim"))
        for each in picture.timeline(found.picture):
            console.print(each)
    for line in (*family.told(found.children), *previews.told(found.streams)):
        console.print(line)
    for event in found.events:
        console.print(
            Text(f"undelivered event {event['type']!r}: {_short(event['payload'])}", style="yellow")
        )
    for command in found.commands:
        at = render.moment(render.parse_time(command["at"]))
        detail = f": {exits.one_line(command['detail'])}" if command["detail"] else ""
        console.print(Text(f"{at}  {command['what']} by {command['actor']}{detail}", style="dim"))


def _head(found: Description) -> Text:
    return Text.assemble((f"{found.key}  ", "bold"), render.status_text(found.status.status))


def _why(status: InstanceStatus) -> str:
    """Return what an unfinished instance waits for, or what keeps it in memory, and until when."""
    parts = [status.reason] if status.reason else []
    if status.status in ("waiting", "queued", "running") and status.wake_at is not None:
        left_s = -(render.since(status.wake_at) or 0.0)
        if left_s > 0:
            parts.append(f"until {render.moment(status.wake_at)}, {render.duration(left_s)} left")
    return "; ".join(parts)


def _facts(found: Description, state: Path) -> list[tuple[str, str | Text]]:
    status = found.status
    row: dict[str, Any] = found.picture.instance if found.picture is not None else {}
    facts: list[tuple[str, str | Text]] = [("why", _why(status))] if _why(status) else []
    facts.append(("created", render.moment(status.created_at)))
    if status.started_at is not None:
        facts.append(("started", render.moment(status.started_at)))
    if status.ended_at is not None:
        took = render.duration(render.since(status.started_at, status.ended_at))
        facts.append(("ended", f"{render.moment(status.ended_at)}, after {took}"))
    facts += [
        (name, _short(row[name]))
        for name in ("params", "tags", "version", "parent")
        if row.get(name) not in (None, "null")
    ]
    if row.get("replays"):
        facts.append(("replays", str(row["replays"])))
    if status.status == "complete":
        facts.append(("result", _short(row.get("output"))))
    if status.error:
        facts.append(("error", Text(exits.one_line(status.error), style="red")))
    if status.rollback is not None:
        why = f": {exits.one_line(status.rollback.error)}" if status.rollback.error else ""
        facts.append(("rollback", Text(f"{status.rollback.outcome}{why}", style="red" if why else "")))
    if not found.owned and status.status not in (*ENDED, "paused"):
        facts.append(("parked", f"no process runs this folder: `perdure serve FILE --state {state}` goes on"))
    if status.status in ("paused", "dead"):
        facts.append(("next", f"`perdure resume {found.key}` lets it go on"))
    if status.expires_at is not None:
        facts.append(("kept", f"until {render.moment(status.expires_at)}"))
    ended = status.ended_at is not None
    missing = "none any more" if ended else "none yet: it has not started"
    facts.append(("file", str(found.path) if found.picture is not None else missing))
    return facts


def _short(value: Any) -> str:
    text = render.cell(value).plain
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 1] + "…"


# -- for programs --------------------------------------------------------------------------


def _json(found: Description) -> dict[str, Any]:
    status = found.status
    times: dict[str, datetime | None] = {
        name: getattr(status, name) for name in ("created_at", "started_at", "ended_at", "wake_at")
    }
    row: dict[str, Any] = found.picture.instance if found.picture is not None else {}
    return {
        "instance": found.key,
        "status": status.status,
        "reason": status.reason,
        "error": status.error,
        "rollback": None if status.rollback is None else msgspec.structs.asdict(status.rollback),
        **times,
        "running_here": found.owned,
        "params": render.loaded(row.get("params")),
        "result": render.loaded(row.get("output")),
        "replays": row.get("replays"),
        "version": row.get("version"),
        "tags": render.loaded(row.get("tags")),
        "parent": row.get("parent"),
        "generation": row.get("generation"),
        "children": found.children,
        "file": str(found.path) if found.picture is not None else None,
        "steps": [_decoded(step, "input", "output", "error", "config", "detail") for step in found.steps],
        "attempts": [_decoded(attempt, "error", "heartbeat") for attempt in found.attempts],
        "undelivered_events": [_decoded(event, "payload") for event in found.events],
        "commands": found.commands,
        "streams": found.streams,
    }


def _decoded(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: render.loaded(value) if name in names else value for name, value in row.items()}
