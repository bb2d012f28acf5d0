"""`perdure schedules` and `perdure backfill`: what is created by itself, when, and what was missed."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
import trio

from perdure import App, InvalidArgumentError, ScheduleStatus
from perdure.cli import options, render
from perdure.engine.remote import Remote, open_remote
from perdure.engine.schedules import BackfillBody, ScheduleBody


@click.command()
@click.option("--pause", metavar="SCHEDULE", help="Have a schedule create nothing until it is resumed.")
@click.option("--resume", metavar="SCHEDULE", help="Have it go on with what comes from now on.")
@options.state_option
@options.json_option
@options.timeout_option
def schedules(*, pause: str | None, resume: str | None, state: Path, as_json: bool, timeout_s: float) -> None:
    """List schedules: when each came last, when it comes next, and whether it is paused.

    A schedule stands in its class, in `schedules`; the process that serves the folder creates an instance
    each time it comes. SCHEDULE is Workflow/ID as this list shows it, or the ID alone.

    \b
    perdure schedules
    perdure schedules --pause "Report/0 9 * * *"
    perdure schedules --json | jq '.[].next_at'
    """
    if pause is not None and resume is not None:
        raise InvalidArgumentError("--pause and --resume: say one of them")
    name = pause or resume
    if name is not None:
        command = "schedule-pause" if pause is not None else "schedule-resume"
        _tell([trio.run(_change, state, command, name, timeout_s)], as_json=as_json, one=True)
        return
    _tell(trio.run(_list, state), as_json=as_json, one=False, state=state)


async def _list(state: Path) -> list[ScheduleStatus]:
    async with open_remote(state) as remote:
        return remote.schedules()


async def _change(state: Path, command: str, name: str, timeout_s: float) -> ScheduleStatus:
    async with open_remote(state) as remote:
        key = remote.schedule_key(name)
        body = ScheduleBody(schedule=str(key))
        answer = await remote.command(key, command, body, who=options.who(), timeout_s=timeout_s)
        return msgspec.json.decode(answer or "", type=ScheduleStatus)


def _tell(found: list[ScheduleStatus], *, as_json: bool, one: bool, state: Path | None = None) -> None:
    if as_json:
        shown = [msgspec.to_builtins(each, builtin_types=(datetime,)) for each in found]
        render.print_json(shown[0] if one else shown)
        return
    if not found:
        click.echo(f"No schedules in {state}: a class has them in `schedules`, once it has been served.")
        return
    table = render.table("schedule", "time zone", "last", "next", "missed", "overlap")
    for each in found:
        table.add_row(
            f"{each.workflow}/{each.id}",
            each.tz or "",
            render.moment(each.last_at) if each.last_at else "",
            "paused" if each.next_at is None else render.moment(each.next_at),
            each.catch_up,
            each.overlap,
        )
    render.console().print(table)


@click.command()
@click.argument("schedule")
@click.option("--from", "start", required=True, metavar="TIME", help="The first moment, as 2030-01-31T09:00.")
@click.option("--to", "end", required=True, metavar="TIME", help="The last moment. Both belong to it.")
@click.option("--dry-run", is_flag=True, help="Only say what would be created.")
@click.option("--file", "file", metavar="FILE", help="Where the class is, if no process serves the folder.")
@options.state_option
@options.json_option
@options.timeout_option
def backfill(
    *,
    schedule: str,
    start: str,
    end: str,
    dry_run: bool,
    file: str | None,
    state: Path,
    as_json: bool,
    timeout_s: float,
) -> None:
    """Create what a schedule missed in a stretch of time.

    That is the instances that it would have created then, and has not.

    Each gets the id that the schedule itself gives, so that repeating this creates nothing twice. SCHEDULE is
    Workflow/ID as `perdure schedules` shows it, or the ID alone. A TIME without a zone is UTC.

    \b
    perdure backfill "Report/0 9 * * *" --from 2030-01-01 --to 2030-01-31 --dry-run
    perdure backfill "Report/0 9 * * *" --from 2030-01-01 --to 2030-01-31
    """
    stretch = (_moment(start, "--from"), _moment(end, "--to"))
    app = None if file is None else options.load_file(file)
    names = trio.run(partial(_backfill, state, app, schedule, stretch, dry_run=dry_run, timeout_s=timeout_s))
    if as_json:
        render.print_json({"schedule": schedule, "dry_run": dry_run, "created": names})
        return
    for name in names:
        click.echo(name)
    click.echo(f"{'would create' if dry_run else 'created'} {len(names):,}", err=True)


async def _backfill(
    state: Path,
    app: App | None,
    name: str,
    stretch: tuple[datetime, datetime],
    *,
    dry_run: bool,
    timeout_s: float,
) -> list[str]:
    async with open_remote(state, known=app) as remote:
        planned = remote.planned(name, *stretch)
        if dry_run or not planned:
            return [str(key) for key in planned]
        _require_class(remote, app, planned[0].workflow)
        key = remote.schedule_key(name)
        from_ms, to_ms = (round(moment.timestamp() * 1000) for moment in stretch)
        body = BackfillBody(schedule=str(key), from_ms=from_ms, to_ms=to_ms)
        answer = await remote.command(key, "backfill", body, who=options.who(), timeout_s=timeout_s)
        return [f"{key.workflow}/{id_}" for id_ in msgspec.json.decode(answer or "[]", type=list[str])]


def _require_class(remote: Remote, app: Any, workflow: str) -> None:
    if remote.owner() is None and (app is None or workflow not in app.definitions):
        raise InvalidArgumentError(
            f"no process serves {remote.folder.root}, so nobody knows {workflow}: say where it is with --file"
            " FILE"
        )


def _moment(text: str, option: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidArgumentError(
            f"{option}: {text!r} is no time: write it as 2030-01-31 or 2030-01-31T09:00+01:00"
        ) from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
